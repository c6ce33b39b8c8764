"""Choose a backbone by decision distance vectors (ModelDiff, Li et al. 2021).

Two networks are compared on the same n probes, half of them from each network's task. A network's decision
distance vector (DDV) holds the distances between its outputs for probe i and probe i + n/2,
DDV_i = d(f(x_i), f(x_{i + n/2})), where d is the cosine or the Euclidean distance. The distance between two
networks is the cosine distance between their DDVs.

Multimodal networks are compared past the layers that are tied to a modality (MM-Pick-a-back). Their probes
are keys and values, computed by each network's own projection from its own task's samples, and their outputs
are the features that their trunks compute from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from models.network import MultimodalNetwork

# Samples projected at once. The keys and values of large images need a lot of memory.
_CHUNK = 10


@dataclass(frozen=True)
class Model:
    """A network under comparison.

    Attributes:
        id: Id of its task.
        network: In evaluation mode.
        probes: (n/2, …), the half of the probes from its task, as the network reads them.
    """

    id: int
    network: nn.Module
    probes: Tensor

    @property
    def reads_keys_and_values(self) -> bool:
        """Whether it is compared by its trunk's features of keys and values."""
        return isinstance(self.network, MultimodalNetwork)


@dataclass(frozen=True)
class Distance:
    """Cosine distances between a candidate's and a target's DDVs: of cosine and of Euclidean DDVs."""

    candidate: int
    cos: float
    euc: float


def decision_distances(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and the Euclidean DDV, (n/2,) each, of a network's outputs (n, classes)."""
    first, second = outputs.chunk(2)
    return 1.0 - cosine_similarity(first, second), (first - second).norm(dim=1)


@torch.no_grad()
def compare(
    candidates: Sequence[Model], target: Model, *, iterations: int, epsilon: float, seeds: Sequence[int]
) -> list[Distance]:
    """Measure each candidate's distance from a target, on probes mutated for the pair.

    Waits for the device once.

    Args:
        iterations, epsilon: See `mutate`; with 0 iterations the probes are not mutated.
        seeds: One per candidate, so that a distance does not depend on the other candidates.

    Returns:
        One distance per candidate, in their order.

    Raises:
        ValueError: More than 0 iterations on keys and values, whose length differs between modalities.
    """
    if target.reads_keys_and_values:
        if iterations:
            raise ValueError("keys and values are not mutated: pass iterations=0")
        outputs = [features_on_keys_and_values(candidate, target) for candidate in candidates]
    else:
        probe_sets = [torch.cat((candidate.probes, target.probes)) for candidate in candidates]
        if iterations:
            networks = [candidate.network for candidate in candidates]
            probe_sets = mutate(
                probe_sets, networks, target.network, iterations=iterations, epsilon=epsilon, seeds=seeds
            )
        outputs = [
            (candidate.network(probes), target.network(probes))
            for candidate, probes in zip(candidates, probe_sets, strict=True)
        ]
    # One wait for the device, for all candidates.
    similarities = torch.stack([ddv_similarities(*pair) for pair in outputs]).tolist()
    return [
        Distance(candidate=candidate.id, cos=1.0 - cos, euc=1.0 - euc)
        for candidate, (cos, euc) in zip(candidates, similarities, strict=True)
    ]


def ddv_similarities(candidate_outputs: Tensor, target_outputs: Tensor) -> Tensor:
    """Cosine similarities of two networks' cosine and Euclidean DDVs, float64 (2,).

    Args:
        candidate_outputs, target_outputs: (n, …) each, for the same probes, the candidate's first.
    """
    return similarities_of_ddvs(decision_distances(candidate_outputs), decision_distances(target_outputs))


def similarities_of_ddvs(candidate: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Cosine similarities of two networks' DDVs of each kind, float64, as many as kinds."""
    pairs = zip(candidate, target, strict=True)
    return torch.stack([cosine_similarity(a.double(), b.double(), dim=0) for a, b in pairs])


@torch.no_grad()
def features_on_keys_and_values(candidate: Model, target: Model) -> tuple[Tensor, Tensor]:
    """The candidate's and the target's features of the keys and values of both tasks' probes, (n, W) each.

    Each probe is projected by the network of its own task.
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
    """Mutate probes so that both networks of a pair respond to them more diversely (Li et al. 2021).

    Pair p is `networks[p]` and the `common` network, on `probe_sets[p]`. Each iteration picks one random
    element of a pair's probes, tries to add and to subtract `epsilon`, and keeps the sign with the higher
    score (ties go to −ε) if it beats the best score so far. The score is

        ∏_f mean_i ‖f(x_i) − f(x⁰_i)‖ · mean_{i<j} ‖f(x_i) − f(x_j)‖

    over both networks f, with x⁰ the original probes. Only the mutated probe is evaluated, and all pairs
    advance together, so that one pass of the common network serves them all. Nothing waits for the device.

    Args:
        probe_sets: (n, …) each, all of the same shape; not modified.
        networks: One per pair.
        iterations: Mutations tried per pair.
        epsilon: Size of a mutation.
        seeds: One per pair.

    Returns:
        The mutated probes, (n, …) per pair.
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
        sign = (~(scores[:, 0] > scores[:, 1])).long()
        score = scores[every, sign]
        better = score > best
        best = score.where(better, best)
        kept = better.view(-1, *[1] * (probes.dim() - 2))
        probes[every, index] = tried[every, sign].where(kept, probes[every, index])
        state.keep(result, better=better, sign=sign, index=index)
    return list(probes)


def _evaluate_pairs(inputs: Tensor, networks: Sequence[nn.Module], common: nn.Module) -> Tensor:
    """Outputs (2, P, k, classes) for inputs (P, k, …): of each pair's own network, then of the common one.

    Outputs with fewer classes are padded with zeros, which change no Euclidean distance.
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
    """The result of replacing one probe per pair, for each of k replacements.

    Attributes:
        outputs: (2, P, k, classes).
        distances: (2, P, k, n), from the replacement's outputs to those of all probes.
        shift, spread: (2, P, k), as in `_Outputs`.
    """

    outputs: Tensor
    distances: Tensor
    shift: Tensor
    spread: Tensor


class _Outputs:
    """The outputs of both networks of every pair, updated one probe at a time.

    Keeps the terms of the score, so that replacing a probe costs one row of distances instead of all.

    Attributes:
        shift: (2, P), sum over probes of the distance of the outputs from the original ones.
        spread: (2, P), sum of the pairwise distances between outputs.
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
        """The product over the two networks. Sums stand in for the means: the order of scores is the same."""
        return (shift * spread).prod(dim=0)

    def replaced(self, index: Tensor, outputs: Tensor) -> _Replaced:
        """Replace the outputs of probe `index[p]` of each pair by each of `outputs` (2, P, k, classes)."""
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

    def keep(self, result: _Replaced, *, better: Tensor, sign: Tensor, index: Tensor) -> None:
        """Apply replacement `sign` to probe `index` of the pairs in `better` (bool); all (P,)."""
        every, kept = self.every, better[:, None]
        distances = result.distances[:, every, sign].where(kept, self.distances[:, every, index])
        self.outputs[:, every, index] = result.outputs[:, every, sign].where(
            kept, self.outputs[:, every, index]
        )
        self.distances[:, every, index] = distances
        self.distances[:, every, :, index] = distances.transpose(0, 1)
        self.shift = result.shift[:, every, sign].where(better, self.shift)
        self.spread = result.spread[:, every, sign].where(better, self.spread)
