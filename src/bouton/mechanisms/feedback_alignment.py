"""Feedback alignment: errors travel down through fixed random weights instead of the transposed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bouton.mechanism import Mechanism, register
from bouton.passage import Passage
from bouton.sites import Synapses
from bouton.synapse import SynapseGroup

Init = (
    Literal["uniform", "weights"]
    | Callable[[str, tuple[int, ...], torch.Generator], Tensor]
    | Mapping[str, Tensor]
)


_AMBIGUOUS = (
    "kind={!r} needs one error of the read-out for each error of another layer, and found {} at {}. Where "
    "where= leaves the read-out out, take it in, or name it with readout=; where it runs several times, as "
    "through time, let all layers take one time step before the next, or use kind='fa'"
)
_NOT_DRAWN = (
    "FeedbackAlignment makes the feedback of {} when the first error comes, and torch.compile cannot trace "
    "that; run one forward and backward pass of the model before it is compiled"
)


@register(
    paper="GRAPES (Nat. Commun. 13, 2022)",
    neutral=({"init": "weights"},),
    examples=({}, {"kind": "dfa"}),
)
@dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(Mechanism):
    r"""Send errors down through fixed random weights ``B`` instead of the transposed weights.

    With ``e`` the error at the read-out, ``delta_l`` that at the nodes of layer ``l`` and ``phi`` the
    activation:

    .. math::
       \text{fa:}\; \delta_{l} = (B_{l+1}\, \delta_{l+1}) \odot \varphi'(a_l), \qquad
       \text{dfa:}\; \delta_{l} = (B_{l+1}\, e) \odot \varphi'(a_l)

    ``"ifa"`` feeds ``B e`` to the first layer and passes it forward,
    ``delta_l = (W_l delta_{l-1}) * phi'(a_l)``. Each layer's own gradient is made of its ``delta`` as ever,
    and whatever lies between the layers is differentiated as ever. For ``"fa"``, ``B`` of a layer has the
    shape of its weight, ``[node, fan-in...]``; for ``"dfa"`` and ``"ifa"`` it maps the read-out's nodes to
    the layer's input, ``[node of the read-out, input...]``. That of ``"fa"`` is drawn by ``attach``, unless
    ``init`` is a function or a mapping; any other when the first error comes.

    Args:
        kind: ``"fa"`` (feedback alignment), ``"dfa"`` (direct), ``"ifa"`` (indirect).
        init: ``"uniform"`` draws ``B`` from U[-1/sqrt(n), 1/sqrt(n)] with ``n`` the entries of one row;
            ``"weights"`` (``"fa"`` only) follows the layer's own weights, which is back-propagation, as a
            control; or a function ``(path, shape, generator) -> Tensor``, or a mapping from path to tensor.
        where: see :class:`bouton.Mechanism`; for ``"dfa"`` and ``"ifa"`` the read-out must be among the
            layers, and dense. The batch axis comes first; of several read-outs, ``e`` is the error at the
            first.

    Raises:
        ValueError: an unknown kind or init, or ``"weights"`` with another kind than ``"fa"``. While
            training: an ``init`` that gives no tensor of the right shape for a layer; a forward pre-hook,
            registered after ``attach``, that changes a layer's input; ``torch.func``'s transforms and
            forward-mode differentiation; ``"dfa"`` where the read-out runs through several time steps
            before the other layers; ``"ifa"`` in a net whose layers run more than once before the read-out,
            or in a reentrant checkpoint, whose sizes change between the layers, as by pooling, which has
            several read-outs, or whose input takes a gradient.

    Note:
        When not to use it: to reach a better accuracy. It is a model of learning without weight transport,
        and in deep or convolutional nets it learns worse than back-propagation. ``handle.stats()`` gives
        the angle between what each layer sent down in the last backward pass and what its own weights, as
        they are now, would have sent, averaged over some samples (where one has at most a million numbers):
        90 degrees is unrelated, and it falls where feedback and weights align. Ask before the optimizer's
        step; there is no angle where nothing below asked for an error, as below the first layer, nor where
        the errors of every sample are 0 or not finite.

    References:
        Dellaferrera et al., Nature Communications 13 (2022), doi 10.1038/s41467-022-29491-2; Lillicrap et
        al., Nature Communications 7, 13276 (2016); Nokland, NeurIPS 29 (2016).

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> handle = bouton.attach(model, None, [bouton.FeedbackAlignment(kind="dfa"), bouton.Grapes()])
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> 0 <= handle.stats()["FeedbackAlignment"]["2.weight"]["angle"] <= 180
        True
    """

    kind: Literal["fa", "dfa", "ifa"] = "fa"
    init: Init = "uniform"

    site = "wiring"
    direction = "backward"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("fa", "dfa", "ifa"):
            raise ValueError(f"FeedbackAlignment(kind={self.kind!r}): use 'fa', 'dfa' or 'ifa'")
        if not callable(self.init) and not isinstance(self.init, Mapping):
            if self.init not in ("uniform", "weights"):
                raise ValueError(
                    f"FeedbackAlignment(init={self.init!r}): use 'uniform', 'weights', a function "
                    "(path, shape, generator) -> Tensor, or a mapping path -> Tensor"
                )
            if self.init == "weights" and self.kind != "fa":
                raise ValueError(
                    "FeedbackAlignment(init='weights') follows each layer's own weights, which have the "
                    "shape of kind='fa' only"
                )

    @property
    def direct(self) -> bool:  # type: ignore[override]
        return self.kind != "fa"

    @property
    def relays(self) -> bool:  # type: ignore[override]
        return self.kind == "ifa"

    def serves(self, group: SynapseGroup) -> str | None:
        if isinstance(group.layers[0], nn.Bilinear):
            return "it has two inputs, and feedback goes to one"
        return None

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        if (self.kind, self.init) != ("fa", "uniform"):
            return {}
        return {"feedback": self._make(synapses, tuple(synapses.weight.shape))}

    def rule(self, synapses: Synapses, passage: Passage) -> Tensor:
        if self.init == "weights":
            return passage.through(synapses.weight)
        if self.kind == "fa":
            return passage.through(self._feedback(synapses, tuple(synapses.weight.shape)))
        if len(passage.output_errors) != 1:
            raise ValueError(_AMBIGUOUS.format(self.kind, len(passage.output_errors), synapses.name))
        (error,) = passage.output_errors
        if synapses.weight.ndim == 2:  # a dense layer: one vector for each position of its input
            feedback = self._feedback(synapses, (error.shape[-1], passage.shape[-1]))
            return _spread(error.to(feedback.dtype) @ feedback, passage.shape, synapses.name)
        feedback = self._feedback(synapses, (error.shape[-1], *passage.shape[synapses.axis :]))
        sent = error.to(feedback.dtype) @ feedback.flatten(1)
        return _spread(sent.unflatten(-1, feedback.shape[1:]), passage.shape, synapses.name)

    def _feedback(self, synapses: Synapses, shape: tuple[int, ...]) -> Tensor:
        if "feedback" not in synapses.state:
            if torch.compiler.is_compiling():
                raise ValueError(_NOT_DRAWN.format(synapses.name))
            synapses.state["feedback"] = self._make(synapses, shape)
        return synapses.state["feedback"]

    def _make(self, synapses: Synapses, shape: tuple[int, ...]) -> Tensor:
        weight, path = synapses.weight, synapses.name.rpartition(".")[0]
        made: object
        if callable(self.init):
            made = self.init(path, shape, synapses.generator())
        elif isinstance(self.init, Mapping):
            made = self.init.get(path)
        else:
            bound = max(torch.Size(shape[1:]).numel(), 1) ** -0.5
            made = torch.empty(shape, device=weight.device).uniform_(
                -bound, bound, generator=synapses.generator()
            )
        if not isinstance(made, Tensor) or made.shape != shape:
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"FeedbackAlignment(init=...) gave {found} for {path!r}; expected a tensor of shape "
                f"{shape}, from the nodes whose error it takes to the input; transpose it where it is not"
            )
        return made.detach().to(weight, copy=True)


def _spread(sent: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The same for each position between the batch and the features, where the read-out has none."""
    while sent.ndim < len(shape):
        sent = sent.unsqueeze(1)
    try:
        return sent.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"the read-out's error, sent as {tuple(sent.shape)}, does not fit the input {tuple(shape)} of "
            f"{name}: both must begin with the same batch axis, the read-out must be a dense layer, and "
            "images must keep their size"
        ) from error
