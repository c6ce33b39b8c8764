"""The metrics on matrices that were worked out by hand."""

import math

import pytest

from utils.metrics import (
    average_accuracy,
    average_over_time,
    backward_transfer,
    forgetting,
    forward_transfer,
    mean_and_error,
)

# After task 1: 0.8. After task 2: 0.6 on task 1, 0.7 on task 2. After task 3: 0.5, 0.75, 0.9.
MATRIX = [[0.8], [0.6, 0.7], [0.5, 0.75, 0.9]]
EQUAL = [100, 100, 100]
UNEQUAL = [100, 100, 200]


def test_average_accuracy() -> None:
    assert average_accuracy(MATRIX, EQUAL) == pytest.approx((0.5 + 0.75 + 0.9) / 3)
    assert average_accuracy(MATRIX, UNEQUAL) == pytest.approx(0.25 * 0.5 + 0.25 * 0.75 + 0.5 * 0.9)


def test_average_over_time() -> None:
    assert average_over_time(MATRIX, EQUAL) == pytest.approx((0.8 + 0.65 + 2.15 / 3) / 3)
    # Shares are relative to the tasks learned so far.
    assert average_over_time(MATRIX, UNEQUAL) == pytest.approx((0.8 + 0.65 + 0.7625) / 3)


def test_backward_transfer() -> None:
    # (0.5 - 0.8) + (0.75 - 0.7) + 0 = -0.25, over T - 1 = 2 tasks.
    assert backward_transfer(MATRIX, EQUAL) == pytest.approx(-0.125)
    # 3/2 · (0.25 · -0.3 + 0.25 · 0.05)
    assert backward_transfer(MATRIX, UNEQUAL) == pytest.approx(-0.09375)


def test_forgetting() -> None:
    # Task 1: best before the last was 0.8, now 0.5; task 2: 0.7, now 0.75.
    assert forgetting(MATRIX) == pytest.approx((0.3 - 0.05) / 2)


def test_forward_transfer() -> None:
    assert forward_transfer(MATRIX, EQUAL, [0.8, 0.6, 0.6]) == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert forward_transfer(MATRIX, UNEQUAL, [0.8, 0.6, 0.6]) == pytest.approx(0.25 * 0.1 + 0.5 * 0.3)


def test_published_matrix() -> None:
    """The metrics that the published run reported for its accuracy matrix, rounded to three places."""
    matrix = [
        [0.724],
        [0.654, 0.690],
        [0.661, 0.662, 0.682],
        [0.644, 0.666, 0.649, 0.733],
        [0.636, 0.657, 0.618, 0.710, 0.775],
        [0.632, 0.635, 0.591, 0.681, 0.736, 0.715],
        [0.661, 0.609, 0.581, 0.661, 0.713, 0.693, 0.724],
        [0.624, 0.629, 0.623, 0.672, 0.722, 0.667, 0.720, 0.743],
        [0.634, 0.617, 0.610, 0.670, 0.735, 0.671, 0.702, 0.708, 0.697],
        [0.658, 0.640, 0.599, 0.655, 0.741, 0.659, 0.707, 0.699, 0.673, 0.666],
    ]
    counts = [1000] * 10
    assert average_accuracy(matrix, counts) == pytest.approx(0.6697, abs=5e-4)
    assert average_over_time(matrix, counts) == pytest.approx(0.6761, abs=5e-4)
    assert backward_transfer(matrix, counts) == pytest.approx(-0.0502, abs=5e-4)


def test_a_single_task() -> None:
    assert backward_transfer([[0.5]], [10]) == 0
    assert forgetting([[0.5]]) == 0
    assert average_over_time([[0.5]], [10]) == 0.5


def test_the_standard_error_of_a_mean() -> None:
    # Deviation √((1 + 0 + 1) / 2) = 1, over √3.
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    mean, error = mean_and_error([0.7])
    assert mean == 0.7 and math.isnan(error)
