import signal
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

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
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What shares compiled graphs, or runs in several processes, is run by one worker."""
    for item in items:
        if (folder := item.path.parent.name) in ("compile", "distributed"):
            item.add_marker(pytest.mark.xdist_group(folder))
