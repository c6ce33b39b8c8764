"""Means over seeds and tasks, their intervals, and paired tests."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy
from scipy import special, stats

CONFIDENCE = 0.95
_RESAMPLES = 9_999

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


@cache
def _quantile(degrees: int) -> float:
    """The quantile of Student's t that the intervals use."""
    return float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % confidence interval (Student t); the interval is None for a single value."""

    value: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of at least one value."""
        count = len(values)
        mean = math.fsum(values) / count
        if count < 2:
            return cls(mean, None, None, count)
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        half = _quantile(count - 1) * math.sqrt(variance / count)
        return cls(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class Paired:
    """Differences of paired values.

    Attributes:
        t, permutation: two-sided p-values of the paired t-test and of the permutation test (signs of the
            differences flipped); None for fewer than two pairs, or if all differences are 0.
    """

    difference: Mean
    t: float | None
    permutation: float | None


def paired(differences: Sequence[float]) -> Paired:
    """Test whether the mean of paired differences is 0."""
    mean = Mean.of(differences)
    if len(differences) < 2 or not any(differences):
        return Paired(mean, None, None)
    # Equal differences have no variance; the t statistic is then infinite.
    spread = len(set(differences)) > 1
    t = float(stats.ttest_1samp(differences, 0.0).pvalue) if spread else 0.0
    permuted = stats.permutation_test(
        (numpy.asarray(differences),),
        lambda sample, axis: numpy.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=0,
    )
    return Paired(mean, t, float(permuted.pvalue))


def mean_by(
    rows: Iterable[Row], *, key: Callable[[Row], Key], value: Callable[[Row], float | None]
) -> dict[Key, Mean]:
    """The mean of each group of rows, in the order of first appearance; rows without a value are left out."""
    groups: dict[Key, list[float]] = {}
    for row in rows:
        found = value(row)
        if found is not None:
            groups.setdefault(key(row), []).append(found)
    return {name: Mean.of(values) for name, values in groups.items()}


def spread(mean: Mean) -> Mapping[str, float | int | None]:
    """The columns of a mean in a figure's rows."""
    return {"mean": mean.value, "low": mean.low, "high": mean.high, "seeds": mean.count}
