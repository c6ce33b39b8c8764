"""Paired tests: whether the mean of differences is 0."""

from collections.abc import Sequence

from scipy import stats

# Relabellings of the differences that the permutation test draws at most; fewer are enumerated.
_RESAMPLES = 9_999


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p value of Student's t test that the mean difference is 0; 0 if all differ alike."""
    if len({round(value, 12) for value in differences}) == 1:
        return 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def permutation_test(differences: Sequence[float]) -> float:
    """Two-sided p value of the permutation test that swaps the two runs within tasks."""
    found = stats.permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=0,
    )
    return float(found.pvalue)
