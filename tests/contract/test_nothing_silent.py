"""Promise 8: no match is an error, and what is skipped is named with its reason."""

import pytest
import torch
from subjects import build, over_examples, over_models
from torch import nn

import bouton


@over_models
@over_examples
def test_every_weight_is_in_the_report_of_every_mechanism(mechanism, model_name):
    model, optimizer = build(model_name)
    report = bouton.attach(model, optimizer, [mechanism]).report()
    groups = bouton.find_groups(model)
    assert [row.weight for row in report.rows] == [group.name for group in groups]
    for row, group in zip(report.rows, groups, strict=True):
        assert row.weight in str(report)
        if row.left_because:
            assert row.left_because in str(report)
        if group.frozen:
            assert "frozen" in row.left_because
    modules = dict(model.named_modules())
    taken = [group for row, group in zip(report.rows, groups, strict=True) if row.left_because is None]
    marked = {path for path, module in modules.items() if "_bouton" in module.__dict__}
    assert marked == {path for group in taken for path in group.paths if path in modules}


@over_examples
def test_a_model_without_weights_is_refused(mechanism):
    with pytest.raises(ValueError, match=r"bouton looks for Linear.*the model has: 1 Sequential, 1 ReLU"):
        bouton.attach(nn.Sequential(nn.ReLU()), None, [mechanism])


@over_examples
def test_a_frozen_model_is_refused(mechanism):
    model, optimizer = build("mlp")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"found no weight to act on.*frozen"):
        bouton.attach(model, optimizer, [mechanism])


@over_examples
def test_twice_on_one_weight_is_refused(mechanism):
    model, optimizer = build("mlp")
    with pytest.raises(ValueError, match=rf"{type(mechanism).__name__} takes [02]\.weight 2 times"):
        bouton.attach(model, optimizer, [mechanism, mechanism])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@over_examples
def test_layers_and_batches_without_elements_are_no_accident(mechanism):
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [mechanism])
    for batch in (3, 0, 1):
        optimizer.zero_grad()
        model(torch.ones(batch, 4)).sum().backward()
        for _ in range(3):
            optimizer.step()
    handle.stats()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
