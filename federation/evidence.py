"""What a network says about probes that two devices share: enough for a score, and less than its outputs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.modeldiff import Distance, decision_distances, similarities_of_ddvs
from methods.transferability import alignment, dissimilarities, gram, spearman
from models.network import Network
from training.loop import Compute

COS, EUC = "ddv_cos", "ddv_euc"
DDV = "ddv"


@dataclass(frozen=True)
class Comparison:
    """A score of `methods.rules.BY_SIMILARITY`, in two halves.

    Attributes:
        evidence: what one network tells: from its features of the probes.
        score: of what two networks tell.
    """

    evidence: Callable[[Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]


COMPARISONS: Mapping[str, Comparison] = {
    "rsa": Comparison(dissimilarities, spearman),
    "cka": Comparison(gram, alignment),
}


@torch.no_grad()
def evidence_of(
    network: Network, halves: Sequence[Tensor], *, names: Collection[str], compute: Compute
) -> dict[str, Tensor]:
    """What `network` says about probes: its DDVs, float32 (n/2,), if `names` has `DDV`; evidence for others.

    Args:
        network: in evaluation mode.
        halves: the candidate's and the target's half of the probes, (n/2, …) each.
    """
    found = {}
    compared = [name for name in names if name != DDV]
    with compute.autocast:
        if DDV in names:
            cos, euc = decision_distances(network(torch.cat(tuple(halves))))
            found = {COS: cos.float().cpu(), EUC: euc.float().cpu()}
        if compared:
            features = torch.cat([network.encode(half).float() for half in halves]).cpu()
            found |= {name: COMPARISONS[name].evidence(features) for name in compared}
    return found


def distance(candidate: Mapping[str, Tensor], target: Mapping[str, Tensor], *, task: int) -> Distance:
    """ModelDiff's distances of the candidate `task` from the target, by what both say."""
    ddvs = [(found[COS], found[EUC]) for found in (candidate, target)]
    cos, euc = similarities_of_ddvs(*ddvs).tolist()
    return Distance(candidate=task, cos=1.0 - cos, euc=1.0 - euc)


def similarities(candidate: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, float]:
    """The scores of `COMPARISONS` that both give evidence for."""
    names = [name for name in COMPARISONS if name in candidate and name in target]
    return {name: COMPARISONS[name].score(candidate[name], target[name]) for name in names}
