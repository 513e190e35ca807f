"""A step of which some weights are made by fused kernels, and the others by torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import unwrap
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bouton.compiled import keep_out_of_graphs
from bouton.fused.rates import SeededRates
from bouton.tensors.shards import local

_DEVICES = {"cuda"}
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}
_PLAIN_NUMBERS = "lr", "betas", "eps", "momentum", "dampening", "weight_decay"
_FUSED_TWICE = (
    "bouton.fused.{0}(fused=True): leave fused out, which asks for torch's own fused kernel, and that "
    "knows no rates; for that kernel, use torch.optim.{0}(fused=True)"
)
_IN_NO_GRAPH = "bouton's fused optimizers start their own kernels; compile the step without fullgraph=True"


class Job(NamedTuple):
    """A weight with rates that is to be stepped."""

    weight: nn.Parameter
    gradient: Tensor
    group: dict[str, Any]
    rates: SeededRates


class Fused(Optimizer):
    """Base of the fused optimizers: whose weight is stepped by which way.

    A weight without an entry in :attr:`rates` is stepped by torch's own optimizer, untouched. So is one
    that the kernels cannot take; its update is scaled afterwards.
    """

    torch_optimizer: ClassVar[type[Optimizer]]

    @cached_property
    def rates(self) -> dict[nn.Parameter, SeededRates]:
        """The weights whose updates are scaled, and by what; to be filled by who wants that.

        Neither saved by ``state_dict`` nor taken along by a copy, which starts without entries.
        """
        return {}

    @property
    def path(self) -> str:
        """By which way the weights with rates went in the last step.

        Example:
            >>> import bouton.fused, torch
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = bouton.fused.SGD([weight], lr=0.1)
            >>> optimizer.rates[weight] = bouton.fused.SeededRates(key=(1, 2), nu=0.1)
            >>> weight.grad = torch.ones(2, 2)
            >>> optimizer.step()
            >>> optimizer.path
            'torch, for the weight is on cpu: 1'
        """
        ways = (f"{way}: {count}" for way, count in sorted(self._ways.items()))
        return "; ".join(ways) or "no weight with rates was stepped yet"

    @cached_property
    def _ways(self) -> Counter[str]:
        return Counter()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for torch's optimizer, whose constructor calls it too.

        Raises:
            ValueError: ``fused=True``.
        """
        if param_group.get("fused", self.defaults["fused"]):
            raise ValueError(_FUSED_TWICE.format(type(self).__name__))
        keep_out_of_graphs(Fused, "_advance", reason=_IN_NO_GRAPH)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        keep_out_of_graphs(Fused, "_advance", reason=_IN_NO_GRAPH)
        for group in self.param_groups:
            if group["fused"]:  # saved by torch's own fused optimizer, which counts steps on the device
                group["fused"] = None
                for weight in [] if group.get("capturable") else group["params"]:
                    own = self.state.get(weight, {})
                    own.update({"step": own["step"].cpu()} if "step" in own else {})

    # It never calls super().step(): torch runs the hooks around the step of each class, here twice then.
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step, as torch's optimizer does.

        Args:
            closure: evaluates the model again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance()
        return loss

    def _advance(self) -> None:
        fused, scaled = self._shared_out()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            before = [job.weight.clone() for job in scaled]
            self._step_others(fused)
            for job, weight in zip(scaled, before, strict=True):
                _scale(job.weight, weight, job.rates)
        with torch.no_grad():
            for job in fused:
                self._step_fused(job)

    def _shared_out(self) -> tuple[list[Job], list[Job]]:
        """What the kernels take, and what is stepped by torch and scaled afterwards."""
        fused: list[Job] = []
        scaled: list[Job] = []
        self._ways.clear()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or weight not in self.rates:
                    continue
                job = Job(weight, weight.grad, group, self.rates[weight])
                obstacle = self._obstacle(job)
                self._ways["Triton" if obstacle is None else f"torch, for {obstacle}"] += 1
                (scaled if obstacle else fused).append(job)
        return fused, scaled

    def _step_others(self, fused: list[Job]) -> None:
        """One step of torch's optimizer, which is not shown the weights that the kernels take."""
        plain = unwrap(self.torch_optimizer.step)  # without the hooks, which run around the own step
        try:
            for job in fused:
                job.weight.grad = None
            plain(self)
        finally:
            for job in fused:
                job.weight.grad = job.gradient

    def _obstacle(self, job: Job) -> str | None:
        """Why the kernels cannot take a weight; None if they can."""
        weight, gradient, group, _ = job
        if weight.device.type not in _DEVICES:
            return f"the weight is on {weight.device.type}"
        if not _has_triton():
            return "Triton is not installed"
        for name in ("capturable", "differentiable", "amsgrad"):
            if group.get(name):
                return f"{name}=True"
        for name in _PLAIN_NUMBERS:
            if isinstance(group.get(name), Tensor):
                return f"{name} is a tensor"
        if gradient.layout != torch.strided:
            return f"the gradient is {gradient.layout}"
        counted = self.state.get(weight, {}).get("step")
        if isinstance(counted, Tensor) and counted.device.type != "cpu":
            return f"the count of its steps is on {counted.device.type}"
        for tensor in map(local, (weight, gradient, *self._moments(weight))):
            if tensor.dtype not in _DTYPES:
                return f"a tensor of it is in {tensor.dtype}"
            if not tensor.is_contiguous():
                return "a tensor of it is not contiguous"
            if not tensor.numel():
                return "it is empty"
        return None

    def _moments(self, weight: nn.Parameter) -> list[Tensor]:
        """What torch's optimizer keeps for every entry of a weight."""
        state = self.state.get(weight, {})
        return [value for name, value in state.items() if name != "step" and value is not None]

    def _step_fused(self, job: Job) -> None:
        """Step one weight by a kernel."""
        raise NotImplementedError


def _scale(weight: Tensor, before: Tensor, rates: SeededRates) -> None:
    """Scale the update that a weight has just seen."""
    old, new = local(before), local(weight)
    rate = rates.of(new)
    new.copy_(torch.lerp(old.to(rate.dtype), new.to(rate.dtype), rate))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
