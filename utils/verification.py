"""Verification metrics: do the two samples of a pair have the same identity?"""

import math
from collections.abc import Sequence


def fold_accuracies(similarities: Sequence[float], same: Sequence[bool], *, folds: int = 10) -> list[float]:
    """Accuracy on each fold if pairs above a similarity threshold are classified as the same identity.

    The threshold of a fold is `best_threshold` of all other folds (the protocol of LFW).

    Args:
        similarities: similarity of each pair; folds are consecutive, equal parts of the list.
        same: whether each pair has one identity.

    Raises:
        ValueError: if the pairs cannot be divided into `folds` equal folds.
    """
    pairs = list(zip(similarities, same, strict=True))
    size, rest = divmod(len(pairs), folds)
    if folds < 2 or not size or rest:
        raise ValueError(f"{len(pairs)} pairs are not {folds} equal folds")
    accuracies = []
    for first in range(0, len(pairs), size):
        threshold = best_threshold(pairs[:first] + pairs[first + size :])
        held = pairs[first : first + size]
        accuracies.append(sum((value > threshold) == truth for value, truth in held) / size)
    return accuracies


def best_threshold(pairs: Sequence[tuple[float, bool]]) -> float:
    """The threshold that classifies most (similarity, same) pairs correctly.

    Candidates lie halfway between neighbouring similarities, and at ±∞; ties go to the lowest.
    """
    ordered = sorted(pairs)
    bounds = [value for value, _ in ordered[1:]] + [math.inf]
    # At -∞ every pair counts as the same; each similarity that the threshold passes makes one more differ.
    right = most = sum(truth for _, truth in ordered)
    best = -math.inf
    for (value, truth), above in zip(ordered, bounds, strict=True):
        right += -1 if truth else 1
        if right > most and above > value:
            most, best = right, (value + above) / 2
    return best


def true_accept_rate(similarities: Sequence[float], same: Sequence[bool], *, far: float) -> float:
    """True accept rate at the lowest threshold whose false accept rate is at most `far`.

    Raises:
        ValueError: unless there are pairs of both kinds.
    """
    pairs = list(zip(similarities, same, strict=True))
    own = [value for value, truth in pairs if truth]
    others = sorted((value for value, truth in pairs if not truth), reverse=True)
    if not own or not others:
        raise ValueError("verification needs pairs of one identity and pairs of two")
    # So many other pairs may be accepted; the next one's similarity is the threshold. The tolerance keeps
    # rounding from lowering a product that should be a whole number.
    allowed = int(far * len(others) + 1e-9)
    return sum(value > others[allowed] for value in own) / len(own)
