"""Whether a difference is more than chance: tests and intervals."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from scipy.special import bdtrc, stdtrit

LEVEL = 0.05


def at_chance(accuracy: float, labels: Sequence[int]) -> bool:
    """Whether an accuracy is not significantly above that of always answering the most frequent class.

    One-sided binomial test at the 5 % level.

    Args:
        labels: of the samples that the accuracy was measured on.
    """
    samples = len(labels)
    chance = max(Counter(labels).values()) / samples
    right = round(accuracy * samples)
    if right == 0 or chance == 1:
        return True
    return bool(bdtrc(right - 1, samples, chance) >= LEVEL)  # the probability of `right` or more


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of `values` (Student t); NaN for a single value."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half
