"""Choosing a backbone by decision distance vectors (ModelDiff, Li et al. 2021).

Two networks are compared on the same probes, half of them from each one's task. A network's decision
distance vector (DDV) holds the distance between its outputs for probe i and probe i + n/2; two networks
are as far apart as the cosine distance between their DDVs.

Networks that can read several modalities are compared where modality no longer matters: their probes are
the keys and values that each one's own projection makes of its own task's samples, and their outputs are
the features that their trunks make of these (MM-Pick-a-back).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from models.network import MultimodalNetwork

RULES = ("farthest", "nearest", "random")

# Samples projected at once: the keys and values of large images take much room.
_CHUNK = 10


@dataclass(frozen=True)
class Model:
    """A network under comparison.

    Attributes:
        id: of its task.
        network: in evaluation mode.
        probes: (n/2, …), its task's share of the probes, as the network takes them.
    """

    id: int
    network: nn.Module
    probes: Tensor

    @property
    def reads_keys_and_values(self) -> bool:
        """Whether it is compared by what its trunk makes of keys and values."""
        return isinstance(self.network, MultimodalNetwork)


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
def compare(
    candidates: Sequence[Model], target: Model, *, iterations: int, epsilon: float, seeds: Sequence[int]
) -> list[Distance]:
    """The distance of each candidate from a target, on probes of both that were mutated for the pair.

    Args:
        iterations, epsilon: of `mutate`; 0 iterations leave the probes as they are.
        seeds: one a candidate, so that a distance does not depend on what else is compared.

    Raises:
        ValueError: for more than 0 iterations on keys and values, which differ in length between modalities.
    """
    if target.reads_keys_and_values:
        if iterations:
            raise ValueError("keys and values are not mutated")
        return [
            distance(candidate.id, *features_on_keys_and_values(candidate, target))
            for candidate in candidates
        ]
    probe_sets = [torch.cat((candidate.probes, target.probes)) for candidate in candidates]
    if iterations:
        networks = [candidate.network for candidate in candidates]
        probe_sets = mutate(
            probe_sets, networks, target.network, iterations=iterations, epsilon=epsilon, seeds=seeds
        )
    return [
        distance(candidate.id, candidate.network(probes), target.network(probes))
        for candidate, probes in zip(candidates, probe_sets, strict=True)
    ]


def distance(candidate: int, candidate_outputs: Tensor, target_outputs: Tensor) -> Distance:
    """Compare two networks by their outputs (n, …) for the same probes, the candidate's probes first."""
    cos, euc = (
        1.0 - cosine_similarity(a.double(), b.double(), dim=0).item()
        for a, b in zip(
            decision_distances(candidate_outputs), decision_distances(target_outputs), strict=True
        )
    )
    return Distance(candidate=candidate, cos=cos, euc=euc)


@torch.no_grad()
def features_on_keys_and_values(candidate: Model, target: Model) -> tuple[Tensor, Tensor]:
    """The features (n, W) that either trunk makes of the keys and values of both tasks' probes.

    Each probe is projected by the network of its own task; a few at a time, since modalities differ in the
    length of their sequences.
    """
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    for owner in (candidate, target):
        for samples in owner.probes.split(_CHUNK):
            kv, mask = owner.network.features.project(samples, owner.network.modality)
            for model, found in zip((candidate, target), features, strict=True):
                found.append(model.network.features.trunk(kv, mask))
    return torch.cat(features[0]), torch.cat(features[1])


@torch.no_grad()
def mutate(
    probe_sets: Sequence[Tensor],
    networks: Sequence[nn.Module],
    common: nn.Module,
    *,
    iterations: int,
    epsilon: float,
    seeds: Sequence[int],
) -> list[Tensor]:
    """Probes changed so that both networks of a pair tell them apart better and answer them otherwise.

    Pair p is `networks[p]` and the `common` network, on `probe_sets[p]`. Each iteration adds `epsilon` to
    one random element of a pair's probes, or subtracts it if that is no better, and keeps the change if
    the score grows: the product over the two networks of (mean shift of the outputs from those of the
    unchanged probes) · (mean distance between the outputs of two probes). Only the changed probe is
    evaluated, and the pairs go in step, so that one pass of the common network serves them all.

    Args:
        probe_sets: (n, …) each, all of one shape; not changed.
        iterations: changes tried on each pair.
        seeds: one a pair.
    """
    probes = torch.stack(tuple(probe_sets))
    count, elements = probes.shape[0], probes[0].numel()
    size = probes[0, 0].numel()
    every = torch.arange(count, device=probes.device)
    drawn = torch.stack(
        [
            torch.randint(elements, (iterations,), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    ).to(probes.device)
    state = _Outputs(_evaluate_pairs(probes, networks, common))
    best = state.scores(state.shift, state.spread)
    signs = torch.tensor([epsilon, -epsilon], dtype=probes.dtype, device=probes.device)
    for elements_now in drawn.T:
        index, inner = elements_now // size, elements_now % size
        tried = probes[every, index][:, None].repeat(1, 2, *[1] * (probes.dim() - 2))
        tried.view(count, 2, size)[every, :, inner] += signs
        result = state.replaced(index, _evaluate_pairs(tried, networks, common))
        scores = state.scores(result.shift, result.spread)
        better = scores > best[:, None]
        kept = better.any(dim=1).nonzero().squeeze(1)
        sign = (~better[kept, 0]).long()
        probes[kept, index[kept]] = tried[kept, sign]
        best[kept] = scores[kept, sign]
        state.keep(result, kept=kept, sign=sign, index=index[kept])
    return list(probes)


def _evaluate_pairs(inputs: Tensor, networks: Sequence[nn.Module], common: nn.Module) -> Tensor:
    """Outputs (2, P, k, classes) for inputs (P, k, …): each pair's own network's, then the common one's.

    Zeros fill up outputs of fewer classes; they change no Euclidean distance.
    """
    own = [network(part) for network, part in zip(networks, inputs, strict=True)]
    shared = common(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
    classes = max(shared.shape[-1], *(part.shape[-1] for part in own))
    outputs = inputs.new_zeros((2, *inputs.shape[:2], classes), dtype=torch.float64)
    for pair, part in enumerate(own):
        outputs[0, pair, :, : part.shape[-1]] = part
    outputs[1, ..., : shared.shape[-1]] = shared
    return outputs


@dataclass(frozen=True)
class _Replaced:
    """What replacing one probe of every pair gives, for each of k replacements.

    Attributes:
        outputs: (2, P, k, classes).
        distances: (2, P, k, n), from the replacement to all probes.
        shift, spread: (2, P, k), as in `_Outputs`.
    """

    outputs: Tensor
    distances: Tensor
    shift: Tensor
    spread: Tensor


class _Outputs:
    """The outputs of both networks of every pair, for probes of which one at a time is replaced.

    Keeps what the score is made of, so that replacing a probe costs one row and not all pairs of probes.

    Attributes:
        shift: (2, P), sum over probes of how far the outputs are from the first ones.
        spread: (2, P), sum of the distances between two probes' outputs.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        self.initial = outputs.clone()
        self.distances = torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist")
        self.shift = outputs.new_zeros(outputs.shape[:2])
        self.spread = self.distances.sum(dim=(2, 3)) / 2
        self.every = torch.arange(outputs.shape[1], device=outputs.device)

    @staticmethod
    def scores(shift: Tensor, spread: Tensor) -> Tensor:
        """The product over the two networks; means instead of sums would change no comparison."""
        return (shift * spread).prod(dim=0)

    def replaced(self, index: Tensor, outputs: Tensor) -> _Replaced:
        """What replacing probe `index[p]` of each pair by `outputs` (2, P, k, classes) gives."""
        initial = self.initial[:, self.every, index]
        before = (self.outputs[:, self.every, index] - initial).norm(dim=-1)
        after = (outputs - initial[:, :, None]).norm(dim=-1)
        distances = (outputs[:, :, :, None] - self.outputs[:, :, None]).norm(dim=-1)
        distances[:, self.every, :, index] = 0.0
        old = self.distances[:, self.every, index].sum(dim=-1)
        return _Replaced(
            outputs=outputs,
            distances=distances,
            shift=(self.shift - before)[..., None] + after,
            spread=(self.spread - old)[..., None] + distances.sum(dim=-1),
        )

    def keep(self, result: _Replaced, *, kept: Tensor, sign: Tensor, index: Tensor) -> None:
        """Make replacement `sign` of the pairs `kept`, of their probes `index`; all (kept,)."""
        distances = result.distances[:, kept, sign]
        self.outputs[:, kept, index] = result.outputs[:, kept, sign]
        self.distances[:, kept, index] = distances
        self.distances[:, kept, :, index] = distances.transpose(0, 1)
        self.shift[:, kept] = result.shift[:, kept, sign]
        self.spread[:, kept] = result.spread[:, kept, sign]


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
