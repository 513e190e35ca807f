import itertools

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import GRAPES, layers_of, net, trained
from torch import nn

import bouton

CASES = [
    f"{rule}-{optimizer}-{activation}-un"
    for rule in ("FA", "FAgrapes", "DFA", "DFAgrapes")
    for optimizer in ("SGD", "mom", "Adam")
    for activation in ("relu", "tanh")
]


def test_every_published_case_is_known():
    assert set(CASES) == {case for key in GRAPES() if not (case := key.split("/")[0]).startswith("BP")}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_published_code(case):
    kind = "dfa" if case.startswith("DFA") else "fa"
    # the layers of the net are modules 0, 2 and 4; published feedback is [to, from]
    init = {str(2 * layer): GRAPES()[f"{case}/B/{layer}"].T for layer in (1, 2)}
    mechanisms = [bouton.FeedbackAlignment(kind=kind, init=init)]
    if "grapes" in case:
        mode = "presynaptic" if kind == "dfa" else "propagated"
        mechanisms.append(bouton.Grapes(mode=mode, clip=None))
    for done, model in enumerate(trained(case, mechanisms), 1):
        for layer, expected in zip(model[::2], layers_of(case, done), strict=True):
            assert (layer.weight - expected).abs().max() < 1e-12


@settings(deadline=None)
@given(
    kind=st.sampled_from(["fa", "dfa", "ifa"]),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5),
    activation=st.sampled_from(["relu", "tanh"]),
    modulated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_equal_the_oracle(kind, sizes, activation, modulated, seed):
    torch.manual_seed(seed)
    weights = [torch.randn(b, a, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
    x, y = torch.randn(3, sizes[0], dtype=torch.float64), torch.randint(sizes[-1], (3,))
    feedback = [
        torch.randn_like(w) if kind == "fa" else torch.randn(sizes[-1], w.shape[1]) for w in weights
    ]
    model = net(weights, activation)
    init = {str(2 * layer): value for layer, value in enumerate(feedback)}
    mechanisms = [bouton.FeedbackAlignment(kind=kind, init=init)]
    bouton.attach(model, None, mechanisms + [bouton.Grapes()] * (modulated and len(weights) > 1))
    nn.functional.cross_entropy(model(x), y).backward()
    expected = oracles.feedback_gradients(weights, feedback, x, y, activation, kind, modulated)
    for layer, gradient in zip(model[::2], expected, strict=True):
        torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-9, atol=1e-12)


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), (5, 2, 6)),
    "conv2d": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (5, 2, 6, 5)),
    "circular": (nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), (5, 2, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), (5, 2, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, groups=2), (5, 4, 3, 3)),
    "unbatched": (nn.Conv2d(2, 3, 3), (2, 4, 4)),
    "unbatched dense": (nn.Linear(4, 3), (4,)),
    "sequence": (nn.Linear(4, 3), (5, 6, 4)),
}


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_errors_travel_through_the_feedback_as_through_a_weight(layer, shape):
    """With B in the place of W, the error at the input is what autograd gives for a layer of weight B."""
    layer = layer.double()
    group = bouton.find_groups(layer)[0]
    feedback = torch.randn_like(group.layout.nodes(layer.weight))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    handle = bouton.attach(layer, None, [bouton.FeedbackAlignment(init={"": feedback})])
    output = layer(x)
    error = torch.randn_like(output)
    sent, own = torch.autograd.grad(output, [x, layer.weight], error)
    angle = handle.stats()["FeedbackAlignment"]["weight"]["angle"]
    handle.detach()
    through_w, same = torch.autograd.grad(layer(x), [x, layer.weight], error)
    torch.testing.assert_close(own, same)
    with torch.no_grad():
        layer.weight.copy_(group.layout.nodes(feedback))
    (expected,) = torch.autograd.grad(layer(x), x, error)
    torch.testing.assert_close(sent, expected)
    batched = sent.ndim > -group.layout.output_axis
    pairs = zip(sent, through_w, strict=True) if batched else [(sent, through_w)]
    angles = [oracles.angle(a.flatten(), b.flatten()) for a, b in pairs]
    assert angle == pytest.approx(sum(angles) / len(angles))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8 * 2 * 2, 3)

    def forward(self, x):
        return self.head(torch.relu_(self.second(torch.relu_(self.first(x)))).flatten(1))


@pytest.mark.parametrize("kind", ["fa", "dfa", "ifa"])
@pytest.mark.parametrize("modulated", [False, True])
def test_convolutional_nets_learn(kind, modulated):
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    mechanisms = [bouton.FeedbackAlignment(kind=kind), *([bouton.Grapes()] if modulated else [])]
    handle = bouton.attach(model, optimizer, mechanisms)
    y = torch.arange(60) % 3
    x = 0.5 * torch.randn(60, 1, 8, 8) + torch.randn(3, 1, 8, 8)[y]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    angles = [numbers["angle"] for numbers in handle.stats()["FeedbackAlignment"].values() if numbers]
    assert len(angles) == 2  # nothing goes below the first layer
    assert all(0 <= angle <= 180 for angle in angles)


def test_feedback_and_weights_align():
    """Lillicrap et al.: the angle falls well below 90 degrees while a net learns by feedback alignment."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [bouton.FeedbackAlignment()])
    target = torch.randn(20, 5)
    angles = []
    for _ in range(400):
        x = torch.randn(64, 20)
        optimizer.zero_grad()
        (model(x) - x @ target / 5).square().mean().backward()
        optimizer.step()
        angles.append(handle.stats()["FeedbackAlignment"]["2.weight"]["angle"])
    assert angles[0] > 75
    assert angles[-1] < angles[0] - 15


def test_own_weights_as_feedback_are_at_no_angle():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    handle = bouton.attach(model, None, [bouton.FeedbackAlignment(init="weights")])
    model(torch.randn(4, 6)).square().sum().backward()
    assert handle.stats()["FeedbackAlignment"]["2.weight"]["angle"] < 0.1


def test_init_functions_are_asked_with_path_shape_and_generator():
    asked = []

    def init(path, shape, generator):
        asked.append((path, shape))
        return torch.randn(shape, generator=generator)

    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    bouton.attach(model, None, [bouton.FeedbackAlignment(kind="dfa", init=init)])
    for _ in range(2):
        model(torch.randn(4, 6)).square().sum().backward()
    assert sorted(asked) == [("2", (3, 5)), ("4", (3, 4))]  # once each, and none below the first layer


def test_mistakes_are_refused():
    for arguments, match in [
        ({"kind": "fb"}, "use 'fa', 'dfa' or 'ifa'"),
        ({"init": "zeros"}, "use 'uniform', 'weights', a function"),
        ({"kind": "dfa", "init": "weights"}, "the shape of kind='fa' only"),
    ]:
        with pytest.raises(ValueError, match=match):
            bouton.FeedbackAlignment(**arguments)

    def backward(model, x, **arguments):
        bouton.attach(model, None, [bouton.FeedbackAlignment(**arguments)])
        model(x).sum().backward()

    def mlp():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    with pytest.raises(ValueError, match=r"gave \(3, 4\) for '2'; expected a tensor of shape \(3, 5\)"):
        backward(mlp(), torch.randn(2, 6), init={"2": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"gave NoneType for '2'"):
        backward(mlp(), torch.randn(2, 6), init={})
    with pytest.raises(ValueError, match=r"one error of the read-out for each.*found 0 at 0\.weight"):
        backward(mlp(), torch.randn(2, 6, requires_grad=True), kind="dfa", where="0")
    pooled = nn.Sequential(nn.Linear(6, 8), nn.MaxPool1d(2), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"\(2, 8\) does not fit the input \(2, 4\) of 2.weight"):
        backward(pooled, torch.randn(2, 6), kind="ifa")
    shared = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="called twice in one forward pass"):
        backward(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 2)), torch.randn(2, 6), kind="ifa")


def test_each_time_step_gets_its_own_error():
    hidden, head = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
    feedback = torch.randn(2, 3, dtype=torch.float64)
    mechanism = bouton.FeedbackAlignment(kind="dfa", init={"1": feedback})
    bouton.attach(nn.ModuleList([hidden, head]), None, [mechanism])
    for _ in range(2):
        x, errors = (torch.randn(3, 5, size, dtype=torch.float64) for size in (4, 2))
        hidden.zero_grad()
        torch.stack([head(torch.tanh(hidden(step))) for step in x]).backward(errors)
        expected = torch.zeros_like(hidden.weight)
        for step, error in zip(x, errors, strict=True):
            slope = 1 - torch.tanh(hidden(step).detach()) ** 2
            expected += ((error @ feedback) * slope).T @ step
        torch.testing.assert_close(hidden.weight.grad, expected)


def test_one_error_serves_all_time_steps_before_it():
    """A cell of dense layers, and a read-out of its last state."""
    inner, head = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()
    feedback = torch.randn(2, 4, dtype=torch.float64)
    mechanism = bouton.FeedbackAlignment(kind="dfa", init=lambda *_: feedback)
    bouton.attach(nn.ModuleList([inner, head]), None, [mechanism])
    states = [torch.randn(5, 4, dtype=torch.float64)]
    for _ in range(3):
        states.append(torch.tanh(inner(states[-1])))
    error = torch.randn(5, 2, dtype=torch.float64)
    head(states[-1]).backward(error)
    expected = torch.zeros_like(inner.weight)
    for before, after in itertools.pairwise(states):
        expected += ((error @ feedback) * (1 - after**2)).T @ before
    torch.testing.assert_close(inner.weight.grad, expected)


def test_a_read_out_that_runs_ahead_is_refused():
    """Three time steps of the hidden layers, and then three of the read-out: whose error is whose?"""
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)])
    bouton.attach(model, None, [bouton.FeedbackAlignment(kind="dfa")])
    signals = [torch.tanh(model[0](torch.randn(5, 4))) for _ in range(3)]
    signals = [torch.tanh(model[1](signal)) for signal in signals]
    outputs = torch.stack([model[2](signal) for signal in signals])
    with pytest.raises(ValueError, match=r"one error of the read-out for each.*found 3 at 1\.weight"):
        outputs.sum().backward()


def test_feedback_alignment_may_leave_the_read_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    handle = bouton.attach(model, None, [bouton.FeedbackAlignment(where=["0", "2"])])
    model(torch.randn(5, 4)).sum().backward()
    assert "angle" in handle.stats()["FeedbackAlignment"]["2.weight"]


def test_pausing_is_back_propagation():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    x = torch.randn(4, 6)

    def gradient():
        return torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]

    plain = gradient()
    handle = bouton.attach(model, None, [bouton.FeedbackAlignment()])
    assert not torch.allclose(gradient(), plain)
    with handle.paused():
        assert torch.equal(gradient(), plain)
    handle.detach()
    assert torch.equal(gradient(), plain)
