"""What the loops in C are compared with: the same without them."""

import contextlib

import pytest

from bouton.native import ready
from bouton.native.library import library


@pytest.fixture(autouse=True)
def _compiled():
    if library() is None:
        pytest.skip("needs a C compiler")


@pytest.fixture(scope="session")
def torch_alone():
    """A context in which operations of torch do the work."""

    @contextlib.contextmanager
    def alone():
        loops, ready.library = ready.library, lambda: None
        try:
            yield
        finally:
            ready.library = loops

    return alone
