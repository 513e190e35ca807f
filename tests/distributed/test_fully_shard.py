"""Under fully_shard: how states are laid out, and what is refused."""

import re

import pytest
from launch import launched
from parallel_texts import TOLD

_FLAT = "is sharded by FullyShardedDataParallel.*use torch.distributed.fsdp.fully_shard instead"
_OTHER = "0.weight is another parameter.*sharded by fully_shard.*then call bouton.attach"
WORDS = {
    "fsdp1": f"the model {_FLAT}",
    "fsdp1 inside": f"weight {_FLAT}",
    "fsdp1 after": f"weight {_FLAT}",
    "sharded after, update": _OTHER,
    "sharded after, gradient": "0.weight scales the gradient.*fully_shard, call bouton.attach after it",
    "sharded after, structure": _OTHER,
    "optimizer before": "weights that the optimizer does not hold: 0.weight, 1.weight; build the optimizer",
    "part of the model": "0.weight scales the gradient.*fully_shard.*on the whole model",
    "activity of gradients": "their rates would differ; use scope='update'",
}


@pytest.mark.parametrize("name", [name for name in TOLD if name != "layout"])
def test_what_cannot_be_right_in_several_processes_is_refused(name):
    for results in launched("fsdp", 4):
        assert re.search(WORDS[name], results[f"tell:{name}"])


def test_states_are_spread_as_their_weights_are():
    for rank, results in enumerate(launched("fsdp", 4)):
        held = dict(line.rsplit(" ", 1) for line in results["tell:layout"].splitlines())
        assert held["PlasticityDiversity/0.weight deviation"] == str(4 * 16)  # of 16 rows
        assert held["Crystallization/0.weight rate"] == str(4 * 16)
        assert held["Crystallization/6.weight rate"] == str([3, 3, 3, 1][rank] * 8)  # of 10 rows
        # 3 rows: whole, because none would be left for the last process
        assert held["Crystallization/2.weight rate"] == str(3 * 16)
        assert held["PlasticityDiversity/0.weight active"] == "16"
