"""Tests and intervals, compared with scipy's."""

import math

import pytest
import scipy.stats

from utils.significance import at_chance, interval


@pytest.mark.parametrize("right", range(0, 61, 3))
def test_chance_is_that_of_the_most_frequent_class(right: int) -> None:
    labels = [0] * 30 + [1] * 20 + [2] * 10
    expected = scipy.stats.binomtest(right, 60, 0.5, alternative="greater").pvalue >= 0.05
    assert at_chance(right / 60, labels) == expected


def test_a_single_class_cannot_be_beaten() -> None:
    assert at_chance(1.0, [0, 0, 0])


def test_the_interval_is_student_t() -> None:
    values = [0.1, 0.25, -0.05, 0.2]
    expected = scipy.stats.t.interval(0.95, 3, loc=0.125, scale=scipy.stats.sem(values))
    assert interval(values) == pytest.approx(expected)
    assert all(map(math.isnan, interval([0.5])))
