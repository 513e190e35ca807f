"""What a mechanism does to a weight at present, as numbers."""

from __future__ import annotations

import copy
import math

import torch

from bouton.claim import Claim
from bouton.passage import alignment_angle
from bouton.synapse import SynapseGroup
from bouton.tensors.shards import mixing, whole


@torch.no_grad()
def stats_of(claim: Claim, group: SynapseGroup) -> dict[str, float]:
    """The numbers of one claim (:meth:`bouton.Attachment.stats`); its state and draws stay as they are."""
    with mixing(group.weight):
        return _stats_of(claim, group)


def _stats_of(claim: Claim, group: SynapseGroup) -> dict[str, float]:
    claim.memory.settle()
    site = claim.mechanism.site
    if site == "structure":
        turned = float(claim.memory.changed)
        share = turned / (claim.memory.events * group.weight.numel()) if turned else 0.0
        numbers = {"turnover": share, "changed": turned, "events": float(claim.memory.events)}
        return {**numbers, "steps": float(claim.memory.step)}
    if site == "wiring":
        angle = math.nan if claim.sample is None else alignment_angle(group, *claim.sample)
        return {} if math.isnan(angle) else {"angle": angle}
    if not group.weight.numel():
        return {}
    probe, weight, companions = copy.deepcopy(claim), group.effective(), group.beside()
    if site == "error":
        factor = probe.error_factor(whole(weight), [whole(companion) for companion in companions])
    else:
        # A rule with a state has seen this gradient already, and would go one step further.
        gradient = None if any(claim.memory.states) else group.weight.grad
        factor = probe.rate(weight, gradient, companions)
    factor = whole(factor).double()
    numbers = {
        "mean": factor.mean().item(),
        "std": factor.std(correction=0).item(),
        "min": factor.amin().item(),
        "max": factor.amax().item(),
    }
    return numbers | ({"steps": float(claim.memory.step)} if site == "rate" else {})
