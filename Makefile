# make demo: does all the set-up and runs the main job.  make test: does all the set-up and runs the tests.
PYTHON ?= python3
BIN := .venv/bin
WITHOUT_LOOPS := tests/contract/test_right_update.py tests/mechanisms tests/step/test_advance.py \
	tests/step/test_product.py tests/step/test_updates.py tests/tensors

.PHONY: demo test lint clean

demo: .venv/lab.stamp
	$(BIN)/bouton demo

test: .venv/dev.stamp .venv/spikingjelly.stamp .venv/triton.stamp lint
	$(BIN)/pytest -n auto
	# once more without the loops in C, what else would run them, as where there is no compiler
	BOUTON_NATIVE=0 $(BIN)/pytest -n auto $(WITHOUT_LOOPS)

lint: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One stamp per set of extras (lab, dev); made anew when the requirements change.
.venv/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable '.[$*]'
	touch $@

# Alone, because it asks for a torchvision that does not fit a CPU build of torch; its spiking layers do without.
.venv/spikingjelly.stamp: .venv/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps spikingjelly
	touch $@

# Runs the kernels of src/bouton/fused on a CPU, in its interpreter. Large (286 MB), and made for few machines.
.venv/triton.stamp: .venv/dev.stamp
	test "$$(uname -sm)" != "Linux x86_64" || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps triton
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
