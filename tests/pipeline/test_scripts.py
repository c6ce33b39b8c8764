"""The stages as users run them: real `main`s on the digits, with their logs, files and help."""

import argparse
import csv
import itertools
import json
import logging
import platform
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import CPG_cifar100_main_normal as cpg_script
import CPG_MM_main_normal as mm_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import transfer_kv_perceiver_io as transfer_script
from data import prepare
from pipeline.flags import add_common, changed
from pipeline.flags import parser as new_parser
from tests.helpers import (
    EPOCHS,
    RATIOS,
    REPOSITORY,
    Fleet,
    assert_same_checkpoint,
    load,
    refusal,
    run_process,
    same,
    snapshot,
)
from tools import compare, export_task, list_tasks, report, verify_pairs
from tools import select_pruning_ratio as select_script
from utils import logs
from utils.files import read_csv

SCRIPTS = [
    packnet_script,
    cpg_script,
    search_script,
    select_script,
    compare,
    report,
    list_tasks,
    export_task,
    verify_pairs,
    prepare,
    mm_script,
    transfer_script,
]

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - root - INFO - "
MPL = r"\d+\.\d+"
TRAIN_LINE = re.compile(
    STAMP + r"In train\(\)-> Train Ep\. #(\d+) loss: \d+\.\d{3}, accuracy: (\d+\.\d\d), "
    r"lr: (\d[\d.e-]*), sparsity: (\d\.\d{3}), network_width_mpl: (" + MPL + ")"
)
VALIDATION_LINE = re.compile(
    STAMP + r"In validate\(\)-> Val Ep\. #(\d+) loss: \d+\.\d{3}, accuracy: (\d+\.\d\d), "
    r"sparsity: (\d\.\d{3}), task(\d+) ratio: (\d\.\d{3}), zero ratio: (\d\.\d{3}), mpl: ("
    + MPL
    + r"), shared_ratio: (\d\.\d{3})"
)


def lines_of(path: Path, beginning: str) -> list[str]:
    """The lines of a log whose message starts with `beginning`."""
    return [line for line in path.read_text().splitlines() if f" - root - INFO - {beginning}" in line]


def messages(capsys: pytest.CaptureFixture) -> list[str]:
    """Messages logged since the last call, without time stamps."""
    lines = capsys.readouterr().err.splitlines()
    return [line.split(" - root - INFO - ")[1] for line in lines if " - root - INFO - " in line]


def pairs(path: Path) -> dict[str, str]:
    """Backbone by target, from a result CSV."""
    return {row["target_id"]: row["task_id"] for row in rows_of(path)}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Logs.


def test_every_epoch_is_logged_in_the_published_format(trained_fleet: Fleet) -> None:
    log = trained_fleet.scratch_checkpoint("zero_one").with_name("train.log")
    expected = EPOCHS + 3 * len(RATIOS)
    train = [TRAIN_LINE.fullmatch(line) for line in lines_of(log, "In train()")]
    validation = [VALIDATION_LINE.fullmatch(line) for line in lines_of(log, "In validate()")]
    assert len(train) == len(validation) == expected
    assert all(train) and all(validation)
    epochs = ["1", "2", "3", "4", "1", "2", "3", "1", "2", "3"]
    assert [match[1] for match in train] == [match[1] for match in validation] == epochs
    # The rate drops after half and after 0.8 of the epochs; pruning has its own rate.
    assert [match[3] for match in train] == ["0.1", "0.1", "0.01", "0.001"] + ["0.001"] * 6
    sparsities = [float(match[3]) for match in validation]
    assert sparsities[:EPOCHS] == [0.0] * EPOCHS and sparsities == sorted(sparsities)
    assert (sparsities[EPOCHS + 2], sparsities[-1]) == (0.5, 0.8)


def test_a_grown_target_logs_its_width_and_shares(trained_fleet: Fleet) -> None:
    log = trained_fleet.target_folder() / "train.log"
    matches = [VALIDATION_LINE.fullmatch(line) for line in lines_of(log, "In validate()")]
    assert len(matches) == 3 * EPOCHS and {match[4] for match in matches} == {"2"}
    widths = [match[7] for match in matches]
    assert widths == ["1.0"] * 4 + ["1.224744871391589"] * 4 + ["1.4142135623730951"] * 4
    # 0.8 of the backbone was free: the share of the target's weights, times the width multiplier.
    assert matches[0][5] == "0.800"
    assert all(0.5 < float(match[8]) <= 1 for match in matches)
    text = log.read_text()
    assert text.count("It's time to expand the Network\n") == 2
    assert re.search(
        r"INFO - Final accuracy of four_five on zero_one: 0\.\d{4} at width multiplier 2\.0 "
        r"\(scratch baseline 0\.\d{4}\)\n",
        text,
    )


def test_every_log_starts_with_what_differs_from_the_defaults(trained_fleet: Fleet) -> None:
    paths = trained_fleet.paths
    for log, expected in (
        (trained_fleet.baseline_checkpoint("zero_one").with_name("train.log"), "dataset=1-3 .* lr=0.1 "),
        (trained_fleet.target_folder() / "train.log", "backbone=from_csv .* lr=0.001 "),
        (paths.stage_log("digits", "find_backbone"), "candidates=1-3 .* max_iterations=5 "),
        (paths.stage_log("digits", "select_pruning_ratio"), r"target_sparsity=\[0.5, 0.8\] "),
    ):
        first = log.read_text().splitlines()[0]
        assert re.match(rf"{STAMP}Configuration: .*{expected}.*\(the others are the defaults\)", first)
        assert not re.search(r"\b(arch|seed|protocol|batch_size)=", first)


def test_the_configuration_is_logged_as_the_defaults_if_nothing_differs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    parser = new_parser("")
    add_common(parser)
    parser.set_defaults(seed=2)
    monkeypatch.chdir(REPOSITORY)
    for argv in ([], ["--seed", "2", "--logs_root", "logs"], ["--seed", "3"]):
        logs.configuration(changed(parser.parse_args(argv)))
    defaults = "Configuration: the defaults"
    assert caplog.messages == [defaults, defaults, "Configuration: seed=3 (the others are the defaults)"]


def test_the_configuration_lies_beside_every_checkpoint(trained_fleet: Fleet) -> None:
    folder = trained_fleet.target_folder()
    for checkpoint in (
        trained_fleet.baseline_checkpoint("zero_one"),
        trained_fleet.scratch_checkpoint("zero_one"),
        trained_fleet.pruned_checkpoint("zero_one", 0.8),
        folder / "width-1.0" / f"checkpoint-{EPOCHS}.pth.tar",
        folder / f"checkpoint-{EPOCHS}.pth.tar",
    ):
        found = json.loads(checkpoint.with_name("config.json").read_text())
        assert found["recipe"] == load(checkpoint)["arguments"]
        assert (found["flags"]["seed"], found["flags"]["epochs"]) == (1, EPOCHS)
        assert found["command"][1:3] == ["--data_root", str(trained_fleet.data)]
        assert (found["torch"], found["python"]) == (torch.__version__, platform.python_version())


def test_train_csv_has_a_row_per_epoch(trained_fleet: Fleet) -> None:
    for checkpoint, epochs in (
        (trained_fleet.baseline_checkpoint("zero_one"), EPOCHS),
        (trained_fleet.pruned_checkpoint("zero_one", 0.8), 3),
        (trained_fleet.target_folder() / "width-1.5" / "checkpoint-4.pth.tar", EPOCHS),
    ):
        rows = rows_of(checkpoint.with_name("train.csv"))
        assert [row["epoch"] for row in rows] == [str(number + 1) for number in range(epochs)]
        metrics = load(checkpoint)["metrics"]
        assert float(rows[-1]["accuracy"]) == metrics["train_accuracy"]
        assert float(rows[-1]["val_accuracy"]) == metrics["validation_accuracy"]


# Stages 1 and 2.


def test_stage_1_records_every_task_in_the_baseline_file(trained_fleet: Fleet) -> None:
    entries = json.loads(trained_fleet.paths.baseline_file("digits").read_text())
    assert list(entries) == ["zero_one", "two_three", "four_five"]
    for task, shown in entries.items():
        metrics = load(trained_fleet.baseline_checkpoint(task))["metrics"]
        assert shown == f"{metrics['validation_accuracy']:.4f}"


def test_a_checkpoint_records_what_it_is_and_how_it_was_made(trained_fleet: Fleet) -> None:
    payload = load(trained_fleet.pruned_checkpoint("two_three", 0.5))
    assert payload["architecture"] == {"name": "lenet5", "layers": "sharable"}
    assert payload["epoch"] == 3
    assert payload["dataset_history"] == ["two_three"]
    assert payload["dataset2num_classes"] == {"two_three": 2}
    expected = {"config": "digits", "task": "two_three", "seed": 1, "initial_sparsity": 0.0, "epochs": 3}
    assert expected.items() <= payload["arguments"].items()
    assert re.fullmatch("[0-9a-f]{64}", payload["arguments"]["data"])
    assert str(trained_fleet.root) not in repr(payload["arguments"])


def test_pruning_to_a_ratio_frees_that_share_of_every_layer_and_records_its_accuracy(
    trained_fleet: Fleet,
) -> None:
    record = json.loads((trained_fleet.paths.pruned("digits", "zero_one") / "record.txt").read_text())
    assert list(record) == ["0.0", "0.5", "0.8"]
    assert (
        record["0.0"] == load(trained_fleet.scratch_checkpoint("zero_one"))["metrics"]["validation_accuracy"]
    )
    for ratio in RATIOS:
        payload = load(trained_fleet.pruned_checkpoint("zero_one", ratio))
        assert record[str(ratio)] == payload["metrics"]["validation_accuracy"]
        for name, owner in payload["masks"].items():
            assert (owner == 0).sum() == round(ratio * owner.numel())
            assert not payload["model_state_dict"][f"{name}.weight"][owner == 0].any()


def test_packnet_pruning_cuts_once_and_retrains(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    fleet.baseline("1", "--mode", "prune", "--epochs", "2", "--target_sparsity", "0.5", "0.75")
    for ratio in (0.5, 0.75):
        folder = fleet.paths.baselines("digits") / "zero_one" / "prune" / str(ratio)
        owner = load(folder / "checkpoint-2.pth.tar")["masks"]["features.7"]
        assert (owner == 0).sum() == round(ratio * owner.numel())
    assert any(line.startswith("Accuracy of zero_one at sparsity 0.75: ") for line in messages(capsys))


def test_pruning_continues_from_an_initial_sparsity(trained_fleet: Fleet, fresh: Fleet) -> None:
    """Two commands give the same result as one."""
    fresh.own("1", "--target_sparsity", "0.5")
    fresh.own("1", "--mode", "prune", "--initial_sparsity", "0.5", "--target_sparsity", "0.8")
    assert_same_checkpoint(
        fresh.pruned_checkpoint("zero_one", 0.8), trained_fleet.pruned_checkpoint("zero_one", 0.8)
    )


def test_training_into_another_folder_leaves_the_layouts_record_alone(fleet: Fleet, tmp_path: Path) -> None:
    before = snapshot(fleet.root)
    alone = ("--mode", "finetune", "--save_folder", tmp_path / "aside", "--lr", "0.03")
    cpg_script.main(fleet.own_flags("1", *alone))
    assert snapshot(fleet.root) == before
    assert (tmp_path / "aside" / "checkpoint-4.pth.tar").exists()
    cpg_script.main(fleet.own_flags("1", *alone, "--pruning_ratio_to_acc_record_file", tmp_path / "mine"))
    assert list(json.loads((tmp_path / "mine").read_text())) == ["0.0"]


# Stage 2-2.


def with_record(fleet: Fleet, accuracies: dict[str, float], *, baseline: float) -> list[str]:
    """The selection's flags, with the given record and baseline."""
    record, baselines = fleet.root / "record.txt", fleet.root / "baselines.txt"
    record.write_text(json.dumps(accuracies))
    baselines.write_text(json.dumps({"zero_one": f"{baseline:.4f}"}))
    files = ("--pruning_ratio_to_acc_record_file", record, "--jsonfile", baselines)
    return fleet.select_flags("1", "--overwrite", *files)


@pytest.mark.parametrize(
    ("accuracies", "baseline", "ratio"),
    [
        ({"0.0": 0.9, "0.5": 0.8, "0.8": 0.7}, 0.70, 0.8),
        ({"0.0": 0.9, "0.5": 0.8, "0.8": 0.699}, 0.70, 0.8),  # within allow_acc_loss, 0.001
        ({"0.0": 0.9, "0.5": 0.8, "0.8": 0.698}, 0.70, 0.5),
        ({"0.0": 0.9, "0.5": 0.6, "0.8": 0.7}, 0.70, 0.8),  # the highest counts, not the first to fail
    ],
)
def test_the_highest_ratio_that_reaches_the_baseline_is_chosen(
    accuracies: dict, baseline: float, ratio: float, fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    select_script.main(with_record(fleet, accuracies, baseline=baseline))
    assert f"We choose pruning ratio {ratio} (zero_one)" in messages(capsys)
    chosen, source = (
        load(path)
        for path in (fleet.chosen_checkpoint("zero_one"), fleet.pruned_checkpoint("zero_one", ratio))
    )
    assert fleet.chosen_checkpoint("zero_one").name == "checkpoint-3.pth.tar"
    selection = chosen.pop("selection")
    assert same(chosen, source)
    assert (selection["ratio"], selection["accuracy"]) == (ratio, accuracies[str(ratio)])


@pytest.mark.parametrize("unpruned", [0.9, 0.5])
def test_scratch_is_selected_if_no_ratio_reaches_the_baseline(
    unpruned: float, fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    accuracies = {"0.0": unpruned, "0.5": 0.6, "0.8": 0.6}
    select_script.main(with_record(fleet, accuracies, baseline=0.7))
    logged = messages(capsys)
    assert any(line.startswith("We select scratch") for line in logged)
    assert not any(line.startswith("We choose") for line in logged)
    # Under a pruned network's name, for the later stages.
    path = fleet.chosen_checkpoint("zero_one")
    assert path.name == "checkpoint-3.pth.tar"
    assert same(
        load(path)["model_state_dict"], load(fleet.scratch_checkpoint("zero_one"))["model_state_dict"]
    )
    assert load(path)["selection"]["ratio"] == 0.0


# Stage 3-1.


def test_the_search_measures_every_candidate_and_chooses_by_the_rule(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    result = fleet.paths.result_csv("digits")
    fleet.search("3", "--overwrite")
    logged = messages(capsys)
    table = {
        row["task_id"]: row for row in rows_of(fleet.paths.table_csv("digits")) if row["target_id"] == "3"
    }
    assert list(table) == ["1", "2"]
    for task, row in table.items():
        assert f"DDV cos-cos [{task} => 3] {float(row['ddv_cos']):.5f}" in logged
        assert f"DDV euc-cos [{task} => 3] {float(row['ddv_euc']):.5f}" in logged
    names = {"1": "zero_one", "2": "two_three"}
    by_distance = sorted(table, key=lambda task: float(table[task]["ddv_euc"]))
    assert pairs(result) == {"3": by_distance[-1]}
    assert (
        logged[-1]
        == f"Selected backbone for target 3 = (euc) {by_distance[-1]} (four_five on {names[by_distance[-1]]})"
    )

    fleet.search("3", "--overwrite", "--select", "nearest")
    assert pairs(result) == {"3": by_distance[0]}
    named = f"{by_distance[0]} (four_five on {names[by_distance[0]]})"
    assert messages(capsys)[-1] == f"Selected backbone for target 3 = (euc) {named}"

    for task in ("1", "two_three"):
        fleet.search("3", "--overwrite", "--backbone", task)
        chosen = {"1": "1", "two_three": "2"}[task]
        assert pairs(result) == {"3": chosen}
        assert messages(capsys)[-1] == (
            f"Selected backbone for target 3 = (given) {chosen} (four_five on {names[chosen]})"
        )


def test_the_random_choice_is_drawn_by_seed_from_the_candidates(fleet: Fleet) -> None:
    result = fleet.paths.result_csv("digits")
    folder = fleet.paths.baselines("digits")
    chosen = set()
    for seed in range(1, 9):
        flags = ("--overwrite", "--select", "random", "--max_iterations", "0", "--csv_path", result)
        for _ in range(2):
            fleet.search("3", *flags, "--seed", seed, "--baseline_folder", folder)
            chosen.add((seed, pairs(result)["3"]))
    assert len(chosen) == 8
    assert {task for _, task in chosen} == {"1", "2"}


def test_a_later_search_keeps_the_rows_of_other_targets(fleet: Fleet) -> None:
    result, table = fleet.paths.result_csv("digits"), fleet.paths.table_csv("digits")
    before = [row for row in rows_of(table) if row["target_id"] == "3"]
    fleet.search("2")
    fleet.search("1", "--target_id", "1")
    assert pairs(result)["3"] == "1"
    assert list(pairs(result)) == ["1", "2", "3"]
    assert [row for row in rows_of(table) if row["target_id"] == "3"] == before
    assert len(rows_of(table)) == 6


def test_a_search_compares_only_its_candidates(fleet: Fleet) -> None:
    fleet.search("1", "--candidates", "1,2")
    assert pairs(fleet.paths.result_csv("digits"))["1"] == "2"


def test_a_search_with_few_images_uses_fewer_probes(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    fleet.search("1", "--val_batch_size", "1000")
    logged = messages(capsys)
    assert "Task zero_one has only 71 samples to use as probes, not 1000" in logged
    assert pairs(fleet.paths.result_csv("digits"))["1"] in {"2", "3"}


# Stage 3-2.


def test_a_target_grows_from_its_backbones_chosen_checkpoint(trained_fleet: Fleet) -> None:
    folder = trained_fleet.target_folder()
    widths = json.loads((folder / "widths.json").read_text())
    grown = {width: entry["grow"] for width, entry in widths.items()}
    assert grown == {"1.0": True, "1.5": True, "2.0": False}
    final = load(folder / "checkpoint-4.pth.tar")
    assert same(final, load(folder / "width-2.0" / "checkpoint-4.pth.tar"))
    assert final["dataset_history"] == ["zero_one", "four_five"]
    assert final["shared_layer_info"]["four_five"]["network_width_multiplier"] == 2.0**0.5

    backbone = load(trained_fleet.chosen_checkpoint("zero_one"))
    for name, owner in backbone["masks"].items():
        corner = tuple(map(slice, owner.shape))
        before = backbone["model_state_dict"][f"{name}.weight"]
        after = final["model_state_dict"][f"{name}.weight"]
        assert same(after[corner][owner == 1], before[owner == 1])
        assert (final["masks"][name][corner][owner == 1] == 1).all()
        assert (final["masks"][name] == 1).sum() == (owner == 1).sum()


def test_a_target_that_reaches_its_baseline_stays_narrow(
    fleet: Fleet, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "low.txt").write_text('{"four_five": "0.1"}')
    fast = ("--lr", "0.1", "--epochs", "6", "--jsonfile", tmp_path / "low.txt", "--overwrite")
    fleet.target("3", *fast)
    logged = messages(capsys)
    widths = json.loads((fleet.target_folder() / "widths.json").read_text())
    assert list(widths) == ["1.0"] and widths["1.0"]["train_accuracy"] > 0.95 and not widths["1.0"]["grow"]
    assert "It's time to expand the Network" not in logged
    assert "at width multiplier 1.0" in logged[-1]


def test_controls_train_alone_at_the_targets_final_width(fleet: Fleet) -> None:
    for run, flags in (
        (packnet_script.main, fleet.baseline_flags),
        (cpg_script.main, fleet.own_flags),
    ):
        run(flags("3", "--mode", "finetune", "--network_width_multiplier", "from_target"))
    for path in (
        fleet.paths.baselines("digits", width_multiplier=2.0) / "four_five",
        fleet.paths.control("digits", "four_five", width_multiplier=2.0),
    ):
        assert load(path / "checkpoint-4.pth.tar")["model_state_dict"]["classifiers.0.weight"].shape == (
            2,
            int(84 * 2**0.5),
        )
    wide = json.loads(fleet.paths.baseline_file("digits", width_multiplier=2.0).read_text())
    assert list(wide) == ["four_five"]
    record = json.loads((fleet.paths.pruned("digits", "four_five") / "record.txt").read_text())
    assert record["0.0"] == load(fleet.scratch_checkpoint("four_five"))["metrics"]["validation_accuracy"]


# Inference.


def inferred(capsys: pytest.CaptureFixture) -> re.Match:
    lines = [line for line in capsys.readouterr().err.splitlines() if "In validate()" in line]
    assert len(lines) == 1
    match = VALIDATION_LINE.fullmatch(lines[0])
    assert match
    return match


def test_a_target_checkpoint_is_evaluated_as_each_task_it_holds(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    before = snapshot(fleet.root)
    folder = fleet.target_folder()
    flags = ("--mode", "inference", "--load_folder", folder)

    cpg_script.main(fleet.flags("--dataset", "3", *flags))
    own = inferred(capsys)
    last = rows_of(folder / "width-2.0" / "train.csv")[-1]
    assert own[2] == f"{100 * load(folder / 'checkpoint-4.pth.tar')['metrics']['test_accuracy']:.2f}"
    assert (own[1], own[4], own[7]) == ("4", "2", "1.4142135623730951")
    assert own[8] == f"{float(last['shared_ratio']):.3f}"

    cpg_script.main(fleet.flags("--dataset", "zero_one", *flags))
    first = inferred(capsys)
    chosen = load(fleet.chosen_checkpoint("zero_one"))["metrics"]
    assert (first[2], first[4], first[7]) == (f"{100 * chosen['test_accuracy']:.2f}", "1", "1.0")
    assert snapshot(fleet.root) == before


def test_inference_defaults_to_the_layouts_checkpoint(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    for run in (packnet_script.main, cpg_script.main):
        run(fleet.flags("--dataset", "1", "--mode", "inference"))
        match = inferred(capsys)
        path = fleet.baseline_checkpoint if run is packnet_script.main else fleet.scratch_checkpoint
        assert match[2] == f"{100 * load(path('zero_one'))['metrics']['test_accuracy']:.2f}"


# Command lines.


def test_a_script_runs_as_a_program(fresh: Fleet) -> None:
    ended = run_process("packnet_cifar100_main_normal.py", fresh.baseline_flags("1", "--epochs", "1"))
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "Scratch accuracy of zero_one" in ended.stderr
    assert fresh.baseline_checkpoint("zero_one").name == "checkpoint-1.pth.tar"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_explains_every_flag_and_shows_its_default(
    script: object, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    monkeypatch.setenv("NO_COLOR", "1")
    parsers = []
    remember: Callable = argparse.ArgumentParser.parse_args

    def recording(self: argparse.ArgumentParser, *arguments: object) -> argparse.Namespace:
        parsers.append(self)
        return remember(self, *arguments)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", recording)
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    (parser,) = parsers
    assert not parser.allow_abbrev
    for action in parser._actions:
        assert action.help, action.dest
        if action.option_strings and action.dest != "help":
            # The help is on the flag's line, or on the next one if the flag is long.
            flag = rf"^ +{action.option_strings[0]}(?: \S.*)?"
            shown = re.search(rf"{flag}(?:\n +[^-\s].*|  .*)\(default: (.*)\)\.?$", text, re.M)
            assert shown, action.dest
            unset = action.default in (None, False, argparse.SUPPRESS)
            assert unset or shown[1] == str(action.default)


@pytest.mark.parametrize("script", SCRIPTS[:4], ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    "flags",
    [
        ("--no_such_flag", "1"),
        ("--see", "2"),  # no abbreviations
        ("--protocol", "best"),
        ("--seed", "-1"),
        ("--precision", "fp8"),
        ("a_stray_word",),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2_and_writes_nothing(
    script: object, flags: tuple, fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(fresh.flags(*flags))
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not fresh.root.exists()


@pytest.mark.parametrize("script", [packnet_script, cpg_script], ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--epochs", "-1"),
        ("--epochs", "1.5"),
        ("--batch_size", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--weight_decay", "-1"),
        ("--target_sparsity", "1.0"),
        ("--target_sparsity", "-0.1"),
        ("--target_sparsity",),
        ("--network_width_multiplier", "0"),
        ("--mode", "train"),
        ("--load_folder", "somewhere"),  # unused in training from scratch
    ],
    ids=" ".join,
)
def test_impossible_training_flags_end_with_status_2(
    script: object, flags: tuple, fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(fresh.flags("--dataset", "1", *flags))
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]
    assert not fresh.root.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--mode", "prune", "--target_sparsity", "0.5", "0.4"), "must increase strictly"),
        (("--mode", "prune", "--target_sparsity", "0.5", "0.5"), "must increase strictly"),
        (("--mode", "prune", "--initial_sparsity", "0.1"), "above --initial_sparsity"),
        (("--mode", "prune", "--backbone", "2"), "leave out --backbone"),
        (("--mode", "inference", "finetune"), "inference cannot be combined"),
        (("--mode", "finetune", "prune", "--save_folder", "x"), "belong to one mode"),
        (("--mode", "finetune", "prune", "--load_folder", "x"), "belong to one mode"),
        (("--prune_epochs", "0"), "--prune_epochs"),
        (("--pruning_frequency", "0"), "--pruning_frequency"),
        (("--lr_mask", "-1"), "--lr_mask"),
    ],
)
def test_illegal_combinations_are_refused_before_any_work(
    flags: tuple, named: str, fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        cpg_script.main(fresh.flags("--dataset", "1", *flags))
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not fresh.root.exists()


def test_running_a_script_twice_does_not_duplicate_log_lines(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    handlers = len(logging.getLogger().handlers)
    for _ in range(2):
        fleet.select("1")
        assert sum(line.startswith("We choose") for line in messages(capsys)) == 1
    assert len(logging.getLogger().handlers) <= handlers + 1


def test_a_grey_table_of_another_size_trains_and_is_searched(
    tmp_path: Path, make_table: Callable[[str], Path]
) -> None:
    generator = numpy.random.default_rng(0)
    for split, task, name in itertools.product(("train", "test"), ("a", "b"), ("x", "y")):
        folder = tmp_path / "data" / "grey" / split / task / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (24, 24), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    config = make_table('[grey]\nroot = "grey"\nsize = 24\nchannels = 1')
    fleet = Fleet(root=tmp_path / "out", data=tmp_path / "data")
    flags = ("--dataset_config", config)
    fleet.baseline("1-2", *flags)
    fleet.own("1", *flags)
    fleet.search("2", *flags, "--candidates", "1", "--val_batch_size", "4")
    checkpoint = load(fleet.paths.baselines("grey") / "a" / "checkpoint-4.pth.tar")
    assert checkpoint["model_state_dict"]["features.0.weight"].shape == (6, 1, 5, 5)
    assert checkpoint["task_table"]["classes"] == ["x", "y"]
    assert checkpoint["task_table"]["size"] == 24


def test_an_unsupported_image_size_is_refused(
    tmp_path: Path, make_tree: Callable[..., Path], make_table: Callable[[str], Path]
) -> None:
    data = make_tree({"a": ("x", "y")}, size=30)
    config = make_table('[pictures]\nroot = "pictures"\nsize = 30')
    fleet = Fleet(root=tmp_path / "out", data=data)
    message = refusal(packnet_script.main, fleet.baseline_flags("1", "--dataset_config", config))
    assert "LeNet-5 takes images of 16, 20, 24" in message


def test_a_choice_does_not_keep_the_networks_of_all_ratios_in_memory(trained_fleet: Fleet) -> None:
    """For a large network, they would take tens of gigabytes."""
    folder = trained_fleet.pruned_checkpoint("zero_one", 0.5).parent
    seen: list[weakref.ref] = []
    held: list[int] = []

    def read(path: Path) -> dict:
        held.append(sum(reference() is not None for reference in seen))
        payload = load(path)
        del payload["arguments"]  # a published checkpoint does not record its recipe
        seen.append(weakref.ref(payload["model_state_dict"]["features.0.weight"]))
        return payload

    record = {ratio / 10: 0.5 for ratio in range(6)}
    chosen = select_script.read_chosen(
        [folder] * 6, record=record, ratio=0.1, load=read, record_path=folder / "record.txt"
    )
    assert held == [0, 1, 1, 2, 2, 2]
    assert chosen["model_state_dict"]["features.0.weight"] is seen[1]()


def test_networks_pruned_from_another_parent_are_not_chosen(fleet: Fleet) -> None:
    few = ("--overwrite", "--lr", "0.05", "--target_sparsity", "0.5")
    fleet.own("1", *few)
    message = refusal(select_script.main, fleet.select_flags("1", "--overwrite"))
    assert "gradual_prune/0.8/checkpoint-3.pth.tar" in message and "wo_backbone.sh" in message


def test_the_report_holds_targets_that_ended_at_different_widths(fleet: Fleet) -> None:
    fleet.search("1", "--backbone", "zero_one", "--dataset", "2")
    fleet.target("2", "--max_allowed_network_width_multiplier", "2.5")
    report.main(fleet.files("--dataset", "2,3"))
    rows = read_csv(fleet.paths.report_file("digits"), columns=("task", "w2.5"), remedy="")
    assert rows[0]["w2.5"] and not rows[1]["w2.5"]


@pytest.mark.parametrize(
    "script", [name for name in SCRIPTS if name not in (export_task, verify_pairs, prepare)]
)
def test_a_run_stays_below_the_roots(script: object, fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(fleet.files("--run", "../elsewhere"))
    assert ended.value.code == 2
    assert "the name of a run cannot be '../elsewhere'" in capsys.readouterr().err
