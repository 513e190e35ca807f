"""Synaptic mechanisms for any PyTorch model: attach them with one call, see whether they help."""

from bouton.attachment import Attachment, attach, detach
from bouton.bio_config import from_bio_config
from bouton.expansion import consolidate, expand
from bouton.mechanism import Mechanism, register, registry
from bouton.mechanisms import (
    Crystallization,
    DalePrinciple,
    FeedbackAlignment,
    Grapes,
    MultiSynapse,
    PlasticityDiversity,
    SpineRemodeling,
    VolumePlasticity,
)
from bouton.passage import Passage
from bouton.report import Report
from bouton.sites import (
    SITES,
    BackwardWiringRule,
    Deviation,
    ErrorRule,
    RateRule,
    Rewiring,
    StructureRule,
    Synapses,
    WiringRule,
)
from bouton.state.flat_state import flatten_state, unflatten_state
from bouton.synapse import SynapseGroup, find_groups

__version__ = "0.1.0"

__all__ = [
    "SITES",
    "Attachment",
    "BackwardWiringRule",
    "Crystallization",
    "DalePrinciple",
    "Deviation",
    "ErrorRule",
    "FeedbackAlignment",
    "Grapes",
    "Mechanism",
    "MultiSynapse",
    "Passage",
    "PlasticityDiversity",
    "RateRule",
    "Report",
    "Rewiring",
    "SpineRemodeling",
    "StructureRule",
    "SynapseGroup",
    "Synapses",
    "VolumePlasticity",
    "WiringRule",
    "attach",
    "consolidate",
    "detach",
    "expand",
    "find_groups",
    "flatten_state",
    "from_bio_config",
    "register",
    "registry",
    "unflatten_state",
]
