import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bouton.stored import prune_mask, read_weight, stored_name, stored_parameter


def old(function, layer, *names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(layer, *names)


COMPUTED = {
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_orig"),
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original1"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original"),
    "orthogonal": (parametrizations.orthogonal, "parametrizations.weight.original"),
    "old weight_norm": (lambda layer: old(nn.utils.weight_norm, layer), "weight_v"),
    "old spectral_norm": (lambda layer: old(nn.utils.spectral_norm, layer), "weight_orig"),
}
over = pytest.mark.parametrize(("change", "name"), COMPUTED.values(), ids=COMPUTED)


@pytest.mark.parametrize("sizes", [(4, 3), (1, 3), (3, 1), (1, 1)], ids=str)
@over
def test_the_parameter_of_the_weights_shape(change, name, sizes):
    layer = change(nn.Linear(*sizes))
    assert stored_name(layer, "weight") == name
    parameter = stored_parameter(layer, name)
    assert isinstance(parameter, nn.Parameter) and parameter.shape == (sizes[1], sizes[0])
    assert any(parameter is other for other in layer.parameters())


@over
def test_reading_gives_the_weight_in_use_and_leaves_all_as_it_is(change, name):
    torch.manual_seed(0)
    layer = change(nn.Linear(4, 3))
    for training in (True, False):
        layer.train(training)
        layer(torch.ones(1, 4))
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        found = read_weight(layer, "weight")
        assert not found.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
        assert all(module.training == training for module in layer.modules())
        with torch.no_grad():
            torch.testing.assert_close(layer.eval()(torch.eye(4)) - layer.bias, found.T)


def test_a_plain_weight_is_its_own():
    layer = nn.Linear(4, 3)
    assert stored_name(layer, "weight") == "weight"
    assert stored_parameter(layer, "weight") is layer.weight
    assert read_weight(layer, "weight").data_ptr() == layer.weight.data_ptr()
    assert prune_mask(layer, "weight") is None


def test_no_such_weight():
    layer = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)  # without a packed weight
    assert stored_name(layer, "in_proj_weight") is None
    assert stored_name(layer, "something") is None
    assert stored_parameter(layer, "parametrizations.weight.original") is None


def test_what_was_undone_is_gone():
    layer = prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)
    assert torch.equal(prune_mask(layer, "weight"), layer.weight_mask)
    prune.remove(layer, "weight")
    assert stored_parameter(layer, "weight_orig") is None and prune_mask(layer, "weight") is None
    assert stored_name(layer, "weight") == "weight"
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    parametrize.remove_parametrizations(layer, "weight")
    assert stored_parameter(layer, "parametrizations.weight.original1") is None


def test_reading_while_weights_are_cached_keeps_the_cache_empty():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    with parametrize.cached():
        read_weight(layer, "weight")
        layer(torch.ones(1, 4)).sum().backward()
    assert layer.parametrizations.weight.original1.grad.any()


def test_reading_fails_without_leaving_the_layer_in_evaluation():
    class Failing(nn.Module):
        fails = False

        def forward(self, weight):
            if self.fails:
                raise RuntimeError("no weight today")
            return weight

    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Failing())
    layer.parametrizations.weight[0].fails = True
    with pytest.raises(RuntimeError, match="no weight today"):
        read_weight(layer, "weight")
    assert all(module.training for module in layer.modules())
