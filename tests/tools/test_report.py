"""The report agrees with the checkpoints."""

import csv

import pytest

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
    assert float(row["gain"]) == pytest.approx(float(row["w2.0"]) - scratch)
    assert "scratch@w" not in row, "there was no control"
    shown = capsys.readouterr().out
    assert f"{float(row['gain']):+.3f}" in shown
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
    for name, gain, path in (("scratch@w", "gain@w", plain), ("cpg@w", "gain@w (cpg)", sharable)):
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
        "id  task         ratio   w1.0  backbone          gain",
        "-----------------------------------------------------",
        " 1  fish           0.8  0.750  a               +0.500",
        "12  trees         0.95      -  bee             -0.250",
        "-----------------------------------------------------",
        "    mean   0.875±0.075  0.750            +0.125±0.375",
    ]


def test_a_task_whose_stages_have_not_run_is_reported(fleet: Fleet) -> None:
    message = refusal(report.main, fleet.files("--dataset", "5"))
    assert "eight_nine" in message and "baseline.sh" in message
