"""Whether the hooks of an attachment act."""

from __future__ import annotations


class Switch:
    """On or off, for all hooks of one attachment; a copy is on, whatever the original is."""

    def __init__(self) -> None:
        self.on = True

    def __reduce__(self) -> tuple[type[Switch], tuple[()]]:
        return (Switch, ())
