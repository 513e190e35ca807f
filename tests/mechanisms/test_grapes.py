import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import GRAPES, layers_of, net, trained
from torch import nn

import bouton
from bouton.mechanisms.grapes import responsibility

SERVED = [
    f"{rule}-{optimizer}-{activation}-{clip}"
    for rule, clips in (("BP", ["un"]), ("BPgrapes", ["un", "ue"]))
    for optimizer in ("SGD", "mom", "Adam")
    for activation in ("relu", "tanh")
    for clip in clips
]


def test_every_published_case_is_known():
    cases = {key.split("/")[0] for key in GRAPES()}
    assert set(SERVED) == {case for case in cases if case.startswith("BP")}


@pytest.mark.parametrize("case", SERVED)
def test_agrees_with_the_published_code(case):
    rule, *_, clip = case.split("-")
    grapes = [bouton.Grapes(clip=(1.0, 2.0) if clip == "un" else None)]
    for done, model in enumerate(trained(case, grapes if rule == "BPgrapes" else []), 1):
        for layer, expected in zip(model[::2], layers_of(case, done), strict=True):
            assert (layer.weight - expected).abs().max() < 1e-12


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3)),
    clip=st.sampled_from([None, (1.0, 2.0), (0.5, 1.5)]),
    normalize=st.booleans(),
    zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_factor_equals_the_oracle(shape, clip, normalize, zero, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight = weight * (not zero)
    expected = torch.tensor(oracles.responsibility(weight, clip, normalize), dtype=torch.float64)
    torch.testing.assert_close(responsibility(weight, clip, normalize), expected)


@pytest.mark.parametrize("mode", ["propagated", "local"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_equal_the_oracle(mode, activation):
    weights = layers_of("BP-SGD-relu-un", 0)
    x, y = GRAPES()["BP-SGD-relu-un/x"], GRAPES()["BP-SGD-relu-un/y"]
    model = net(weights, activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    bouton.attach(model, optimizer, [bouton.Grapes(mode=mode)])
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    expected = oracles.grapes_gradients(weights, x, y, activation, local=mode == "local")
    for layer, weight, gradient in zip(model[::2], weights, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight - gradient, rtol=0, atol=1e-13)


def test_biases_see_the_propagated_factor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(8, 5), torch.randint(2, (8,))
    nn.functional.cross_entropy(model(x), y).backward()
    plain = model[0].bias.grad.clone()
    model.zero_grad()
    bouton.attach(model, None, [bouton.Grapes()])
    nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(model[0].bias.grad, plain * responsibility(model[0].weight.detach()))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Conv1d(4, 6, 2),
        nn.ConvTranspose3d(4, 6, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_channel_is_a_node(layer):
    kernel = layer.kernel_size
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 4, *[5] * len(kernel))
    model(x)
    modulated = torch.autograd.grad(model(x).square().sum(), layer.bias)[0]
    bouton.attach(model, None, [bouton.Grapes(clip=None)])
    plain, modulated = modulated, torch.autograd.grad(model(x).square().sum(), layer.bias)[0]
    # the synapses of output channel o, found by asking which weights its output depends on
    totals = []
    for channel in range(6):
        with torch.no_grad():
            inputs = torch.ones_like(x)
        gradient = torch.autograd.grad(layer(inputs)[:, channel].sum(), layer.weight)[0]
        totals.append(layer.weight.detach()[gradient != 0].abs().sum())
    expected = 2 * torch.stack(totals) / max(totals)
    torch.testing.assert_close(modulated / plain, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", [{"mode": "both"}, {"clip": (2, 1)}, {"clip": (1,)}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"Grapes\(" + next(iter(wrong))):
        bouton.Grapes(**wrong)


@pytest.mark.parametrize("cell", [nn.RNNCell(4, 5), nn.LSTMCell(4, 5), nn.GRUCell(4, 5)], ids=str)
def test_a_cells_node_sums_over_its_inputs_and_its_layers_own_output_in_all_gates(cell):
    def bias_gradient(weights):
        output = cell(x)
        hidden = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad((weights * hidden).sum(), cell.bias_ih)[0]

    x = torch.randn(3, 4)
    totals = torch.zeros(5)
    for weight in (cell.weight_ih, cell.weight_hh):
        for gate in weight.detach().split(5):
            totals += gate.abs().sum(1)
    expected = bias_gradient(2 * totals / totals.max())  # the error at the output, modulated by hand
    bouton.attach(cell, None, [bouton.Grapes(clip=None)], readout=())
    torch.testing.assert_close(bias_gradient(torch.ones(5)), expected)


def test_the_local_form_of_a_cell_sees_both_weights():
    cell = nn.RNNCell(4, 5)
    optimizer = torch.optim.SGD(cell.parameters(), lr=1.0)
    bouton.attach(cell, optimizer, [bouton.Grapes(mode="local", clip=None)], readout=())
    before = {name: value.detach().clone() for name, value in cell.named_parameters()}
    total = before["weight_ih"].abs().sum(1) + before["weight_hh"].abs().sum(1)
    cell(torch.randn(3, 4), torch.randn(3, 5)).square().sum().backward()
    optimizer.step()
    for name in (
        "weight_ih",
        "weight_hh",
    ):  # the second weight's factor is not of the first one's new value
        expected = before[name] - 2 * total[:, None] / total.max() * cell.get_parameter(name).grad
        torch.testing.assert_close(cell.get_parameter(name).detach(), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_presynaptic_factor_is_of_the_inputs_column(normalize):
    model = nn.Sequential(
        nn.Conv1d(2, 4, 1), nn.ReLU(), nn.ConvTranspose1d(4, 3, 2), nn.ReLU(), nn.Conv1d(3, 2, 1)
    )
    x, weight = torch.randn(3, 2, 5), model[2].weight
    plain = torch.autograd.grad(model(x).square().sum(), weight)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = bouton.Grapes(mode="presynaptic", clip=None, normalize=normalize)
    report = bouton.attach(model, optimizer, [mechanism]).report()
    assert [row.left_because is None for row in report.rows] == [False, True, False]
    total = weight.detach().abs().sum((1, 2))  # stored [in, node, kernel]
    factor = 2 * total / total.max()
    factor = factor / factor.mean() if normalize else factor
    found = torch.autograd.grad(model(x).square().sum(), weight)[0]
    torch.testing.assert_close(found, factor[:, None, None] * plain)


def test_the_presynaptic_form_leaves_grouped_convolutions_and_tables():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1, groups=2), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = str(bouton.attach(model, optimizer, [bouton.Grapes(mode="presynaptic")]).report())
    assert "1.weight [4x2x1]  left: a grouped convolution's nodes do not share" in report
    for mode in ("local", "presynaptic"):
        model = nn.ModuleList([nn.Linear(4, 4), nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        report = str(bouton.attach(model, optimizer, [bouton.Grapes(mode=mode, where="*")]).report())
        assert "1.weight [5x4]  left: " in report
