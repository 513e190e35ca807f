"""Promise 9: copies are copies."""

import copy
import io
import pickle

import pytest
import torch
from nets import NETS
from subjects import build, over_examples, same, train
from torch.optim.swa_utils import AveragedModel

import bouton


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def through_torch_save(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


over_copies = pytest.mark.parametrize(
    ("model_name", "copied"),
    [
        ("mlp", through_pickle),
        *((net, copy.deepcopy) for net in NETS),
        *((net, through_torch_save) for net in ("mlp", "tied", "lstm", "language")),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)


@over_copies
@over_examples
def test_a_copied_model_computes_the_same_and_is_independent(mechanism, model_name, copied):
    model, optimizer = build(model_name)
    bouton.attach(model, optimizer, [mechanism])
    train(model, optimizer, steps=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = copied(model)
    assert same(other.state_dict(), model.state_dict())
    x = torch.randn(3, 36)
    assert torch.equal(other.eval()(x), model.eval()(x))
    train(other, torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1), steps=2)
    assert same(model.state_dict(), before)
    bouton.detach(other)
    bouton.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), [mechanism])
    with pytest.raises(ValueError, match="attached already"):
        bouton.attach(model, optimizer, [mechanism])


@over_copies
@over_examples
def test_model_optimizer_and_handle_copied_together_go_on_alike(mechanism, model_name, copied):
    model, optimizer = build(model_name, "adamw")
    handle = bouton.attach(model, optimizer, [mechanism], seed=2)
    train(model, optimizer, steps=2)
    other_model, other_optimizer, other_handle = copied((model, optimizer, handle))
    ahead = train(other_model, other_optimizer, steps=4, start=2)
    assert same(train(model, optimizer, steps=4, start=2), ahead)
    other_handle.detach()
    assert handle.stats()
    train(model, optimizer, steps=1)


@over_examples
def test_averaged_copies_follow(mechanism):
    model, optimizer = build("residual")
    bouton.attach(model, optimizer, [mechanism])
    average = AveragedModel(model)
    for step in range(3):
        train(model, optimizer, steps=1, start=step)
        average.update_parameters(model)
    weights = average.module.state_dict()
    train(model, optimizer, steps=2)
    assert same(weights, average.module.state_dict())
    assert average.eval()(torch.randn(2, 36)).isfinite().all()
