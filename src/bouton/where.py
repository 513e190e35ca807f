"""``where=``: which layers a mechanism, or an expansion, is to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bouton.mechanism import Where
from bouton.synapse import SynapseGroup


def is_wanted(where: Where, group: SynapseGroup) -> bool:
    """Whether ``where`` chooses a group, by any of the paths at which its weight is found."""
    if where is None:
        return True
    if callable(where):
        # a shared module stands at several paths, and each of them counts
        return any(map(where, group.paths, group.layers))
    return any(fnmatchcase(path, pattern) for path in group.known_as for pattern in _patterns(where))


def unmatched(where: Where, groups: Sequence[SynapseGroup]) -> list[str]:
    """The globs of ``where`` that match no group."""
    paths = [path for group in groups for path in group.known_as]
    return [p for p in _patterns(where) if not any(fnmatchcase(path, p) for path in paths)]


def _patterns(where: Where) -> Iterable[str]:
    if where is None or callable(where):
        return ()
    return (where,) if isinstance(where, str) else where
