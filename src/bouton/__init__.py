"""Synaptic mechanisms for any PyTorch model: attach them with one call, see whether they help."""

from bouton.attachment import Attachment, attach, detach
from bouton.mechanism import (
    SITES,
    ErrorRule,
    Mechanism,
    RateRule,
    Rewiring,
    StructureRule,
    Synapses,
    WiringRule,
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
    "ErrorRule",
    "Grapes",
    "Mechanism",
    "MultiSynapse",
    "PlasticityDiversity",
    "RateRule",
    "Report",
    "Rewiring",
    "SpineRemodeling",
    "StructureRule",
    "SynapseGroup",
    "Synapses",
    "WiringRule",
    "attach",
    "detach",
    "find_groups",
    "register",
    "registry",
]
