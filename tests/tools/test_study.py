"""The study's tables, from files that the stages would write."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from data.tables import load_table
from tests.helpers import Fleet, refusal
from tools import study
from utils.files import csv_text
from utils.paths import Paths, control_file, widths_file

TASKS = ("zero_one", "two_three", "four_five")


def copy_into(folder: Path, source: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(source, folder)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def studied(fleet: Fleet) -> Fleet:
    """Two seeds of three targets on two backbones each; a backbone's accuracy grows with its id."""
    for seed in (1, 2):
        run = Paths.study_run_name(arch="lenet5", seed=seed, per_class="5")
        paths = Fleet(root=fleet.root, data=fleet.data, run=run).paths
        for name in TASKS:
            copy_into(paths.baselines("digits") / name, fleet.baseline_checkpoint(name))
            copy_into(paths.single_scratch("digits", name), fleet.scratch_checkpoint(name))
        rows = []
        for target_id, target in enumerate(TASKS, 1):
            for backbone_id, backbone in enumerate(TASKS, 1):
                if target == backbone:
                    continue
                reached = 0.5 + 0.1 * backbone_id + 0.01 * seed
                metrics = {"train_accuracy": 1.0, "validation_accuracy": 0.5, "test_accuracy": reached}
                write(widths_file(paths.target("digits", backbone, target)), {"1.0": metrics})
                copy = {"test_accuracy": 0.6, "bytes": 10, "backbone_accuracy_before": 0.9}
                copy |= {"backbone_accuracy_after": 0.4}
                folder = paths.reused("digits", backbone, target, how="copy")
                write(control_file(folder), {"metrics": copy})
                scores = {"ddv_cos": 0.1, "ddv_euc": -backbone_id, "leep": backbone_id}
                rows.append({"target_id": target_id, "task_id": backbone_id, **scores})
        table = paths.table_csv("digits")
        table.parent.mkdir(parents=True)
        table.write_text(csv_text(rows, list(rows[0])))
    return fleet


def test_rules_are_judged_by_what_their_picks_reached(
    studied: Fleet, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "costs_text", lambda *_: "")  # needs trained targets
    flags = studied.files("--dataset", "1-3", "--per_class", "5", "--seeds", "1", "2")
    only_three(monkeypatch)
    study.main(flags)
    out = capsys.readouterr().out
    assert "3 targets, 2 seeds, 12 pairs" in out

    folder = studied.root / "logs/study/lenet5"
    with (folder / "study_digits_rules.csv").open() as file:
        rules = {row["rule"]: row for row in csv.DictReader(file)}
    # Targets 1 and 2 reach 0.8 at best and target 3 0.7, plus the seed's 0.015 on average.
    best, worst = (0.8 + 0.8 + 0.7) / 3 + 0.015, (0.7 + 0.6 + 0.6) / 3 + 0.015
    for rule, value in {"leep": best, "nearest": best, "farthest": worst}.items():
        assert float(rules[rule]["reached"]) == pytest.approx(value)
        assert float(rules[rule]["regret"]) == pytest.approx(best - value)
        assert float(rules[rule]["gain"]) == pytest.approx(value - (best + worst) / 2)
    assert float(rules["leep"]["tau"]) == pytest.approx(1)
    assert float(rules["farthest"]["tau"]) == pytest.approx(-1)
    with (folder / "study_digits_pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 12
    assert {row["copy"] for row in pairs} == {"0.6"} and {row["probe"] for row in pairs} == {""}


def test_unfinished_targets_are_left_out(
    studied: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(study, "costs_text", lambda *_: "")
    only_three(monkeypatch)
    run = Paths.study_run_name(arch="lenet5", seed=2, per_class="5")
    paths = Fleet(root=studied.root, data=studied.data, run=run).paths
    widths_file(paths.target("digits", "two_three", "zero_one")).unlink()
    study.main(studied.files("--dataset", "1-3", "--per_class", "5", "--seeds", "1", "2"))
    assert "zero_one, seed 2: not finished in study/lenet5/seed2-n5, left out" in caplog.text


def test_a_study_without_results_names_its_command(fleet: Fleet) -> None:
    assert "run bash benchmarks/study.sh digits first" in refusal(study.main, fleet.files())


def only_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the digits table to its first three tasks, the only ones that the fleet has."""

    def load(name: str, *, data_root: Path):
        table = load_table(name, data_root=data_root)
        return type(table)(**{**vars(table), "tasks": table.tasks[:3]})

    monkeypatch.setattr(study, "load_table", load)
