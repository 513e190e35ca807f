from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import bouton
from bouton.lab.data import digits
from bouton.lab.dataset import Dataset
from bouton.lab.models import MODELS, lstm, resnet9, rnn, snn, transformer
from bouton.lab.models.attention import Transformer
from bouton.lab.models.residual import Residual
from bouton.lab.models.spiking import DECAY, STEPS

IMAGES, SIGNALS, SEQUENCES, FLAT, COLOURED = (1, 28, 28), (1, 40), (28, 28), (5,), (3, 32, 32)
TINY, VOLUMES = (1, 7, 9), (2, 3, 4, 5)
SHAPES = [IMAGES, SIGNALS, SEQUENCES, FLAT, COLOURED, TINY, VOLUMES]
REFUSES = {
    "mlp": [],
    "cnn": [FLAT, VOLUMES],
    "resnet9": [SIGNALS, SEQUENCES, FLAT, TINY, VOLUMES],
    "rnn": [FLAT, COLOURED, VOLUMES],
    "lstm": [FLAT, COLOURED, VOLUMES],
    "transformer": [FLAT, COLOURED, VOLUMES],
    "snn": [],
}


def toy(shape: tuple[int, ...]) -> Dataset:
    """Six random samples of three classes."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    return Dataset("toy", torch.randn(6, *shape), y, torch.randn(6, *shape), y, classes=3)


@pytest.mark.parametrize(
    ("name", "shape"), [(n, shape) for n in MODELS for shape in SHAPES if shape not in REFUSES[n]]
)
def test_each_parameter_of_each_model_learns(name, shape):
    dataset = toy(shape)
    model = MODELS[name](dataset)
    output = model(dataset.x_train)
    assert output.shape == (6, 3)
    cross_entropy(output, dataset.y_train).backward()
    for parameter_name, parameter in model.named_parameters():
        # all the same for each key: softmax does not see it
        if not parameter_name.endswith("in_proj_bias"):
            assert parameter.grad.count_nonzero() > 0, parameter_name


@pytest.mark.parametrize(("name", "shape"), [(n, shape) for n in MODELS for shape in REFUSES[n]])
def test_a_shape_that_does_not_fit_is_refused_with_what_does(name, shape):
    with pytest.raises(ValueError, match=f"the model {name} needs .* such as .*mnist.* toy has .*--model "):
        MODELS[name](toy(shape))


@pytest.mark.parametrize("name", ["rnn", "lstm", "transformer"])
def test_an_image_is_the_sequence_of_its_rows(name):
    image = toy(IMAGES)
    rows = Dataset("rows", image.x_train[:, 0], image.y_train, image.x_test[:, 0], image.y_test, 3)
    torch.manual_seed(1)
    of_images = MODELS[name](image)
    torch.manual_seed(1)
    of_rows = MODELS[name](rows)
    assert torch.equal(of_images(image.x_train), of_rows(rows.x_train))


@pytest.mark.parametrize(("build", "fused"), [(rnn, nn.RNN), (lstm, nn.LSTM)])
@given(steps=st.integers(2, 6), features=st.integers(1, 5), samples=st.integers(1, 6))
def test_the_stepped_cells_equal_torchs_recurrent_layers(build, fused, steps, features, samples):
    dataset = toy((steps, features))
    model = build(dataset)
    layer = fused(features, 128, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    expected = model.readout(layer(dataset.x_train[:samples])[0][:, -1])
    assert torch.allclose(model(dataset.x_train[:samples]), expected, atol=1e-6)


def test_a_residual_block_adds_to_its_input():
    block, x = Residual(4), torch.randn(2, 4, 5, 5)
    change = block.second(block.first(x))
    assert torch.equal(block(x), x + change) and change.abs().max() > 0
    assert sum(isinstance(module, Residual) for module in resnet9(toy(IMAGES)).modules()) == 2


def stepped_snn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The spiking net's equations, all layers together, step by step; `x` is [sample, time, feature]."""
    layers = [layer.synapses for layer in (*model.hidden, model.readout)]
    potentials = [torch.zeros(len(x), layer.out_features) for layer in layers]
    total = torch.zeros(len(x), layers[-1].out_features)
    for signal in x.unbind(1):
        for number, layer in enumerate(layers):
            fired = (potentials[number] > 1).float() if layer is not layers[-1] else 0
            potentials[number] = DECAY * potentials[number] + layer(signal) - fired
            signal = (potentials[number] > 1).float()
        total += potentials[-1]
    return total / x.shape[1]


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), samples=st.integers(1, 6))
def test_the_spiking_net_follows_its_equations(shape, samples):
    dataset = toy(shape)
    model = snn(dataset)
    x = 3 * dataset.x_train[:samples]  # so that many neurons fire
    sequence = len(shape) == 2 and shape[0] > 1
    steps = x if sequence else x.flatten(1).unsqueeze(1).repeat(1, STEPS, 1)
    with torch.no_grad():
        assert torch.allclose(model(x), stepped_snn(model, steps), atol=1e-5)


def test_the_spiking_net_learns():
    dataset = digits()
    model = snn(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(4):
        for batch in torch.randperm(len(dataset.y_train)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(dataset.x_train[batch]), dataset.y_train[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(dataset.x_test).argmax(1) == dataset.y_test).float().mean()
    assert right > 0.8  # chance is 0.1


def test_a_spiking_net_keeps_no_graph_and_is_kept_by_no_list():
    import snntorch

    known = len(snntorch.SpikingNeuron.instances)
    dataset = toy(SEQUENCES)
    model = snn(dataset)
    assert len(snntorch.SpikingNeuron.instances) == known
    expected = model(dataset.x_train)
    assert torch.equal(copy.deepcopy(model)(dataset.x_train), expected)
    assert torch.equal(model(dataset.x_train), expected)  # nothing is left over from the call before


def test_the_transformers_layers_start_apart_and_drop_nothing():
    dataset = toy(SEQUENCES)
    model = transformer(dataset)
    assert isinstance(model, Transformer)
    first, second = (layer.linear1.weight for layer in model.encoder)
    assert not torch.equal(first, second)
    assert torch.equal(model(dataset.x_train), model(dataset.x_train))


def test_a_transformer_with_a_wiring_computes_the_same_in_training_and_in_evaluation():
    """torch has a fused path for evaluation, which would not see hooks."""
    dataset = toy(SEQUENCES)
    model = transformer(dataset)
    plain = model(dataset.x_train)
    bouton.attach(model, None, [bouton.MultiSynapse(where="encoder.*.linear1")])
    trained = model(dataset.x_train)
    assert not torch.allclose(trained, plain, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(model.eval()(dataset.x_train), trained, atol=1e-5)
