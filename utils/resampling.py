"""Intervals of results measured on several targets and seeds, and the correction of several tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9_999
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap_mean(values: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """The mean of `values` with a 95 % percentile interval of the crossed bootstrap.

    Targets and seeds are both resampled with replacement (Owen 2007, the pigeonhole bootstrap): results of
    one target share its images, and results of one seed share their networks.

    Args:
        values: (targets, seeds).
        seed: seed of the resampling.
    """
    measured = np.asarray(values, dtype=np.float64)
    targets, seeds = measured.shape
    generator = np.random.default_rng(seed)
    rows = generator.integers(targets, size=(RESAMPLES, targets))
    columns = generator.integers(seeds, size=(RESAMPLES, seeds))
    means = measured[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(mean=float(measured.mean()), low=float(low), high=float(high))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several tests: adjusted p, which keep the order and are at most 1 (Holm 1979)."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
