"""Checkpoints: the state of an attachment, which rides in its optimizer's state dict."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bouton.claim import Claims
from bouton.mechanism import Mechanism
from bouton.optimizer_hook import OptimizerHook

KEY = "bouton"  # under which mechanism state stands in an optimizer's state dict
_FRESH = (
    "this optimizer state holds no state of the attached mechanisms, which start fresh from the weights as "
    "they are now: it was saved by a plain optimizer, or by a helper that drops unknown keys. Load the "
    "model's weights before it, and so the handle's own state, if that was saved apart"
)


class State:
    """All that the mechanisms of one attachment remember, and what it must fit."""

    def __init__(self, mechanisms: Sequence[Mechanism], seed: int, claims: Claims) -> None:
        self._mechanisms = [mechanism.describe() for mechanism in mechanisms]
        self._seed, self._claims = seed, claims
        self._apart: list[int] | None = None  # where all claims stood when this was loaded apart

    def save(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors."""
        claims = {claim.key: claim.memory.save() for _, claim in self._claims}
        return {"mechanisms": self._mechanisms, "seed": self._seed, "claims": claims}

    def load(self, state: Mapping[str, Any], apart: bool = False) -> None:
        """Take over what :meth:`save` gave; ``apart`` from the state of an optimizer.

        Raises:
            ValueError: see :meth:`check`; nothing has been loaded then.
        """
        self.check(state)
        for _, claim in self._claims:
            claim.memory.load(state["claims"][claim.key])
        self._apart = self._steps() if apart else None

    @property
    def is_loaded_apart(self) -> bool:
        """Whether it was loaded apart from an optimizer's, and no step was made since."""
        return self._apart == self._steps()

    def _steps(self) -> list[int]:
        return [claim.memory.step for _, claim in self._claims]

    def reset(self) -> None:
        """Start fresh from the weights as they are now, with the draws of ``attach``."""
        self._apart = None
        for group, claim in self._claims:
            claim.reset(group)

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of the same mechanisms on the same weights, and name the difference.

        Raises:
            ValueError: the state is of something else.
        """
        if missing := {"mechanisms", "seed", "claims"} - state.keys():
            raise ValueError(f"this is no state of an attachment: it lacks {', '.join(sorted(missing))}")
        if differences := _differences(state["mechanisms"], self._mechanisms):
            raise ValueError(
                f"this state is of other mechanisms: {'; '.join(differences)}. Attach the same ones in the "
                "same order before loading"
            )
        if state["seed"] != self._seed:
            raise ValueError(
                f"this state was made with seed={state['seed']}, and attached is seed={self._seed}; call "
                f"bouton.attach(..., seed={state['seed']}) before loading"
            )
        own = {claim.key: claim for _, claim in self._claims}
        parts = [
            *_named("the state alone has", state["claims"].keys() - own.keys()),
            *_named("this model alone has", own.keys() - state["claims"].keys()),
        ]
        if parts:
            raise ValueError(f"this state is of another model: {'; '.join(parts)}")
        for key, claim in own.items():
            claim.memory.check_fits(state["claims"][key])


class CheckpointHook(OptimizerHook):
    """Puts the state of an attachment into the state dict of its optimizer, and takes it from there.

    All attachments of one optimizer share one key, in the order in which they were attached. A plain
    optimizer ignores it. What does not fit is refused before the optimizer has loaded anything.
    """

    def __init__(self, optimizer: Optimizer, state: State) -> None:
        self._state = state
        self._found: Mapping[str, Any] | None = None  # between checking and loading
        super().__init__(optimizer)

    def _hook(self) -> list[RemovableHandle]:
        return [
            self._optimizer.register_state_dict_post_hook(self._save),
            self._optimizer.register_load_state_dict_pre_hook(self._check),
            self._optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        state.setdefault(KEY, []).append(self._state.save())

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
        self._state.check(found)
        self._found = found

    def _load(self, optimizer: Optimizer) -> None:
        found, self._found = self._found, None
        if found is not None:
            self._state.load(found)
            return
        if self._state.is_loaded_apart:
            return  # and so belongs to this, as with torch.distributed.checkpoint
        warnings.warn(_FRESH, stacklevel=5)  # the caller of load_state_dict, which torch wraps
        self._state.reset()


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
