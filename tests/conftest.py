import signal
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from bouton.native import ready
from bouton.passes import merging

# oracles.py and the contract's models
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "contract")]

# The tests' tensors are small: a second thread would only wait, and on a busy machine wait for long.
torch.set_num_threads(1)

# Tests send SIGINT to their processes, which ignore it if a shell started this one in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Deterministic, so that a failure in one place is a failure everywhere; no deadline on shared machines.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global random state, whatever ran before it."""
    # torch.manual_seed writes down the stack for each kind of device, a tenth of the time of all tests
    torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def every_promise_holds_for_sums(request, monkeypatch):
    """Layers as small as those of the contract sum their weights, too, where a mechanism allows for it."""
    if request.path.parent.name == "contract":
        monkeypatch.setattr(merging, "FEW_USES", 0)
        monkeypatch.setattr(merging, "FEW_PRODUCTS", 0)


@pytest.fixture
def without_loops(monkeypatch):
    """Operations of torch do the work of the loops in C."""
    monkeypatch.setattr(ready, "library", lambda: None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """What shares compiled graphs, or runs in several processes, is run by one worker.

    Marks of a group would do, but under pytest 9.2 the names of tests cannot be changed as
    pytest-xdist 3.8 does to tell their group.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            folder = Path(nodeid.partition("::")[0]).parent.name
            return folder if folder in ("compile", "distributed") else nodeid

    return ByFolder(config, log)
