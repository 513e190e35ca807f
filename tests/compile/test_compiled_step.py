"""A compiled optimizer step, or a whole compiled training step: mechanisms act as around a plain one."""

import functools

import pytest
import torch
from compiling import QUIET, Counter
from torch import nn

import bouton

pytestmark = QUIET
STEPS = 6


class TwiceDerived(torch.optim.SGD):
    """Calls the step of its parent, around which torch runs the hooks once more."""

    def step(self, closure=None):
        return super().step(closure)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "derived": lambda parameters: TwiceDerived(parameters, lr=0.05),
}
MECHANISMS = {
    "rates": [
        bouton.PlasticityDiversity(distribution="temporal", decay=0.5, period=2, nu=0.4),
        bouton.Crystallization(threshold=0.02, factor=0.5),
    ],
    "structure": [bouton.SpineRemodeling(every=2), bouton.DalePrinciple()],
    "gradient": [bouton.PlasticityDiversity(nu=0.4, scope="gradient")],
    "all sites": [
        bouton.Grapes(clip=None),
        bouton.MultiSynapse(),
        bouton.PlasticityDiversity(distribution="activity", nu=0.4),
        bouton.SpineRemodeling(every=3),
    ],
}


@functools.cache
def trained(optimizer_name, chosen=None, compile_what=None):
    """The weights after training with the mechanisms of that name, and the number of graphs."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    if chosen:
        bouton.attach(model, optimizer, MECHANISMS[chosen])
    counter = Counter()
    optimizer_step = optimizer.step
    if compile_what == "step":
        optimizer_step = torch.compile(optimizer.step, backend=counter)

    def step(x):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer_step()

    if compile_what == "all":
        step = torch.compile(step, backend=counter)
    for number in range(STEPS):
        step(torch.randn(5, 6, generator=torch.Generator().manual_seed(number)))
    return {name: value.clone() for name, value in model.state_dict().items()}, counter.graphs


@pytest.mark.parametrize("compile_what", ["step", "all"])
@pytest.mark.parametrize(
    ("optimizer", "mechanisms"),
    [
        *(("sgd", name) for name in MECHANISMS),
        ("adamw", "rates"),
        ("derived", "rates"),
    ],
)
def test_compiled_steps_equal_plain_steps(optimizer, mechanisms, compile_what):
    expected, _ = trained(optimizer, mechanisms)
    plain, plain_graphs = trained(optimizer, None, compile_what)
    found, graphs = trained(optimizer, mechanisms, compile_what)
    # compiled Adam rounds otherwise: 1e-6 in plain weights, more where a synapse is new and its moments 0
    rounding = 5e-5 if optimizer == "adamw" else 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=rounding)
    assert any(not torch.allclose(found[name], value, atol=1e-3) for name, value in plain.items())
    assert graphs == plain_graphs  # what acts around the step is not compiled, and so costs no graph


def test_a_step_in_one_graph_is_refused_by_name():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    model(torch.randn(5, 6)).sum().backward()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="bouton acts around an optimizer's step"):
        torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)()
