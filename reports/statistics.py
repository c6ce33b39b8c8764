"""Means over seeds and tasks, their intervals, and paired tests."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from utils.paired_tests import permutation_test, t_test
from utils.significance import interval

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


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
        low, high = interval(values)
        several = len(values) > 1
        mean = math.fsum(values) / len(values)
        return cls(mean, low if several else None, high if several else None, len(values))


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
    return Paired(mean, t_test(differences), permutation_test(differences))


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
