"""Continual-learning metrics of an accuracy matrix, and means over tasks.

R[i][j] is the accuracy on task j after learning task i, both counted from 0 here; only entries with j ≤ i
are used. w[j] is task j's share of all test samples.
"""

import math
import statistics
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def shares(counts: Sequence[float]) -> list[float]:
    """Normalise counts to shares of their sum."""
    total = sum(counts)
    return [count / total for count in counts]


def average_accuracy(matrix: Matrix, counts: Sequence[int]) -> float:
    """Σ_j w_j R[T, j], over the tasks of the last row.

    Args:
        matrix: R.
        counts: number of test samples of each task.
    """
    last = matrix[-1]
    weights = shares(counts[: len(last)])
    return sum(weight * value for weight, value in zip(weights, last, strict=True))


def average_over_time(matrix: Matrix, counts: Sequence[int]) -> float:
    """Mean over i of the average accuracy over tasks 1…i after learning task i."""
    return sum(average_accuracy(matrix[: i + 1], counts) for i in range(len(matrix))) / len(matrix)


def backward_transfer(matrix: Matrix, counts: Sequence[int]) -> float:
    """T/(T−1) · Σ_j w_j (R[T, j] − R[j, j]); 0 for a single task."""
    tasks = len(matrix)
    if tasks < 2:
        return 0.0
    last = matrix[-1]
    change = sum(weight * (last[j] - matrix[j][j]) for j, weight in enumerate(shares(counts[:tasks])))
    return tasks / (tasks - 1) * change


def forgetting(matrix: Matrix) -> float:
    """Mean over j < T of max over i < T of R[i, j], minus R[T, j]; 0 for a single task."""
    tasks = len(matrix)
    if tasks < 2:
        return 0.0
    last = matrix[-1]
    lost = [max(matrix[i][j] for i in range(j, tasks - 1)) - last[j] for j in range(tasks - 1)]
    return sum(lost) / len(lost)


def forward_transfer(matrix: Matrix, counts: Sequence[int], alone: Sequence[float]) -> float:
    """Σ_j w_j (R[j, j] − O[j]).

    Args:
        alone: O, the accuracy on each task of a network trained on that task alone.
    """
    tasks = len(matrix)
    return sum(weight * (matrix[j][j] - alone[j]) for j, weight in enumerate(shares(counts[:tasks])))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean, s/√n; NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error
