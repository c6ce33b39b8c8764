"""The report agrees with the checkpoints."""

import csv
import json
import shutil

import pytest
import scipy.stats

from tests.helpers import Fleet, load, refusal
from tools import report


def read(fleet: Fleet) -> list[dict[str, str]]:
    with fleet.paths.report_file("digits").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_value_in_the_table_comes_from_its_checkpoint(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(fleet.files("--dataset", "3"))
    (row,) = read(fleet)
    scratch = load(fleet.baseline_checkpoint("four_five"))["metrics"]["test_accuracy"]
    chosen = load(fleet.chosen_checkpoint("four_five"))
    assert float(row["scratch"]) == scratch
    assert float(row["pruned"]) == chosen["metrics"]["test_accuracy"]
    assert float(row["ratio"]) == chosen["selection"]["ratio"]
    assert row["backbone"] == "zero_one"
    for width in ("1.0", "1.5", "2.0"):
        checkpoint = fleet.target_folder() / f"width-{width}" / "checkpoint-4.pth.tar"
        assert float(row[f"w{width}"]) == load(checkpoint)["metrics"]["test_accuracy"]
    own = load(fleet.scratch_checkpoint("four_five"))["metrics"]["test_accuracy"]
    assert float(row["own"]) == own
    assert float(row["gain@1.0"]) == pytest.approx(float(row["w1.0"]) - own)
    assert float(row["gain (scratch)"]) == pytest.approx(float(row["w2.0"]) - scratch)
    assert "gain" not in row and "scratch@w" not in row, "there was no control at width 2.0"
    shown = capsys.readouterr().out
    assert f"{float(row['gain@1.0']):+.3f}" in shown
    assert "chosen on the test set" in shown


def test_controls_are_compared_at_the_final_width_of_the_target(fleet: Fleet) -> None:
    width = ("--network_width_multiplier", "from_target")
    fleet.baseline("3", *width)
    fleet.own("3", "--mode", "finetune", *width)
    report.main(fleet.files("--dataset", "3"))
    (row,) = read(fleet)
    plain = fleet.paths.baselines("digits", width_multiplier=2.0) / "four_five" / "checkpoint-4.pth.tar"
    sharable = fleet.paths.control("digits", "four_five", width_multiplier=2.0) / "checkpoint-4.pth.tar"
    assert load(plain)["model_state_dict"]["features.9.weight"].shape == (118, 169)
    assert list(row)[2] == "gain", "the fair gain comes first"
    for name, gain, path in (("scratch@w", "gain (scratch@w)", plain), ("own@w", "gain", sharable)):
        alone = load(path)["metrics"]["test_accuracy"]
        assert float(row[name]) == alone
        assert float(row[gain]) == pytest.approx(float(row["w2.0"]) - alone)


def test_the_text_ends_with_means_and_standard_errors_over_tasks() -> None:
    columns = ["id", "task", "ratio", "w1.0", "backbone", "gain"]
    rows = [
        dict(zip(columns, values, strict=True))
        for values in ((1, "fish", 0.8, 0.75, "a", 0.5), (12, "trees", 0.95, None, "bee", -0.25))
    ]
    assert report.as_text(rows, columns).splitlines() == [
        "id  task   ratio   w1.0  backbone    gain",
        "-----------------------------------------",
        " 1  fish     0.8  0.750  a         +0.500",
        "12  trees   0.95      -  bee       -0.250",
        "-----------------------------------------",
        "    mean   0.875  0.750            +0.125",
        "    ±      0.075                    0.375",
    ]


def test_a_task_whose_stages_have_not_run_is_reported(fleet: Fleet) -> None:
    message = refusal(report.main, fleet.files("--dataset", "5"))
    assert "eight_nine" in message and "baseline.sh" in message


def test_a_stage_that_is_missing_leaves_its_cells_empty(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(fleet.files("--dataset", "1,3"))
    first, second = read(fleet)
    assert first["own"] and not first["backbone"] and not first["w1.0"]
    assert second["backbone"] == "zero_one"


def test_a_scratch_network_at_chance_is_named(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    report.main(fleet.files("--dataset", "3"))
    (row,) = read(fleet)
    named = "p ≥ 0.05): four_five." in capsys.readouterr().out
    assert named == (row.get("at chance") == "yes") == (float(row["scratch"]) < 0.6)


def second_seed(fleet: Fleet, *, add: float) -> None:
    """A run with seed 2 that differs from seed 1 in the target's accuracies."""
    for root in (fleet.checkpoints, fleet.root / "logs"):
        shutil.copytree(root / "lenet5" / "seed1", root / "lenet5" / "seed2")
    path = Fleet(root=fleet.root, data=fleet.data, run="lenet5/seed2").target_folder() / "widths.json"
    widths = json.loads(path.read_text())
    for metrics in widths.values():
        metrics["test_accuracy"] += add
    path.write_text(json.dumps(widths))


def test_a_table_over_seeds_shows_means_and_deviations(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(fleet.files("--dataset", "3"))
    (one,) = read(fleet)
    second_seed(fleet, add=0.02)
    capsys.readouterr()
    report.main(fleet.files("--dataset", "3", "--seeds", "1", "2", "--run", "lenet5/seed{seed}"))
    with fleet.paths.report_file("digits", seeds=[1, 2]).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["w1.0"]) == pytest.approx(float(one["w1.0"]) + 0.01)
    assert float(row["w1.0 sd"]) == pytest.approx(0.02 / 2**0.5)
    assert float(row["gain@1.0"]) == pytest.approx(float(one["gain@1.0"]) + 0.01)
    assert row["own"] == one["own"] and float(row["own sd"]) == 0
    shown = capsys.readouterr().out
    assert f"{float(row['gain@1.0']):+.3f}±0.014" in shown
    assert max(map(len, shown.split("\n\n")[0].splitlines())) <= 100


def test_a_table_names_the_protocol_that_the_run_recorded(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(fleet.files("--dataset", "3", "--protocol", "heldout", "--run", fleet.run))
    assert "chosen on the test set (protocol published)" in capsys.readouterr().out


def test_two_rules_that_swap_their_backbones_between_seeds_look_different() -> None:
    assert (report.cell(["fish", "bees", "fish"]), report.cell(["bees", "fish"])) == (
        "fish/bees",
        "bees/fish",
    )


def test_several_seeds_of_one_run_are_refused(fleet: Fleet) -> None:
    message = refusal(report.main, fleet.files("--seeds", "1", "2", "--run", "mine"))
    assert message == "error: mine is one run, but there are 2 seeds: put {seed} into its name"


def test_the_interval_of_a_gain_is_paired_over_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    tables = [
        [{"id": i, "task": str(i), "gain": gain} for i, gain in enumerate(gains)]
        for gains in ((0.01, 0.03, 0.02), (0.03, 0.03, 0.06))
    ]
    report.print_intervals(tables, ["id", "task", "gain"])
    expected = scipy.stats.t.interval(0.95, 2, loc=0.03, scale=scipy.stats.sem([0.02, 0.03, 0.04]))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "        mean     95 % interval  tasks",
        f"gain  +0.030  {expected[0]:+.3f} to {expected[1]:+.3f}      3",
        "(paired: Student t over tasks, of each task's gain averaged over 2 seeds)",
        "",
    ]


def test_a_rule_gets_a_column_once_there_are_two(fleet: Fleet) -> None:
    for rule in ("farthest", "nearest"):
        fleet.paths.result_csv("digits", rule=rule).write_text("target_id,task_id\n3,1\n")
        report.main(fleet.files("--dataset", "3"))
        (row,) = read(fleet)
        assert ("farthest" in row) == (rule == "nearest")
    assert row["nearest"] == row["w2.0"] and row["nearest backbone"] == "zero_one"


def test_the_tables_of_a_sequence_are_averaged_over_seeds(fresh: Fleet) -> None:
    flags = fresh.files("--in_sequence", "--seeds", "1", "2")
    for seed, end in ((1, 0.5), (2, 0.7)):
        path = Fleet(root=fresh.root, data=fresh.data, run=f"lenet5/seed{seed}").paths.in_sequence_report(
            "digits"
        )
        path.parent.mkdir(parents=True)
        path.write_text(f"id,task,scratch,end,gain\n3,four_five,,{end},{end - 0.4}\n")
    report.main(flags)
    with fresh.paths.in_sequence_report("digits", seeds=[1, 2]).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["task"], row["scratch"]) == ("3", "four_five", "")
    assert (float(row["end"]), float(row["gain"])) == pytest.approx((0.6, 0.2))
    assert float(row["end sd"]) == pytest.approx(0.2 / 2**0.5)

    path.write_text("id,task,end\n1,zero_one,0.5\n")
    assert "learned different sequences, four_five and zero_one: " in refusal(report.main, flags)
