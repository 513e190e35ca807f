"""Several weights for each weight of a model, and back to one: a copy of the model each way."""

from bouton.expansion.consolidation import consolidate
from bouton.expansion.expanded import Expanded
from bouton.expansion.expansion import expand

__all__ = ["Expanded", "consolidate", "expand"]
