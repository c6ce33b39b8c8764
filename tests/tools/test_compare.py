"""Comparisons of runs: recorded arguments, accuracies and tests."""

import itertools
import json
import shutil
import statistics

import pytest
import scipy.stats

from tests.helpers import Fleet, load, refusal
from tools import compare
from training.checkpoints import save_checkpoint
from utils.paths import record_file


@pytest.fixture
def two_runs(fleet: Fleet) -> Fleet:
    """The fleet's run, and a copy named mine with another learning rate and accuracy of the target."""
    for root in (fleet.checkpoints, fleet.root / "logs"):
        shutil.copytree(root / "lenet5" / "seed1", root / "mine")
    mine = Fleet(root=fleet.root, data=fleet.data, run="mine")
    path = mine.target_folder() / "checkpoint-4.pth.tar"
    payload = load(path)
    payload["arguments"]["lr"] = 0.5
    save_checkpoint(path, payload)
    widths = mine.target_folder() / "widths.json"
    metrics = json.loads(widths.read_text())
    metrics["2.0"]["test_accuracy"] += 0.25
    widths.write_text(json.dumps(metrics))
    return fleet


def test_runs_are_compared_by_arguments_and_task_by_task(
    two_runs: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Fleet(root=two_runs.root, data=two_runs.data, run="mine")
    record = record_file(mine.paths.pruned("digits", "zero_one"))
    record.write_text(json.dumps(dict(list(json.loads(record.read_text()).items())[:-1])))
    compare.main(["lenet5/seed1", "mine", *two_runs.files()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["A  lenet5/seed1", "B  mine"]
    assert lines[3:7] == [
        "Recorded arguments that differ:",
        "  sparsities (stage 2-2): A: 0.5 0.8; B: 0.5, 0.5 0.8",
        "  lr (stage 3-2): A: 0.001; B: 0.5",
        "",
    ]
    (row,) = [line for line in lines if "four_five" in line]
    assert row.endswith("+0.250")
    assert lines[-1] == "B-A: 1 task in common, too few for a test"


def test_equal_runs_differ_in_nothing(two_runs: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["lenet5/seed{seed}", "mine", *two_runs.files("--column", "own", "--dataset", "1,2")])
    shown = capsys.readouterr().out
    assert "The recorded arguments are the same." in shown
    assert shown.splitlines()[-1] == "B-A: no difference in any of 2 tasks"


def test_a_run_without_the_value_is_refused(two_runs: Fleet) -> None:
    message = refusal(compare.main, ["mine", "other", *two_runs.files()])
    assert message == "error: run other: no task of digits has a value for --column target"


def test_the_permutation_test_counts_the_sign_changes_at_least_as_far_from_zero() -> None:
    differences = [0.1, 0.2, -0.05, 0.3, 0.04]
    means = [
        statistics.fmean(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    observed = abs(statistics.fmean(differences))
    share = sum(abs(mean) >= observed - 1e-12 for mean in means) / len(means)
    assert compare.permutation_test(differences) == pytest.approx(share)
    expected = scipy.stats.ttest_rel(differences, [0.0] * len(differences)).pvalue
    assert compare.t_test(differences) == pytest.approx(expected)
