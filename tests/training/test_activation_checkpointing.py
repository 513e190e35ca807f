"""torch.utils.checkpoint: layers run a second time while the backward pass needs what they made."""

import pytest
import torch
from spelled_out import adamw, attached, batch, train
from subjects import EXAMPLES, over_examples
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import bouton

over_modes = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
IFA = bouton.FeedbackAlignment(kind="ifa")


def whole(model, x, reentrant):
    return checkpoint(model, x, use_reentrant=reentrant)


def hidden_layers(model, x, reentrant):
    return model[4](checkpoint(model[:4], x, use_reentrant=reentrant))


def segments(model, x, reentrant):
    return checkpoint_sequential(model, 2, x, use_reentrant=reentrant)


def within_the_loss(model, x, reentrant):
    return checkpoint(lambda x: model(x).log_softmax(1), x, use_reentrant=reentrant)


WAYS = [whole, hidden_layers, segments, within_the_loss]


def run(mechanism, way=None, reentrant=False, early_stop=True):
    model, optimizer, handle = attached(mechanism, adamw)
    relays = getattr(mechanism, "kind", None) == "ifa"
    for step in range(3):
        x, y = batch(step)
        # the first layer of a reentrant checkpoint learns only if its input takes a gradient
        x.requires_grad_(not relays)
        optimizer.zero_grad()
        with set_checkpoint_early_stop(early_stop):
            F.cross_entropy(model(x) if way is None else way(model, x, reentrant), y).backward()
        optimizer.step()
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    return gradients, list(model.parameters()), handle


def assert_as_without(mechanism, way, **options):
    for found, expected in zip(run(mechanism, way, **options)[:2], run(mechanism)[:2], strict=True):
        for ours, plain in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


@over_modes
@pytest.mark.parametrize("way", WAYS)
@over_examples
def test_gradients_and_weights_are_those_without(mechanism, way, reentrant):
    assert_as_without(mechanism, way, reentrant=reentrant)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["fa", "dfa", "ifa"])
def test_feedback_where_all_is_run_again(kind, way):
    """Without an early stop, the read-out runs again after its error is known."""
    assert_as_without(bouton.FeedbackAlignment(kind=kind), way, early_stop=False)


@pytest.mark.parametrize("way", WAYS)
def test_errors_that_are_passed_forward_need_a_graph(way):
    assert_as_without(IFA, way, reentrant=False)


def test_errors_that_are_passed_forward_find_none_in_a_reentrant_checkpoint():
    model, _, _ = attached(IFA)
    x, y = batch(0)
    hidden = torch.tanh(model[0](x))
    rest = checkpoint(model[2:4], hidden, use_reentrant=True)
    with pytest.raises(ValueError, match=r"has none for the input of 2\.weight.*use_reentrant=False"):
        F.cross_entropy(model[4](rest), y).backward()


def counts(handle):
    return [claim["tensors"][0]["active"] for claim in handle.state_dict()["claims"].values()]


@over_modes
@pytest.mark.parametrize("way", WAYS)
def test_counts_of_a_layer_are_all_doubled_or_none(way, reentrant):
    """So that shares of the layer's mean, which is what rates are made of, stay as they are."""
    activity = EXAMPLES["PlasticityDiversity-8"]
    assert activity.distribution == "activity"
    found, expected = counts(run(activity, way, reentrant)[2]), counts(run(activity)[2])
    times = {tuple((ours / plain).unique().tolist()) for ours, plain in zip(found, expected, strict=True)}
    assert times <= {(1.0,), (2.0,)} and (2.0,) in times


@pytest.mark.parametrize("kind", ["fa", "dfa"])
def test_a_step_after_one_that_was_not_checkpointed(kind):
    """Errors of one pass are none of the next, however each was run."""
    runs = []
    for way in (None, whole):
        model, optimizer, _ = attached(bouton.FeedbackAlignment(kind=kind))
        train(model, optimizer, 1)
        x, y = batch(1)
        with torch.no_grad():
            model(x)
        optimizer.zero_grad()
        logits = model(x) if way is None else way(model, x.requires_grad_(), True)
        F.cross_entropy(logits, y).backward()
        optimizer.step()
        train(model, optimizer, 1, start=2)
        runs.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-14)
