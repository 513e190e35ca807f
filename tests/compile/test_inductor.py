"""The same down to machine code: one net, because g++ takes seconds for each."""

import pytest
from compiling import QUIET, compiled

pytestmark = QUIET


@pytest.fixture(scope="module", autouse=True)
def empty_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def test_all_mechanisms_under_inductor():
    found = compiled("mlp", "all at once", "inductor")
    assert found.graph == "one graph"
    assert found.graphs == compiled("mlp", "plain", "aot_eager").graphs
    assert found.late == 0
    # Plain nets differ by up to 7e-7. A redrawn weight is a draw over a chance, in which the rounding of
    # the old one is some 30 times larger.
    assert found.difference <= 1e-4
