"""Optimizers that make the update and its scaling in one pass over the weights on a GPU."""

from bouton.fused.optimizers import SGD, AdamW
from bouton.fused.rates import SeededRates

__all__ = ["SGD", "AdamW", "SeededRates"]
