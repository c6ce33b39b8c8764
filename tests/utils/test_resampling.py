import itertools

import numpy as np
import pytest

from utils.paired_tests import permutation_test
from utils.resampling import bootstrap_mean, holm


def test_the_bootstrap_interval_is_that_of_resampled_targets_and_seeds() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0.1, 0.05, size=(12, 3)) + generator.normal(0, 0.1, size=(12, 1))
    found = bootstrap_mean(values)
    assert found.mean == pytest.approx(values.mean())

    means = []
    for _ in range(3000):
        targets = [generator.integers(12) for _ in range(12)]
        seeds = [generator.integers(3) for _ in range(3)]
        means.append(np.mean([values[target][seed] for target in targets for seed in seeds]))
    low, high = np.percentile(means, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
    assert bootstrap_mean(values) == found


def test_the_paired_p_counts_every_assignment_of_signs() -> None:
    first, second = [0.5, 0.7, 0.6, 0.9, 0.4, 0.8], [0.4, 0.5, 0.65, 0.7, 0.3, 0.75]
    differences = np.subtract(first, second)
    observed = abs(differences.mean())
    signs = list(itertools.product([1, -1], repeat=6))
    extreme = sum(abs((np.array(sign) * differences).mean()) >= observed - 1e-12 for sign in signs)
    assert permutation_test(differences) == pytest.approx(extreme / len(signs))
    assert permutation_test(np.zeros(6)) == 1.0


def test_holm_multiplies_by_the_number_of_tests_left_and_keeps_the_order() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
