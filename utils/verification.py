"""Metrics of verification: does a pair show one identity?"""

import math
from collections.abc import Sequence


def fold_accuracies(similarities: Sequence[float], same: Sequence[bool], *, folds: int = 10) -> list[float]:
    """Accuracy on each fold of calling those pairs the same whose similarity exceeds a threshold.

    The threshold is the one that is best on all other folds: of those halfway between two neighbouring
    similarities, and below and above all, the lowest of the best.

    Args:
        similarities: of every pair; the folds are equal parts of the list, in its order (as LFW has it).
        same: whether a pair shows one identity.

    Raises:
        ValueError: if the pairs cannot be divided into so many folds.
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
    """The threshold that tells most (similarity, same) pairs apart; see `fold_accuracies`."""
    ordered = sorted(pairs)
    bounds = [value for value, _ in ordered[1:]] + [math.inf]
    # Below all similarities every pair is called the same; each step up calls one more different.
    right = most = sum(truth for _, truth in ordered)
    best = -math.inf
    for (value, truth), above in zip(ordered, bounds, strict=True):
        right += -1 if truth else 1
        if right > most and above > value:
            most, best = right, (value + above) / 2
    return best


def true_accept_rate(similarities: Sequence[float], same: Sequence[bool], *, far: float) -> float:
    """Share of the same pairs above the lowest threshold that at most a share `far` of the others exceed.

    Raises:
        ValueError: without pairs of both kinds.
    """
    pairs = list(zip(similarities, same, strict=True))
    own = [value for value, truth in pairs if truth]
    others = sorted((value for value, truth in pairs if not truth), reverse=True)
    if not own or not others:
        raise ValueError("verification takes pairs of one identity and pairs of two")
    # As many of the others as may be accepted; the next one must not be. (A share that is meant to be a
    # whole number of pairs must not fall below it by rounding.)
    allowed = int(far * len(others) + 1e-9)
    return sum(value > others[allowed] for value in own) / len(own)
