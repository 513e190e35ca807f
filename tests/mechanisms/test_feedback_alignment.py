import copy
import gc
import itertools
import pickle
import weakref

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import GRAPES, layers_of, net, trained
from torch import nn

import bouton
from bouton.passes import feedback

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
    "inputs that no node reads": (
        nn.Conv2d(2, 4, 3, stride=(2, 3), padding="valid", dilation=(1, 2), groups=2),
        (5, 2, 8, 9),
    ),
    "circular": (nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), (5, 2, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), (5, 2, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, groups=2), (5, 4, 3, 3)),
    "transposed and dilated": (nn.ConvTranspose1d(2, 3, 3, dilation=2, padding=1), (5, 2, 4)),
    "unbatched": (nn.Conv2d(2, 3, 3), (2, 4, 4)),
    "unbatched dense": (nn.Linear(4, 3), (4,)),
    "unbatched and wide": (nn.Linear(40, 36), (40,)),
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
    with pytest.raises(ValueError, match="needs the error of the read-out, and does not take it"):
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


def test_of_several_read_outs_the_first_that_is_taken_leads():
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    feedback = {"1": torch.randn(2, 3), "3": torch.randn(2, 3)}
    direct = bouton.FeedbackAlignment(kind="dfa", init=feedback, where=["0", "1", "3"])
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity(), direct], readout=["2", "3"])
    below = torch.tanh(model[0](torch.randn(5, 4))).detach().requires_grad_()
    signal = torch.tanh(model[1](below))
    (model[2](signal).detach().sum() + model[3](signal).sum()).backward()
    torch.testing.assert_close(below.grad, torch.ones(5, 2) @ feedback["1"])


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


KINDS = pytest.mark.parametrize("kind", ["fa", "dfa", "ifa"])


def mlp(width=8):
    """The same net at every call, with a hidden layer that is neither the first nor the last."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 3))


def aligned(model, kind, *others, **arguments):
    return bouton.attach(model, None, [bouton.FeedbackAlignment(kind=kind, **arguments), *others], seed=1)


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def check_same(found, expected, **tolerance):
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, **tolerance)


class Marked(torch.autograd.Function):
    """The identity; the graph holds ``held``."""

    @staticmethod
    def forward(ctx, x, held):
        ctx.held = held
        return x.clone()

    @staticmethod
    def backward(ctx, error):
        return error, None


class Mark(nn.Module):
    def forward(self, x):
        held = nn.Module()
        self.seen = weakref.ref(held)
        return Marked.apply(x, held)


@KINDS
@pytest.mark.parametrize("backward", [True, False])
def test_a_graph_is_freed_with_its_loss(kind, backward):
    model = nn.Sequential(nn.Linear(6, 5), Mark(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    aligned(model, kind)
    gc.disable()  # what is freed late holds memory of the device meanwhile
    try:
        loss = model(torch.randn(4, 6)).sum()
        if backward:
            loss.backward()
        assert model[1].seen() is not None
        del loss
        assert model[1].seen() is None
    finally:
        gc.enable()


@KINDS
def test_a_graph_that_was_built_before_a_pause_or_a_detach_is_plain(kind):
    model, x = mlp(), torch.randn(4, 6)
    plain = gradients(model, x)
    handle = aligned(model, kind)
    first, second, third = (model(x).square().sum() for _ in range(3))
    parameters = list(model.parameters())
    with handle.paused():
        check_same(torch.autograd.grad(first, parameters), plain)
    assert not torch.allclose(torch.autograd.grad(second, parameters)[0], plain[0])
    handle.detach()
    check_same(torch.autograd.grad(third, parameters), plain)


@KINDS
def test_layers_frozen_since_attach_pass_errors_on(kind):
    model, x = mlp(), torch.randn(4, 6)
    aligned(model, kind)
    expected = gradients(model, x)
    model[2].requires_grad_(False)
    check_same(gradients(model, x), expected[:2] + expected[4:])


@KINDS
def test_passes_without_a_graph_leave_no_trace(kind):
    model, x = mlp(), torch.randn(4, 6)
    aligned(model, kind)
    expected = gradients(model, x)
    with torch.no_grad():
        model(x.clone().requires_grad_())
    with torch.inference_mode():
        model(x)
    model(x)  # and one whose graph is not used
    check_same(gradients(model, x), expected)


@KINDS
def test_a_model_is_copied_after_a_forward_pass_that_failed(kind):
    model, x = mlp(), torch.randn(4, 6)
    aligned(model, kind)
    expected = gradients(model, x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model[2](model[0](x)[:, :5])
    copied = copy.deepcopy(model)
    if kind == "ifa":
        model = copied  # the original waits for its read-out
    check_same(gradients(copied, x), expected)
    check_same(gradients(model, x), expected)


@KINDS
def test_a_saved_model_holds_no_errors_of_its_training_data(kind):
    model = mlp()
    handle = aligned(model, kind)
    gradients(model, torch.randn(4, 6))
    size = len(pickle.dumps(model))
    gradients(model, torch.randn(32, 6))
    assert len(pickle.dumps(model)) == size
    assert handle.stats()["FeedbackAlignment"]["4.weight"]["angle"] > 1


@KINDS
def test_precision_may_change_between_steps(kind):
    model, x = mlp(), torch.randn(4, 6)
    handle = aligned(model, kind)
    expected = gradients(model, x)
    check_same(gradients(model.double(), x.double()), [value.double() for value in expected])
    assert handle.stats()["FeedbackAlignment"]["4.weight"]["angle"] > 1
    model, x = ConvNet(), torch.randn(4, 1, 8, 8)
    aligned(model, kind)
    expected = gradients(model, x)
    check_same(gradients(model.double(), x.double()), [value.double() for value in expected])


@KINDS
@pytest.mark.parametrize("within", [True, False])
def test_autocast(kind, within):
    model, x = mlp(), torch.randn(4, 6)
    handle = aligned(model, kind)
    expected = gradients(model, x)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).square().sum()
        if within:
            loss.backward()
    if not within:
        loss.backward()
    largest = max(value.abs().max() for value in expected)
    check_same([p.grad for p in model.parameters()], expected, rtol=0, atol=0.05 * largest)
    assert handle.stats()["FeedbackAlignment"]["4.weight"]["angle"] > 1


@KINDS
def test_a_gradient_of_a_gradient_is_refused(kind):
    model = mlp()
    aligned(model, kind)
    found = torch.autograd.grad(
        model(torch.randn(4, 6)).square().sum(), model.parameters(), create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate twice"):
        found[0].square().sum().backward()


@KINDS
def test_a_state_of_before_the_first_backward_pass_is_loaded(kind):
    model, x = mlp(), torch.randn(4, 6)
    handle = aligned(model, kind)
    fresh = handle.state_dict()
    expected = gradients(model, x)
    later = handle.state_dict()
    handle.load_state_dict(fresh)
    check_same(gradients(model, x), expected)  # drawn anew, and alike
    other = mlp(width=4)
    other_handle = aligned(other, kind)
    gradients(other, x)
    with pytest.raises(ValueError, match=r"is of a weight \[8, 6\]"):
        other_handle.load_state_dict(later)


@KINDS
def test_the_angle_of_tiny_errors(kind):
    model, x = mlp(), torch.randn(4, 6)
    handle = aligned(model, kind)

    def angles(scale):
        (scale * model(x).square().sum()).backward()
        return [own.get("angle") for own in handle.stats()["FeedbackAlignment"].values()][1:]

    assert angles(1e-24) == pytest.approx(angles(1.0), rel=1e-3)


def test_the_angle_is_that_of_the_first_samples_with_an_error():
    model, x = mlp(), torch.randn(40, 6)
    handle = aligned(model, "fa")

    def angle(x, weight):
        (weight[:, None] * model(x)).square().sum().backward()
        return handle.stats()["FeedbackAlignment"]["4.weight"]["angle"]

    assert angle(x, torch.ones(40)) == pytest.approx(angle(x[:32], torch.ones(32)))
    some = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert angle(x[:4], some) == pytest.approx(angle(x[:4][some > 0], torch.ones(3)))


@pytest.mark.parametrize("kind", ["fa", "dfa"])
def test_uniform_feedback_is_drawn_from_the_fan_in_range_by_the_seed(kind):
    def drawn(seed):
        model = nn.Sequential(nn.Linear(9, 64), nn.Tanh(), nn.Linear(64, 50))
        handle = bouton.attach(model, None, [bouton.FeedbackAlignment(kind=kind)], seed=seed)
        gradients(model, torch.randn(4, 9))
        saved = handle.state_dict()["claims"]["FeedbackAlignment/2.weight"]
        return {**saved["tensors"][0], **dict(saved["made"][0])}["feedback"]

    feedback = drawn(0)
    assert feedback.shape == (50, 64)
    assert feedback.amin() == pytest.approx(-1 / 8, rel=0.01)
    assert feedback.amax() == pytest.approx(1 / 8, rel=0.01)
    assert torch.equal(feedback, drawn(0))
    assert not torch.equal(feedback, drawn(1))


def test_feedback_is_no_view_of_what_was_given():
    given = {"2": torch.randn(5, 8), "4": torch.randn(3, 5)}
    model, x = mlp(), torch.randn(4, 6)
    aligned(model, "fa", init=given)
    expected = gradients(model, x)
    given["4"].zero_()
    check_same(gradients(model, x), expected)


def test_direct_feedback_is_the_same_for_each_position_where_the_read_out_has_none():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))).mean(1))

    model, x, feedback = Pooled(), torch.randn(3, 3, 6), torch.randn(3, 5)  # as many samples as positions
    aligned(model, "dfa", init={"second": feedback, "head": torch.randn(3, 4)})
    output = model(x)
    output.retain_grad()
    output.square().sum().backward()
    hidden = torch.tanh(model.first(x).detach())
    expected = torch.zeros_like(model.first.weight)
    for sample in range(3):
        for position in range(3):
            delta = (output.grad[sample] @ feedback) * (1 - hidden[sample, position] ** 2)
            expected += delta[:, None] * x[sample, position]
    torch.testing.assert_close(model.first.weight.grad, expected)


def test_a_bilinear_layer_is_left():
    model = nn.ModuleDict({"two": nn.Bilinear(3, 4, 5), "out": nn.Linear(5, 2)})
    assert "two.weight [5x3x4]  left: it has two inputs" in str(aligned(model, "fa").report())


def test_a_transposed_convolution_that_is_asked_for_a_size():
    layer, x = nn.ConvTranspose1d(2, 3, 3, stride=2), torch.randn(2, 2, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x, [12]).square().sum(), x)
    aligned(layer, "fa", init="weights")
    output = layer(x, [12])
    assert output.shape[2] == 12
    (found,) = torch.autograd.grad(output.square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_errors_that_are_passed_forward_have_one_way():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            return self.left(hidden) + self.right(hidden)

    refused = pytest.raises(ValueError, match=r"has none for the input of .*use kind='fa' or 'dfa'")
    heads = Heads()
    bouton.attach(heads, None, [bouton.FeedbackAlignment(kind="ifa")], readout=["left", "right"])
    with refused:
        gradients(heads, torch.randn(3, 6))
    model = mlp()
    aligned(model, "ifa")
    with refused:
        gradients(model, torch.randn(3, 6, requires_grad=True))
    gradients(model, torch.randn(3, 6))
    model[:4](torch.randn(3, 6))
    with pytest.raises(ValueError, match="the last one ended before the read-out"):
        model(torch.randn(3, 6))
    gradients(model, torch.randn(3, 6))  # and is named once only
    with refused:  # nothing of an earlier pass is taken for the error of this one
        model[:4](torch.randn(3, 6)).sum().backward()


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.Flatten(0), nn.Linear(8, 3)), (2, 6)),
        ((nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)), (3, 2, 6, 6)),
        ((nn.Linear(6, 5), nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 3)), (3, 2, 6)),
    ],
    ids=["unbatched", "convolution", "sequence"],
)
@pytest.mark.parametrize("change", [torch.relu_, lambda y: y[..., 1:].zero_()], ids=["all", "part"])
def test_in_place_changes_of_outputs_that_are_views(layers, shape, change):
    first, second, between, last = layers
    x = torch.randn(shape)

    def gradient():
        hidden = first(x)
        change(hidden)
        output = second(hidden)
        change(output)
        return torch.autograd.grad(last(between(output)).square().sum(), [first.weight, second.weight])

    plain = gradient()
    handle = aligned(nn.ModuleList(layers), "fa", init="weights")
    found = gradient()
    handle.detach()
    check_same(found, plain)


@pytest.mark.parametrize(("limit", "kept"), [(40, 5), (16, 2), (7, None)])
def test_samples_of_large_errors_are_fewer_or_none(monkeypatch, limit, kept):
    monkeypatch.setattr(feedback, "SAMPLE_SIZE", limit)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    handle = bouton.attach(model, None, [bouton.FeedbackAlignment()])
    model(torch.randn(5, 4)).sum().backward()
    claim = next(claim for group, claim in handle._claims if group.path == "2")
    assert kept == (None if claim.sample is None else len(claim.sample[0]))
    assert ("angle" in handle.stats()["FeedbackAlignment"]["2.weight"]) == (kept is not None)
