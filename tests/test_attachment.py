"""The engine's own behaviour; what holds for every mechanism is in contract/."""

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass

import oracles
import pytest
import torch
from torch import nn

import bouton


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model, optimizer, steps=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


# A mechanism of the user's own, one per site: a site and a rule, nothing more.


class Halved(bouton.Mechanism):
    site = "wiring"

    def rule(self, synapses, output):
        return output / 2


class Doubled(bouton.Mechanism):
    site = "error"

    def rule(self, synapses):
        return torch.full_like(synapses.weight[:, 0], 2)


@dataclass(frozen=True, kw_only=True)
class Slow(bouton.Mechanism):
    factor: float = 0.5
    site = "rate"

    def rule(self, synapses):
        return torch.full_like(synapses.weight, self.factor)


class Positive(bouton.Mechanism):
    site = "structure"
    every = 2

    def rule(self, synapses):
        return synapses.weight < 0, synapses.weight.abs()


def test_own_wiring_mechanism():
    model, x = mlp(), torch.randn(5, 6)
    expected = model[4](model[3](model[2](model[1](model[0](x) / 2)))).detach()
    bouton.attach(model, None, [Halved(where="0")])
    assert torch.equal(model(x), expected)


def test_own_error_mechanism():
    model, x = mlp(), torch.randn(5, 6)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    bouton.attach(model, None, [Doubled(where="2")])
    doubled = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for factor, before, after in zip([2, 2, 2, 2, 1, 1], plain, doubled, strict=True):
        torch.testing.assert_close(after, factor * before)


def test_own_rate_mechanism():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bouton.attach(model, optimizer, [Slow(where="0"), bouton.PlasticityDiversity(nu=0, where=["0", "2"])])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, steps=1)
    for factor, old, parameter in zip([0.5, 1, 1, 1, 1, 1], before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * factor * parameter.grad)


def test_own_structure_mechanism():
    model = mlp()
    optimizer = sgd(model)
    bouton.attach(model, optimizer, [Positive(where=lambda path, module: path == "2")])
    train(model, optimizer, steps=1)
    assert (model[2].weight < 0).any()
    train(model, optimizer, steps=1)
    assert (model[2].weight >= 0).all()
    assert (model[0].weight < 0).any()


def test_rates_multiply():
    model, other = mlp(), mlp()
    both, product = sgd(model), sgd(other)
    bouton.attach(model, both, [Slow(factor=0.5), bouton.PlasticityDiversity(distribution="gamma")], seed=3)
    drawn = bouton.attach(other, product, [bouton.PlasticityDiversity(distribution="gamma")], seed=3)
    for state in (claim.memory.states[0] for _, claim in drawn._claims):
        state["deviation"] = (0.5 * oracles.rates_of(state, 0.16, torch.float64) - 1) / 0.16
    for ours, expected in zip(train(model, both), train(other, product), strict=True):
        torch.testing.assert_close(ours, expected)


def test_scheduled_momentum_and_weight_decay_are_part_of_the_scaled_update():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    bouton.attach(model, optimizer, [Slow(factor=0.0)])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    after = train(model, optimizer)
    for index in (0, 2, 4):
        assert torch.equal(before[index], after[index])
        assert not torch.equal(before[index + 1], after[index + 1])


def test_a_step_with_a_closure_sees_the_closures_gradients():
    seen = []

    class Watch(bouton.Mechanism):
        site = "rate"

        def rule(self, synapses):
            seen.append(synapses.gradient.clone())
            return torch.ones_like(synapses.weight)

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bouton.attach(model, optimizer, [Watch()])

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(seen[0], torch.ones(2, 3))


def test_paused_is_plain():
    model, plain = mlp(), mlp()
    optimizer, reference = sgd(model), sgd(plain)
    mechanisms = [
        bouton.Grapes(),
        bouton.PlasticityDiversity(),
        bouton.SpineRemodeling(every=1),
        bouton.MultiSynapse(),
    ]
    handle = bouton.attach(model, optimizer, mechanisms)
    with handle.paused():
        paused = train(model, optimizer)
    for ours, expected in zip(paused, train(plain, reference), strict=True):
        assert torch.equal(ours, expected)
    attached, plainer = train(model, optimizer), train(plain, reference)
    assert not torch.equal(attached[0], plainer[0])


def test_pauses_nest():
    model, x = mlp(), torch.randn(3, 6)
    plain = model(x)
    handle = bouton.attach(model, None, [bouton.MultiSynapse()])
    with handle.paused():
        with handle.paused():
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain)
    assert not torch.equal(model(x), plain)


def test_report_names_all_that_was_left():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 6))
            self.embedding = nn.Embedding(7, 6)
            self.attention = nn.MultiheadAttention(6, 2)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.hidden = nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

    report = str(bouton.attach(Net(), None, [bouton.Grapes(where=["[!h]*", "head", "hidden"])]).report())
    assert "+ hidden.weight [6x6]" in report
    assert "frozen.weight [6x6]  left: frozen" in report
    assert (
        "attention.out_proj.weight [6x6]  left: torch reads this weight without calling the layer" in report
    )
    assert "head.weight [2x6]  left: the read-out is never modulated" in report
    assert "attention.in_proj_weight [18x6]  left: attention computes these nodes inside one" in report
    assert "embedding.weight [7x6]  left: an embedding looks rows up" in report
    assert "no mechanism reaches: scale (2, 6) (of another layer type" in report


def refused(match, model=None, optimizer=..., mechanisms=(), **arguments):
    model = model or mlp()
    optimizer = sgd(model) if optimizer is ... else optimizer
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=match):
        bouton.attach(model, optimizer, list(mechanisms), **arguments)
    assert hooks == [dict(module._forward_hooks) for module in model.modules()]


def test_mistakes_are_refused_with_what_to_do():
    rate, structure = bouton.PlasticityDiversity(), bouton.SpineRemodeling()
    refused("pass a list such as", mechanisms=[])
    refused("pass an instance such as", mechanisms=[bouton.Grapes])
    with pytest.raises(ValueError, match="pass a list such as"):
        bouton.attach(mlp(), None, bouton.Grapes())
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module, found list"):
        bouton.attach([mlp()], None, [bouton.Grapes()])
    refused("bouton looks for Linear.*1 LayerNorm", nn.LayerNorm(3), None, [bouton.Grapes()])
    refused(
        r"where='layer.\*'. matches no layer.*has: 0, 2, 4", mechanisms=[bouton.Grapes(where="layer.*")]
    )
    refused("found no weight.*4.weight: the read-out", mechanisms=[bouton.Grapes(where="4")])
    refused("not chosen by where=", mechanisms=[bouton.Grapes(where=lambda path, module: False)])
    refused("takes 0.weight 2 times", mechanisms=[rate, bouton.PlasticityDiversity(nu=0.3, where="0")])
    refused("both act on 0.weight at the wiring site", mechanisms=[Halved(), bouton.MultiSynapse()])
    refused("both act on 0.weight at the structure site", mechanisms=[Positive(), structure])
    refused("no optimizer was given", optimizer=None, mechanisms=[rate])
    refused("no optimizer was given", optimizer=None, mechanisms=[structure])
    refused("optimizer does not hold: 0.weight.*add_param_group", optimizer=sgd(mlp()), mechanisms=[rate])
    refused("readout=.'x'.", mechanisms=[rate], readout="x")
    refused("must be a torch.optim.Optimizer", optimizer="adam", mechanisms=[bouton.Grapes()])
    refused(
        r"Nowhere.site is ''; use one of: wiring", mechanisms=[type("Nowhere", (bouton.Mechanism,), {})()]
    )
    refused(
        "Ruleless has no method rule",
        mechanisms=[type("Ruleless", (bouton.Mechanism,), {"site": "rate"})()],
    )


def test_a_model_is_attached_once():
    model = mlp()
    optimizer = sgd(model)
    handle = bouton.attach(model, optimizer, [bouton.SpineRemodeling()])
    refused(r"0 is attached already \(SpineRemodeling\)", model, optimizer, [bouton.Grapes()])
    refused("attached already", nn.Sequential(model), sgd(model), [bouton.Grapes()])
    handle.detach()
    bouton.attach(model, optimizer, [bouton.Grapes()])


@pytest.mark.parametrize(
    ("site", "returned", "found"),
    [
        ("rate", torch.ones(3), r"torch.float32 of shape \[3\].*of shape \[8\] or \[8, 6\]"),
        ("rate", 0.5, "returned float"),
        ("error", torch.ones(8, 6), r"shape \[8, 6\].*of shape \[8\]"),
        ("structure", (torch.ones(8, 6), torch.ones(8, 6)), "expected a torch.bool tensor"),
        ("structure", (torch.ones(8, 6) > 0, torch.ones(8)), r"shape \[8\].*of shape \[8, 6\]"),
    ],
)
def test_a_rule_that_returns_something_else_is_named(site, returned, found):
    wrong = type("Wrong", (bouton.Mechanism,), {"site": site, "rule": lambda self, synapses: returned})
    model = nn.Linear(6, 8)
    optimizer = sgd(model)
    bouton.attach(model, optimizer, [wrong()])
    with pytest.raises(ValueError, match=f"the {site} rule of Wrong .*{found}"):
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()


def test_settings_that_a_site_does_not_know_are_refused():
    for site, setting, value in (
        ("rate", "scope", "updates"),
        ("structure", "scope", "gradient"),
        ("structure", "every", 0),
    ):
        body = {"site": site, setting: value, "rule": lambda self, synapses: None}
        refused(f"Odd.{setting} is", mechanisms=[type("Odd", (bouton.Mechanism,), body)()])


def test_remodel_needs_a_structure_mechanism():
    with pytest.raises(ValueError, match="no structure mechanism is attached"):
        bouton.attach(mlp(), None, [bouton.Grapes()]).remodel()


def test_a_detached_handle_says_so():
    model = mlp()
    handle = bouton.attach(model, sgd(model), [bouton.SpineRemodeling()])
    state = handle.state_dict()
    handle.detach()
    for call in (handle.stats, handle.state_dict, handle.remodel, lambda: handle.load_state_dict(state)):
        with pytest.raises(ValueError, match="this handle is detached"):
            call()
    assert "0.weight" in str(handle.report())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_copy_of_a_detached_handle_is_detached(copied):
    model = mlp()
    optimizer = sgd(model)
    handle = bouton.attach(model, optimizer, [Slow(), bouton.SpineRemodeling(every=1), bouton.Grapes()])
    handle.detach()
    other, other_optimizer, other_handle = copied((model, optimizer, handle))
    for ours, expected in zip(train(other, other_optimizer), train(model, optimizer), strict=True):
        assert torch.equal(ours, expected)
    with pytest.raises(ValueError, match="this handle is detached"):
        other_handle.stats()


def test_a_detached_handle_keeps_nothing_alive():
    model = mlp()
    optimizer = sgd(model)
    handle = bouton.attach(model, optimizer, [Slow(), bouton.SpineRemodeling(every=1), bouton.Grapes()])
    train(model, optimizer)
    watched = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model[0].weight)]
    handle.detach()
    del model, optimizer
    gc.collect()
    assert [reference() for reference in watched] == [None, None, None]


def test_a_detached_handle_leaves_the_next_one_alone():
    model, x = mlp(), torch.randn(3, 6)
    old = bouton.attach(model, None, [bouton.MultiSynapse()])
    old.detach()
    new = bouton.attach(model, None, [bouton.MultiSynapse()])
    expected = model(x)
    old.detach()
    with old.paused():
        assert torch.equal(model(x), expected)
    with new.paused():
        assert not torch.equal(model(x), expected)


def test_parts_of_a_model_can_be_attached_to_optimizers_of_their_own():
    model, plain = mlp(), mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1)
    handle = bouton.attach(model, first, [Slow(where="0")])
    other = bouton.attach(model, second, [Slow(where=["2", "4"], factor=0.25)])
    before = [layer.weight.detach().clone() for layer in model[::2]]
    x = torch.randn(4, 6)
    for net in (model, plain):
        net(x).square().sum().backward()
    first.step(), second.step()
    for factor, old, layer, reference in zip(
        [0.5, 0.25, 0.25], before, model[::2], plain[::2], strict=True
    ):
        torch.testing.assert_close(layer.weight.detach(), old - 0.1 * factor * reference.weight.grad)
    handle.detach()
    assert set(other.stats()["Slow"]) == {"2.weight", "4.weight"}


def test_detach_by_model_frees_the_optimizer_too():
    model = mlp()
    optimizer = sgd(model)
    bouton.attach(model, optimizer, [Slow(), bouton.Grapes()])
    bouton.detach(model)
    assert not optimizer._optimizer_step_post_hooks
    bouton.attach(model, optimizer, [Slow()])
    with pytest.raises(ValueError, match="nothing to detach"):
        bouton.detach(mlp())


def test_attach_changes_nothing_if_the_optimizer_cannot_be_hooked():
    class Unready(torch.optim.SGD):
        def register_step_pre_hook(self, hook):
            raise AttributeError("no hooks here")

    model = mlp()
    with pytest.raises(AttributeError):
        bouton.attach(model, Unready(model.parameters(), lr=0.1), [Slow(), bouton.Grapes()])
    bouton.attach(model, sgd(model), [Slow(), bouton.Grapes()])


def test_stats_leave_state_and_draws_alone_even_if_the_rule_raises():
    broken = [True]

    class Counting(bouton.Mechanism):
        site = "rate"

        def prepare(self, synapses):
            return {"calls": torch.zeros(())}

        def rule(self, synapses):
            synapses.state["calls"] += 1
            synapses.state["new"] = synapses.normal()
            if broken:
                raise RuntimeError("not today")
            return 1 + synapses.state["new"]

    model = nn.Linear(6, 8)
    handle = bouton.attach(model, sgd(model), [Counting()])
    before = handle.state_dict()
    with pytest.raises(RuntimeError, match="not today"):
        handle.stats()
    broken.clear()
    assert handle.stats() == handle.stats()
    claim = handle.state_dict()["claims"]["Counting/weight"]
    assert claim == before["claims"]["Counting/weight"]


def test_saved_and_loaded_state_are_copies():
    def attached():
        model = mlp()
        return bouton.attach(model, sgd(model), [bouton.PlasticityDiversity(), bouton.SpineRemodeling()])

    handle, other = attached(), attached()
    handle.remodel()
    stats, saved = handle.stats(), handle.state_dict()
    other.load_state_dict(saved)
    assert other.stats() == stats
    for claim in saved["claims"].values():
        for tensor in (*claim["tensors"][0].values(), claim.get("changed", torch.zeros(()))):
            tensor.zero_()
    assert other.stats() == handle.stats() == stats


def test_a_state_that_lacks_something_is_refused():
    model = mlp()
    handle = bouton.attach(model, sgd(model), [bouton.PlasticityDiversity(nu=0.1)])
    for broken in ({}, {**handle.state_dict(), "claims": {"PlasticityDiversity/0.weight": {}}}):
        with pytest.raises(ValueError, match=r"no state of an attachment|another model"):
            handle.load_state_dict(broken)
    with pytest.raises(ValueError, match=r"PlasticityDiversity/2.weight lacks draws"):
        state = handle.state_dict()
        del state["claims"]["PlasticityDiversity/2.weight"]["draws"]
        handle.load_state_dict(state)


def test_a_state_that_lacks_what_attach_made_is_refused():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.PlasticityDiversity()])
    state = handle.state_dict()
    del state["claims"]["PlasticityDiversity/weight"]["tensors"][0]["deviation"]
    with pytest.raises(ValueError, match="PlasticityDiversity/weight does not fit"):
        handle.load_state_dict(state)


def test_a_table_that_shares_its_weight_is_found_by_its_own_name():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["table"].weight
    handle = bouton.attach(model, sgd(model), [bouton.PlasticityDiversity(where="table")])
    assert [row.weight for row in handle.report().rows if row.left_because is None] == ["head.weight"]
