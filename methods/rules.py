"""The rules that choose a backbone: the score that each goes by, what the score needs, and what it sends.

A new rule is one entry in `BY_SIMILARITY`, `BY_LABELS` or `BY_RECORD`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods import transferability
from methods.modeldiff import Model

_FLOAT, _SEED = 4, 8  # bytes


@dataclass(frozen=True)
class Seen:
    """The target's training samples, as a candidate's network sees them.

    Attributes:
        features: (n, D), the input of the head.
        logits: (n, source classes).
        labels: int64 (n,), the target's.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor


# From both scratch networks' features of the shared probes: candidate's, target's.
BY_SIMILARITY: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "rsa": transferability.rsa,
    "cka": transferability.cka,
}
# From the candidate's pruned network on the target's training samples.
BY_LABELS: Mapping[str, Callable[[Seen], float]] = {
    "leep": lambda seen: transferability.leep(seen.logits.double().softmax(1), seen.labels),
    "nce": lambda seen: transferability.nce(seen.logits.argmax(1), seen.labels),
    "logme": lambda seen: transferability.logme(seen.features, seen.labels),
    "hscore": lambda seen: transferability.hscore(seen.features, seen.labels),
    "parc": lambda seen: transferability.parc(seen.features, seen.labels),
    "knn": lambda seen: transferability.knn(seen.features, seen.labels),
    "logistic": lambda seen: transferability.logistic(seen.features, seen.labels),
}
# From the candidate's pruned network alone: its own accuracy, and its share of free weights.
BY_RECORD = ("accuracy", "room")
# Accuracy on held-out samples of the target after a few epochs of training on the candidate's pruned network.
RACE = "race"

SCORES = (*BY_SIMILARITY, *BY_LABELS, *BY_RECORD, RACE)
# Scores that take longer than all others together.
EXPENSIVE = ("logistic",)
RULES = ("farthest", "nearest", "random", *SCORES)
# Rules that compare networks on probes.
BY_PROBES = ("farthest", "nearest", *BY_SIMILARITY)
# The label of a rule in the log line of the choice, where it is not its name (as in the published code).
LABELS = {"farthest": "euc", "nearest": "euc"}


def score_of(rule: str) -> str | None:
    """The score that a rule goes by, as the CSV of the scores names it; None for the random rule."""
    return {"farthest": "ddv_euc", "nearest": "ddv_euc", "random": None}.get(rule, rule)


def goodness(rule: str, score: float) -> float:
    """How good a candidate with this score is by a rule: higher is better."""
    return -score if rule == "nearest" else score


def choose(
    scores: Mapping[int, float], *, rule: str, seed: int, losses: Mapping[int, float] | None = None
) -> int:
    """Choose a candidate: the one with the highest score; with "nearest", the lowest; or a random one.

    The lowest loss wins a tie, then the lowest id.

    Args:
        scores: candidate's id → the score that the rule goes by.
        seed: seed of the random rule.
        losses: candidate's id → loss, with "race"; None: ids alone break ties.
    """
    if rule == "random":
        ids = sorted(scores)
        return ids[torch.randint(len(ids), (), generator=torch.Generator().manual_seed(seed)).item()]
    return ranking(scores, rule=rule, seed=seed, losses=losses)[0]


def ranking(
    scores: Mapping[int, float], *, rule: str, seed: int, losses: Mapping[int, float] | None = None
) -> list[int]:
    """The candidates from best to worst; with "random", in an order drawn by `seed`. See `choose`."""
    ids = sorted(scores)
    if rule == "random":
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        return [ids[index] for index in order.tolist()]
    return sorted(
        ids,
        key=lambda candidate: (-goodness(rule, scores[candidate]), (losses or {}).get(candidate, 0.0)),
    )


# What a rule sends over a network for one candidate, in bytes. Images are sent as uint8, texts as int32 token
# ids, and everything computed as float32. Of probes that are no task's own (a public pool's, or noise), both
# devices have copies, and only the seed is sent. Rules by labels and by race send the candidate's packed
# network (`methods.footprint.packed_bytes`) and leave the target's samples where they are.


def distance_bytes(
    candidate: Model, target: Model, *, iterations: int, classes: int, own_probes: bool = True
) -> int:
    """The probes and the candidate's DDV; per mutation its outputs for both signs.

    Args:
        iterations: number of mutations.
        classes: number of the candidate's outputs.
        own_probes: whether the probes are both tasks' own samples.
    """
    if target.reads_keys_and_values:  # each network projects its half
        probes = _projected_bytes(candidate) + _projected_bytes(target)
    else:
        probes = _probes_bytes(candidate, target, own_probes=own_probes)
    ddv = min(len(candidate.probes), len(target.probes))
    return probes + _FLOAT * (ddv + 2 * iterations * classes)


def similarity_bytes(name: str, candidate: Model, target: Model, *, own_probes: bool = True) -> int:
    """The probes, and the candidate's dissimilarities ("rsa") or its Gram matrix ("cka").

    Both matrices are symmetric: half of each is sent.
    """
    count = len(candidate.probes) + len(target.probes)
    values = count * (count - 1) // 2 if name == "rsa" else count * (count + 1) // 2
    return _probes_bytes(candidate, target, own_probes=own_probes) + _FLOAT * values


def record_bytes() -> int:
    """One number."""
    return _FLOAT


def _probes_bytes(candidate: Model, target: Model, *, own_probes: bool) -> int:
    return _probe_bytes(candidate) + _probe_bytes(target) if own_probes else _SEED


def _probe_bytes(model: Model) -> int:
    if model.network.modality == "text":
        return 4 * model.probes.shape[0] * model.probes.shape[1]
    return model.probes.numel()


def _projected_bytes(model: Model) -> int:
    read = model.network.features.inputs[model.network.modality]
    return _FLOAT * len(model.probes) * read.count(model.probes) * read.kv.out_features
