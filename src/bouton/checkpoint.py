"""Checkpoints: the state of an attachment, which rides in its optimizer's state dict."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bouton.claim import Claims
from bouton.optimizer_hook import OptimizerHook

KEY = "bouton"  # under which mechanism state stands in an optimizer's state dict
_FRESH = (
    "this optimizer state holds no state of the attached mechanisms, which start fresh from the weights as "
    "they are now; load the model's weights before it, and the handle's own state, if that was saved "
    "apart, after it"
)


class Stateful(Protocol):
    """What has a state to save: an attachment."""

    def state_dict(self) -> dict[str, Any]:
        """All state."""

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of this."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""

    def reset(self) -> None:
        """Start fresh."""


class CheckpointHook(OptimizerHook):
    """Puts the state of an attachment into the state dict of its optimizer, and takes it from there.

    All attachments of one optimizer share one key, in the order in which they were attached. A plain
    optimizer ignores it. What does not fit is refused before the optimizer has loaded anything.
    """

    def __init__(self, optimizer: Optimizer, handle: Stateful) -> None:
        self._handle = handle
        self._found: Mapping[str, Any] | None = None  # between checking and loading
        super().__init__(optimizer)

    def _hook(self) -> list[RemovableHandle]:
        return [
            self._optimizer.register_state_dict_post_hook(self._save),
            self._optimizer.register_load_state_dict_pre_hook(self._check),
            self._optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        state.setdefault(KEY, []).append(self._handle.state_dict())

    def _check(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        self._found = None
        if KEY not in state:
            return
        hooks = [
            getattr(h, "__self__", None) for h in optimizer._optimizer_load_state_dict_pre_hooks.values()
        ]
        riders = [hook for hook in hooks if isinstance(hook, CheckpointHook)]
        if len(state[KEY]) != len(riders):
            raise ValueError(
                f"this optimizer state is of {len(state[KEY])} calls of bouton.attach, and this optimizer "
                f"has {len(riders)}; make the same calls of bouton.attach before loading"
            )
        found = state[KEY][riders.index(self)]
        self._handle.check_state_dict(found)
        self._found = found

    def _load(self, optimizer: Optimizer) -> None:
        found, self._found = self._found, None
        if found is not None:
            self._handle.load_state_dict(found)
            return
        warnings.warn(_FRESH, stacklevel=5)  # the caller of load_state_dict, which torch wraps
        self._handle.reset()


def save_state(mechanisms: list[str], seed: int, claims: Claims) -> dict[str, Any]:
    """The state of all claims: plain numbers, strings and tensors."""
    states = {claim.key: claim.state_dict() for _, claim in claims}
    return {"mechanisms": mechanisms, "seed": seed, "claims": states}


def check_state(state: Mapping[str, Any], mechanisms: list[str], seed: int, claims: Claims) -> None:
    """Refuse what is no state of the same mechanisms on the same weights, and name the difference.

    Raises:
        ValueError: the state is of something else.
    """
    if missing := {"mechanisms", "seed", "claims"} - state.keys():
        raise ValueError(f"this is no state of an attachment: it lacks {', '.join(sorted(missing))}")
    if differences := _differences(state["mechanisms"], mechanisms):
        raise ValueError(
            f"this state is of other mechanisms: {'; '.join(differences)}. Attach the same ones in the "
            "same order before loading"
        )
    if state["seed"] != seed:
        raise ValueError(
            f"this state was made with seed={state['seed']}, and attached is seed={seed}; call "
            f"bouton.attach(..., seed={state['seed']}) before loading"
        )
    own = {claim.key: claim for _, claim in claims}
    parts = [
        *_named("the state alone has", state["claims"].keys() - own.keys()),
        *_named("this model alone has", own.keys() - state["claims"].keys()),
    ]
    if parts:
        raise ValueError(f"this state is of another model: {'; '.join(parts)}")
    for key, claim in own.items():
        claim.check_fits(state["claims"][key])


def _differences(saved: list[str], attached: list[str]) -> list[str]:
    """What differs between two lists of mechanisms, each as :meth:`bouton.Mechanism.describe` tells it."""
    then, now = ([json.loads(text) for text in texts] for texts in (saved, attached))
    names = [[values["name"] for values in mechanisms] for mechanisms in (then, now)]
    if names[0] != names[1]:
        return [f"it has {', '.join(names[0])}, and attached are {', '.join(names[1])}"]
    return [
        f"{old['name']}({name}={old.get(name)!r}), and attached is {name}={new.get(name)!r}"
        for old, new in zip(then, now, strict=True)
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _named(who: str, keys: set[str]) -> list[str]:
    return [f"{who} {', '.join(sorted(keys))}"] if keys else []
