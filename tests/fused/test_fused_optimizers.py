"""What a fused optimizer has in common with torch's own, and what it does where its kernels cannot go."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from seeded_oracle import Slowly
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import bouton
import bouton.fused
from bouton.fused import SeededRates

NAMES = ["SGD", "AdamW"]
BOTH = pytest.mark.parametrize("name", NAMES)
SEEDED = SeededRates(key=(3, 4), nu=0.5, clip=(0.6, 2.0), start=5)
OPTIONS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "AdamW": [{}, {"weight_decay": 0.3, "maximize": True}, {"betas": (0.5, 0.9), "amsgrad": True}],
}
EACH = pytest.mark.parametrize(("name", "options"), [(name, o) for name in NAMES for o in OPTIONS[name]])


def pair(name, **options):
    """The same net twice: with torch's optimizer, and with the fused one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    other = copy.deepcopy(net)
    torchs = getattr(torch.optim, name)(net.parameters(), **options)
    return net, torchs, other, getattr(bouton.fused, name)(other.parameters(), **options)


def one(name, weight, **options):
    """A fused optimizer of one weight, with rates."""
    optimizer = getattr(bouton.fused, name)([weight], **options)
    optimizer.rates[weight] = SEEDED
    return optimizer


def train(net, optimizer, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 6, generator=generator)).square().sum().backward()
        optimizer.step()


def assert_same(first, second):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@EACH
def test_without_rates_it_is_torchs_optimizer_to_the_bit(name, options):
    net, torchs, other, fused = pair(name, lr=0.05, **options)
    assert isinstance(fused, getattr(torch.optim, name))
    train(net, torchs)
    train(other, fused)
    assert_same(net, other)
    assert str(torchs.state_dict()) == str(fused.state_dict())


@EACH
def test_state_dicts_are_exchanged_both_ways(name, options):
    net, torchs, other, fused = pair(name, lr=0.05, **options)
    train(net, torchs)
    train(other, fused)
    saved = copy.deepcopy((torchs.state_dict(), fused.state_dict()))
    fused.load_state_dict(saved[0])
    torchs.load_state_dict(saved[1])
    train(net, torchs)
    train(other, fused)
    assert_same(net, other)


@BOTH
@pytest.mark.parametrize("kernels", [True, False])
def test_a_state_of_torchs_fused_optimizer_is_taken_over(name, kernels, request):
    if kernels:
        request.getfixturevalue("on_cpu")
    options = {"lr": 0.05} | ({"momentum": 0.9} if name == "SGD" else {})
    net, _, other, fused = pair(name, **options)
    builtin = getattr(torch.optim, name)(net.parameters(), fused=True, **options)
    train(net, builtin)
    other.load_state_dict(net.state_dict())
    fused.load_state_dict(builtin.state_dict())
    slow = [Slowly(name, weight, SEEDED, options) for weight in net.parameters()]
    for each, weight in zip(slow, net.parameters(), strict=True):
        each.take_over(weight.detach(), builtin.state[weight])
    fused.rates.update(dict.fromkeys(other.parameters(), SEEDED))
    train(other, fused, steps=1)
    for each, weight in zip(slow, other.parameters(), strict=True):
        each.step(weight.grad)
        torch.testing.assert_close(weight.double(), each.weight, rtol=1e-5, atol=1e-6)
    assert fused.param_groups[0]["fused"] is None
    assert fused.path.startswith("Triton" if kernels else "torch")
    assert not getattr(fused, "_step_supports_amp_scaling", False)


@BOTH
@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_starts_without_rates(name, way):
    _, _, other, fused = pair(name, lr=0.1)
    fused.rates[other[0].weight] = SEEDED
    train(other, fused)
    copied = way(fused)
    assert copied.rates == {} and list(fused.rates) == [other[0].weight]
    copied.rates[copied.param_groups[0]["params"][0]] = SEEDED
    assert len(fused.rates) == 1
    assert copied.path == "no weight with rates was stepped yet"
    copied.step()


@BOTH
def test_rates_are_not_saved_and_outlast_loading(name):
    net, torchs, other, fused = pair(name, lr=0.1)
    fused.rates[other[0].weight] = SEEDED
    train(other, fused)
    train(net, torchs)
    state = fused.state_dict()
    assert state.keys() == torchs.state_dict().keys()
    assert state["param_groups"] == torchs.state_dict()["param_groups"]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    fused.load_state_dict(torch.load(buffer, weights_only=True))
    assert fused.rates == {other[0].weight: SEEDED}


@BOTH
@pytest.mark.parametrize("first", ["torch's", "fused"])
@pytest.mark.parametrize("kernels", [True, False])
def test_hooks_run_once(name, first, kernels, request, monkeypatch):
    if kernels:
        request.getfixturevalue("on_cpu")
    for kind in (getattr(torch.optim, name), getattr(bouton.fused, name)):  # as if none was ever made
        if getattr(kind.step, "hooked", False):
            monkeypatch.setattr(kind, "step", kind.step.__wrapped__)
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    if first == "torch's":
        getattr(torch.optim, name)(weights)
    optimizer = one(name, weights[0])
    optimizer.add_param_group({"params": weights[1]})
    if first == "fused":
        getattr(torch.optim, name)(weights)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("pre of all")),
        register_optimizer_step_post_hook(lambda *_: calls.append("post of all")),
    ]
    for weight in weights:
        weight.grad = torch.ones(3)
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert calls == ["pre of all", "pre", "post", "post of all"]
    assert all((weight != 1).all() for weight in weights)


@BOTH
@pytest.mark.parametrize("kernels", [True, False])
def test_a_closure_is_called_once_and_gives_the_gradient(name, kernels, request):
    if kernels:
        request.getfixturevalue("on_cpu")
    weight = nn.Parameter(torch.full((4,), 2.0))
    optimizer = one(name, weight, lr=0.1)
    slow = Slowly(name, weight, SEEDED, {"lr": 0.1})
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 16
    assert calls == [True]
    slow.step(torch.full((4,), 4.0))
    torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("kernels", [True, False])
def test_a_gradient_scaler_unscales_and_skips(name, kernels, request):
    if kernels:
        request.getfixturevalue("on_cpu")
    weight = nn.Parameter(torch.full((4,), 2.0))
    optimizer = one(name, weight, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight.grad = torch.full((4,), torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    scaler.update()
    assert (weight == 2).all() and not optimizer.state
    slow = Slowly(name, weight, SEEDED, {"lr": 0.1})
    weight.grad = torch.full((4,), 3.0 * scaler.get_scale())
    scaler.step(optimizer)
    slow.step(torch.full((4,), 3.0))
    torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-5, atol=1e-6)


@BOTH
def test_torchs_own_fused_kernel_is_refused(name):
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=rf"fused=True\): leave fused out.*use torch.optim.{name}\(fused"):
        getattr(bouton.fused, name)([weight], fused=True)
    with pytest.raises(ValueError, match="leave fused out"):
        getattr(bouton.fused, name)([{"params": [weight], "fused": True}])


def channels_last():
    return nn.Parameter(torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last))


FALLBACKS = {
    "the weight is on meta": lambda: (nn.Parameter(torch.ones(3, device="meta")), {}),
    "a tensor of it is in torch.float64": lambda: (nn.Parameter(torch.randn(3, 2).double()), {}),
    "a tensor of it is not contiguous": lambda: (channels_last(), {}),
    "lr is a tensor": lambda: (nn.Parameter(torch.randn(3, 2)), {"lr": torch.tensor(0.1)}),
    "it is empty": lambda: (nn.Parameter(torch.zeros(0, 2)), {}),
}


@BOTH
@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_the_kernels_cannot_take_is_scaled_after_torchs_step(name, reason, on_cpu):
    weight, options = FALLBACKS[reason]()
    options = {"lr": 0.1, **options}
    optimizer = one(name, weight, **options)
    weight.grad = torch.ones_like(weight)
    if weight.is_meta:
        optimizer.step()
    else:
        slow = Slowly(name, weight, SEEDED, options)
        for _ in range(3):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            slow.step(weight.grad)
        torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-5, atol=1e-6)
    assert optimizer.path == f"torch, for {reason}: 1"


@EACH
def test_without_triton_torch_does_the_step(name, options, on_cpu, monkeypatch):
    monkeypatch.setattr("bouton.fused.stepping._has_triton", lambda: False)
    weight = nn.Parameter(torch.randn(3, 2))
    optimizer = one(name, weight, lr=0.1, **options)
    slow = Slowly(name, weight, SEEDED, {"lr": 0.1, **options})
    for _ in range(5):
        weight.grad = torch.randn(3, 2)
        optimizer.step()
        slow.step(weight.grad)
    torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-5, atol=1e-6)
    assert optimizer.path == "torch, for Triton is not installed: 1"


def test_options_that_the_kernels_lack_are_seen(on_cpu):
    weight = nn.Parameter(torch.randn(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = one("AdamW", weight, amsgrad=True)
    optimizer.step()
    assert optimizer.path == "torch, for amsgrad=True: 1"
    optimizer = one("AdamW", weight, capturable=True)
    with pytest.raises(AssertionError, match="capturable"):  # torch has that on GPUs alone
        optimizer.step()
    assert optimizer.path == "torch, for capturable=True: 1"
    optimizer = one("AdamW", weight)
    optimizer.state[weight] = {"step": torch.zeros((), device="meta")}
    ways = optimizer._shared_out()
    assert not ways[0] and optimizer.path == "torch, for the count of its steps is on meta: 1"


@BOTH
def test_a_differentiable_step(name, on_cpu):
    start = torch.full((3,), 2.0, requires_grad=True)
    weight = start.clone()
    optimizer = getattr(bouton.fused, name)([nn.Parameter(torch.ones(1))], lr=0.1, differentiable=True)
    optimizer.param_groups[0]["params"] = [weight]
    optimizer.rates[weight] = SEEDED
    weight.grad = start * 3
    optimizer.step()
    (slope,) = torch.autograd.grad(weight.sum(), start)
    if name == "SGD":
        torch.testing.assert_close(slope, 1 - 0.1 * 3 * SEEDED.of(start))
    assert optimizer.path == "torch, for differentiable=True: 1" and slope.isfinite().all()


def test_sparse_gradients(on_cpu):
    for name in NAMES:
        taken, table = nn.Parameter(torch.ones(3)), nn.Embedding(4, 2, sparse=True)
        before = table.weight.detach().clone()
        optimizer = getattr(bouton.fused, name)([taken, table.weight], lr=0.1)
        optimizer.rates.update({taken: SEEDED, table.weight: SEEDED})
        taken.grad = torch.ones(3)
        table(torch.tensor([1, 1])).sum().backward()
        if name == "AdamW":
            with pytest.raises(RuntimeError, match="does not support sparse"):
                optimizer.step()
            assert (taken == 1).all() and (taken.grad == 1).all()
            continue
        optimizer.step()
        assert optimizer.path == "Triton: 1; torch, for the gradient is torch.sparse_coo: 1"
        rates = SEEDED.of(before)
        before[1] -= 0.1 * 2 * rates[1]
        torch.testing.assert_close(table.weight.detach(), before)


@BOTH
def test_in_16_bits_updates_are_scaled_in_32(name):
    weight = nn.Parameter(torch.randn(40).bfloat16())
    plain = nn.Parameter(weight.detach().clone())
    optimizer, torchs = one(name, weight, lr=0.1), getattr(torch.optim, name)([plain], lr=0.1)
    before = weight.detach().clone()
    weight.grad = torch.randn(40).bfloat16()
    plain.grad = weight.grad.clone()
    optimizer.step()
    torchs.step()
    update = plain.detach().float() - before.float()
    assert torch.equal(weight.detach(), (before.float() + SEEDED.of(before) * update).bfloat16())


@BOTH
def test_mechanisms_work_on_it_as_on_torchs(name):
    net, torchs, other, fused = pair(name, lr=0.05)
    mechanisms = [bouton.PlasticityDiversity(), bouton.SpineRemodeling(every=2)]
    handles = [bouton.attach(net, torchs, mechanisms), bouton.attach(other, fused, mechanisms)]
    train(net, torchs, steps=5)
    train(other, fused, steps=5)
    assert_same(net, other)
    for handle in handles:
        handle.detach()


@BOTH
def test_a_compiled_step_runs_as_it_is(name):
    weight = nn.Parameter(torch.ones(3))
    optimizer = one(name, weight, lr=0.1)
    slow = Slowly(name, weight, SEEDED, {"lr": 0.1})
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        weight.grad = torch.full((3,), 2.0)
        step()
        slow.step(weight.grad)
    torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="compile the step without fullgraph=True"):
        torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    torch.compiler.reset()


def test_kernels_are_not_imported_for_weights_on_a_cpu():
    code = """
import sys, torch, bouton.fused
print("triton" in sys.modules)  # later, torch.compile brings it in
weight = torch.nn.Parameter(torch.ones(3))
optimizer = bouton.fused.AdamW([weight])
optimizer.rates[weight] = bouton.fused.SeededRates(key=(1, 2), nu=0.1)
weight.grad = torch.ones(3)
optimizer.step()
print("bouton.fused.kernels" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
