"""Choosing a backbone by decision distance vectors (ModelDiff, Li et al. 2021).

Two networks are compared on the same probes, half of them from each one's task. A network's decision
distance vector (DDV) holds the distance between its outputs for probe i and probe i + n/2; two networks
are as far apart as the cosine distance between their DDVs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

RULES = ("farthest", "nearest", "random")


@dataclass(frozen=True)
class Model:
    """A network under comparison.

    Attributes:
        id: of its task.
        network: in evaluation mode.
        probes: (n/2, …), its task's share of the probes, normalised as its task normalises.
    """

    id: int
    network: nn.Module
    probes: Tensor


@dataclass(frozen=True)
class Distance:
    """How far a candidate is from a target, by cosine and by Euclidean DDVs (both compared by cosine)."""

    candidate: int
    cos: float
    euc: float


def decision_distances(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The DDVs (n/2,) by cosine and by Euclidean distance, from a network's outputs (n, classes)."""
    first, second = outputs.chunk(2)
    return 1.0 - cosine_similarity(first, second), (first - second).norm(dim=1)


@torch.no_grad()
def distance(candidate: Model, target: Model, *, probes: Tensor) -> Distance:
    """Compare two networks on `probes` (n, …), the candidate's first."""
    candidate_ddvs = decision_distances(candidate.network(probes))
    target_ddvs = decision_distances(target.network(probes))
    cos, euc = (
        1.0 - cosine_similarity(a.double(), b.double(), dim=0).item()
        for a, b in zip(candidate_ddvs, target_ddvs, strict=True)
    )
    return Distance(candidate=candidate.id, cos=cos, euc=euc)


class _Outputs:
    """One network's outputs for probes of which one at a time is replaced.

    Keeps what the score is made of, so that replacing a probe costs one row and not all pairs.
    """

    def __init__(self, network: nn.Module, probes: Tensor) -> None:
        self.network = network
        self.outputs = network(probes).double()
        self.initial = self.outputs.clone()
        self.distances = torch.cdist(self.outputs, self.outputs, compute_mode="donot_use_mm_for_euclid_dist")
        self.shift_sum = self.outputs.new_zeros(())
        self.distance_sum = self.distances.sum() / 2

    def with_replaced(self, index: int, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What replacing probe `index` by each of `inputs` (k, …) gives.

        Returns:
            outputs (k, classes), distances to all probes (k, n), sum of shifts (k,), sum over pairs (k,).
        """
        outputs = self.network(inputs).double()
        shift = (outputs - self.initial[index]).norm(dim=1)
        shifts = self.shift_sum - (self.outputs[index] - self.initial[index]).norm() + shift
        distances = (outputs[:, None] - self.outputs).norm(dim=2)
        distances[:, index] = 0.0
        pairs = self.distance_sum - self.distances[index].sum() + distances.sum(dim=1)
        return outputs, distances, shifts, pairs

    def replace(self, index: int, output: Tensor, distances: Tensor, shifts: Tensor, pairs: Tensor) -> None:
        """Make one of the replacements that `with_replaced` tried."""
        self.outputs[index] = output
        self.distances[index], self.distances[:, index] = distances, distances
        self.shift_sum, self.distance_sum = shifts, pairs


@torch.no_grad()
def mutate(
    probes: Tensor, networks: Sequence[nn.Module], *, iterations: int, epsilon: float, seed: int
) -> Tensor:
    """Probes changed so that all `networks` tell them apart better and answer them otherwise.

    Each iteration adds `epsilon` to one random element, or subtracts it if that is no better, and keeps
    the change if the score grows: the product over networks of (mean shift of the outputs from those of
    the unchanged probes) · (mean distance between the outputs of two probes). Only the changed probe is
    evaluated.

    Args:
        probes: (n, …); not changed.
        iterations: changes tried.
    """
    probes = probes.clone()
    generator = torch.Generator().manual_seed(seed)
    elements = torch.randint(probes.numel(), (iterations,), generator=generator).tolist()
    size = probes[0].numel()
    states = [_Outputs(network, probes) for network in networks]
    best = torch.stack([state.shift_sum * state.distance_sum for state in states]).prod()
    for element in elements:
        index, inner = divmod(element, size)
        tried = probes[index].repeat(2, *[1] * (probes.dim() - 1))
        tried.view(2, size)[0, inner] += epsilon
        tried.view(2, size)[1, inner] -= epsilon
        results = [state.with_replaced(index, tried) for state in states]
        scores = torch.stack([shifts * pairs for _, _, shifts, pairs in results]).prod(dim=0)
        better = (scores > best).tolist()
        if not any(better):
            continue
        kept = 0 if better[0] else 1
        best = scores[kept]
        probes[index] = tried[kept]
        for state, result in zip(states, results, strict=True):
            state.replace(index, *(part[kept] for part in result))
    return probes


def compare(candidate: Model, target: Model, *, iterations: int, epsilon: float, seed: int) -> Distance:
    """The distance of a candidate from a target on their joint, mutated probes."""
    probes = torch.cat((candidate.probes, target.probes))
    if iterations:
        networks = (candidate.network, target.network)
        probes = mutate(probes, networks, iterations=iterations, epsilon=epsilon, seed=seed)
    return distance(candidate, target, probes=probes)


def choose(distances: Sequence[Distance], *, rule: str, seed: int) -> int:
    """The id of the chosen candidate.

    Args:
        rule: "farthest" (the published code's), "nearest", both by Euclidean DDVs, or "random".
        seed: of the random rule.
    """
    ids = sorted(item.candidate for item in distances)
    if rule == "random":
        return ids[torch.randint(len(ids), (), generator=torch.Generator().manual_seed(seed)).item()]
    sign = {"farthest": 1.0, "nearest": -1.0}[rule]
    return max(distances, key=lambda item: (sign * item.euc, -item.candidate)).candidate
