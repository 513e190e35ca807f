"""The mechanisms, one file each: importing this package registers all of them."""

from bouton.mechanisms.crystallization import Crystallization
from bouton.mechanisms.dale_principle import DalePrinciple
from bouton.mechanisms.feedback_alignment import FeedbackAlignment
from bouton.mechanisms.grapes import Grapes
from bouton.mechanisms.multi_synapse import MultiSynapse
from bouton.mechanisms.plasticity_diversity import PlasticityDiversity
from bouton.mechanisms.spine_remodeling import SpineRemodeling
from bouton.mechanisms.volume_plasticity import VolumePlasticity

__all__ = [
    "Crystallization",
    "DalePrinciple",
    "FeedbackAlignment",
    "Grapes",
    "MultiSynapse",
    "PlasticityDiversity",
    "SpineRemodeling",
    "VolumePlasticity",
]
