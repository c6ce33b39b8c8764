"""The comparison of approaches on a sequence: means over seeds, what is missing, what cannot be compared."""

import csv
import json
from pathlib import Path

import pytest

from tests.helpers import refusal
from tools import report_spg


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def finished(logs: Path, approach: str, seed: int, *, accuracy: float, **arguments: object) -> None:
    """Leave the metrics of a run, as spg_main.py writes them."""
    path = logs / f"spg/digits_5/{approach}/seed{seed}/metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps(
            {
                "average_accuracy": accuracy,
                "forgetting": 0.1,
                "backward_transfer": -0.1,
                "forward_transfer": None if approach == "one" else 0.02,
                "seconds": 10.0 * seed,
                "bytes": 2000,
                "arguments": {"appr": approach, "seed": seed, "data": str(seed), "epochs": 5} | arguments,
            }
        )
    )


def argv(logs: Path, *flags: str) -> list[str]:
    roots = [f"--{name}_root={logs.with_name(name)}" for name in ("data", "checkpoints", "logs")]
    return [*roots, "--seq", "digits_5", *flags]


def test_mean_and_standard_deviation_over_seeds(logs: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, accuracy in ((1, 0.5), (2, 0.7), (3, 0.9)):
        finished(logs, "spg", seed, accuracy=accuracy)
    finished(logs, "one", 1, accuracy=0.8)
    report_spg.main(argv(logs, "--appr", "spg", "one", "er", "--seeds", "1", "2", "3"))
    shown = capsys.readouterr().out
    spg, one = (
        next(line.split() for line in shown.splitlines() if line.startswith(name)) for name in ("spg", "one")
    )
    assert spg == ["spg", "3", "0.700±0.200", "0.100±0.000", "-0.100±0.000", "+0.020±0.000", "20±10", "2,000"]
    assert one == ["one", "1", "0.800", "0.100", "-0.100", "-", "10", "2,000"]
    assert "Not finished: one seed 2, one seed 3, er seed 1, er seed 2, er seed 3." in shown
    assert "not comparable" not in shown
    with (logs / "spg/digits_5/report.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["average_accuracy_sd"]) == pytest.approx(0.2)


def test_runs_with_other_arguments_are_named(logs: Path, capsys: pytest.CaptureFixture) -> None:
    finished(logs, "spg", 1, accuracy=0.5)
    finished(logs, "ewc", 1, accuracy=0.5, ewc_lambda=3.0)
    finished(logs, "er", 1, accuracy=0.5, epochs=9)
    report_spg.main(argv(logs, "--appr", "spg", "ewc", "er"))
    shown = capsys.readouterr().out
    assert "er seed 1 is not comparable with spg seed 1: epochs 9 instead of 5." in shown
    assert "ewc seed 1" not in shown


def test_wrong_names_and_missing_runs_are_refused(logs: Path) -> None:
    assert "unknown approach 'typo': choose from spg" in refusal(
        report_spg.main, argv(logs, "--appr", "spg", "typo", "--check")
    )
    assert "no finished run of spg on digits_5" in refusal(report_spg.main, argv(logs, "--appr", "spg"))
    report_spg.main(argv(logs, "--appr", "spg", "--check"))
