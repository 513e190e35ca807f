"""Synaptic mechanisms for any PyTorch model: attach them with one call, and see whether they help."""

from bouton.attachment import Attachment, attach, detach
from bouton.mechanism import (
    SITES,
    Mechanism,
    Rewiring,
    Synapses,
    register,
    registry,
)
from bouton.mechanisms import Grapes, MultiSynapse, PlasticityDiversity, SpineRemodeling
from bouton.plan import Report
from bouton.synapse import SynapseGroup, find_groups

__version__ = "0.1.0"

__all__ = [
    "SITES",
    "Attachment",
    "Grapes",
    "Mechanism",
    "MultiSynapse",
    "PlasticityDiversity",
    "Report",
    "Rewiring",
    "SpineRemodeling",
    "SynapseGroup",
    "Synapses",
    "attach",
    "detach",
    "find_groups",
    "register",
    "registry",
]
