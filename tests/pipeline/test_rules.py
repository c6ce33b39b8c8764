"""The search by several rules: scores in one table, choices side by side."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import pickaback_perceiverIO as search_script
from data.loading import Samples, load_task
from data.tables import load_table
from methods import transferability
from methods.footprint import packed_bytes
from methods.ownership import SharedNetwork
from methods.rules import SCORES
from pipeline import search
from pipeline.architectures import SHARABLE, architecture
from pipeline.scores import LabelledSample
from tests.helpers import RATIOS, Fleet, load, refusal, same, snapshot


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    """The rows of target 3, by candidate."""
    with path.open(newline="") as file:
        return {row["task_id"]: row for row in csv.DictReader(file) if row["target_id"] == "3"}


def chosen(fleet: Fleet, rule: str | None = None) -> str:
    (row,) = rows_of(fleet.paths.result_csv("digits", rule=rule))
    return row


def forbid_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "compare", lambda *_, **__: pytest.fail("computed again"))


def test_choices_of_several_rules_lie_side_by_side(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last choice is the published file's; no rule is computed twice."""
    fleet.search("3", "--select", "farthest")
    fleet.search("3", "--select", "nearest")
    assert {chosen(fleet, "farthest"), chosen(fleet, "nearest")} == {"1", "2"}
    assert chosen(fleet) == chosen(fleet, "nearest")
    assert chosen(fleet, "given") == "1"

    forbid_computing(monkeypatch)
    for rule in ("farthest", "nearest", "farthest"):
        fleet.search("3", "--select", rule)
        assert chosen(fleet) == chosen(fleet, rule)
    before = snapshot(fleet.root)
    fleet.search("3", "--select", "farthest")
    assert snapshot(fleet.root) == before


def test_a_choice_that_is_not_the_last_one_is_listed_as_work(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    for rule in ("farthest", "nearest"):
        fleet.search("3", "--select", rule, "--scores", "chosen")
    before = snapshot(fleet.root)
    capsys.readouterr()
    fleet.search("3", "--select", "nearest", "--list_unfinished")
    assert capsys.readouterr().out == ""
    fleet.search("3", "--select", "farthest", "--list_unfinished")
    assert capsys.readouterr().out == "four_five\n"
    assert snapshot(fleet.root) == before


def test_a_choice_of_an_earlier_version_counts_for_its_rule(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.search("3", "--select", "farthest")
    logs = fleet.paths.result_csv("digits").parent
    for path in [*logs.glob("*_result_*"), *logs.glob("*_table.csv.arguments.json")]:
        path.unlink()
    kept = chosen(fleet)
    with monkeypatch.context() as patch:
        forbid_computing(patch)
        before = snapshot(fleet.root)
        fleet.search("3", "--select", "farthest")
        assert snapshot(fleet.root) == before
    fleet.search("3", "--select", "nearest")
    assert chosen(fleet, "farthest") == kept != chosen(fleet)


def test_another_given_task_replaces_the_one_before(fleet: Fleet) -> None:
    fleet.search("3", "--backbone", "two_three", "--scores", "chosen")
    assert chosen(fleet) == chosen(fleet, "given") == "2"


def test_a_file_of_ones_own_holds_the_choices_of_one_rule(fleet: Fleet, tmp_path: Path) -> None:
    flags = ("--csv_path", tmp_path / "mine.csv", "--scores", "chosen")
    fleet.search("3", *flags)
    assert {path.name for path in tmp_path.glob("mine*")} == {"mine.csv", "mine.csv.arguments.json"}
    message = refusal(search_script.main, fleet.search_flags("3", *flags, "--select", "nearest"))
    assert "select (farthest recorded, nearest requested)" in message


def test_one_search_writes_the_scores_of_all_cheap_rules(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    """Scores by labels are those of the candidate's chosen network on the target's training samples."""
    fleet.search("3", "--select", "leep")
    rows = rows_of(fleet.paths.table_csv("digits"))
    table = load_table("digits", data_root=fleet.data)
    target = table.task("four_five")
    data = load_task(table, target, data_root=fleet.data, protocol="published", seed=1, device="cpu")
    build = architecture("lenet5", layers=SHARABLE, in_channels=table.channels, size=table.size)
    size = 0
    for candidate, row in rows.items():
        task = table.task(candidate)
        path = fleet.chosen_checkpoint(task.name)
        shared = SharedNetwork.from_payload(load(path), build=build, source=path)
        network = shared.as_task(task.name)
        with torch.no_grad():
            features = network.encode(data.to_inputs(data.train.inputs))
            logits = network.classifiers[0](features)
        labels = data.train.labels
        expected = {
            "leep": transferability.leep(logits.softmax(1), labels),
            "parc": transferability.parc(features, labels),
            "room": 1 - shared.owned_shares()[task.name],
            "accuracy": load(path)["metrics"]["validation_accuracy"],
        }
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-4)
        assert {name for name in SCORES if not row[name]} == {"logistic", "race"}
        size += packed_bytes(shared)
    best = max(rows, key=lambda candidate: float(rows[candidate]["leep"]))
    assert chosen(fleet) == chosen(fleet, "leep") == best
    log = capsys.readouterr().err
    assert f"Selected backbone for target 3 = (leep) {best}" in log
    assert re.search(
        rf"Cost of the scores of 2 candidates for target 3: .* leep \d+\.\d\d s {size:,} bytes", log
    )


def test_scores_that_a_search_does_not_compute_are_kept_while_they_hold(fleet: Fleet) -> None:
    table = fleet.paths.table_csv("digits")
    fleet.search("3", "--select", "logistic")
    before = rows_of(table)
    assert all(row["logistic"] for row in before.values())
    fleet.search("3", "--select", "nearest")
    assert rows_of(table) == before
    fleet.search("3", "--select", "nearest", "--overwrite", "--epsilon", "0.2")
    assert not any(row["logistic"] for row in rows_of(table).values())


def test_a_retrained_candidate_refuses_the_choice_by_labels_but_not_by_distance(fleet: Fleet) -> None:
    for rule in ("knn", "farthest"):
        fleet.search("3", "--select", rule)
    path = fleet.chosen_checkpoint("zero_one")
    others = [fleet.pruned_checkpoint("zero_one", ratio) for ratio in RATIOS]
    other = next(o for o in others if not same(load(o)["masks"], load(path)["masks"]))
    path.write_bytes(other.read_bytes())
    fleet.search("3", "--select", "farthest")
    message = refusal(search_script.main, fleet.search_flags("3", "--select", "knn"))
    assert "pruned (" in message and "result_knn.csv was made with other arguments" in message


def test_a_search_over_stage_1_alone_leaves_the_other_scores_empty(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(fleet.paths.pruned("digits", "zero_one"))
    fleet.search("3", "--select", "cka")
    rows = rows_of(fleet.paths.table_csv("digits"))
    assert {name for name in SCORES if rows["1"][name]} == {"rsa", "cka"}
    assert rows["2"]["leep"]
    assert "No scores from the pruned networks of 1 candidates" in capsys.readouterr().err
    for rule in ("leep", "room"):
        message = refusal(search_script.main, fleet.search_flags("3", "--select", rule))
        assert "zero_one" in message and "select_pruning_ratio_of_backbone.sh" in message


def test_a_table_of_four_columns_is_extended(fleet: Fleet) -> None:
    path = fleet.paths.table_csv("digits")
    lines = path.read_text().splitlines()
    path.write_text("".join(",".join(line.split(",")[:4]) + "\n" for line in lines))
    before = rows_of(path)
    fleet.search("2")
    after = rows_of(path)
    assert {name: row | dict.fromkeys(SCORES, "") for name, row in before.items()} == after


@pytest.mark.parametrize("protocol", ["published", "heldout"])
def test_the_sample_is_of_the_training_samples_with_every_class(protocol: str, digits_root: Path) -> None:
    table = load_table("digits", data_root=digits_root)
    task = table.task("four_five")
    data = load_task(table, task, data_root=digits_root, protocol=protocol, seed=1, device="cpu")
    drawn = LabelledSample.draw(data, 20, seed=3).samples
    assert len(drawn) <= 20 and drawn.labels.bincount().min() >= 9

    def contents(samples: Samples) -> set[tuple[bytes, int]]:
        images = (image.numpy().tobytes() for image in samples.inputs)
        return set(zip(images, samples.labels.tolist(), strict=True))

    assert contents(drawn) < contents(data.train)
    everything = LabelledSample.draw(data, 10_000, seed=3).samples
    assert torch.equal(everything.inputs, data.train.inputs)


def test_a_class_with_one_sample_has_no_scores_by_labels(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = LabelledSample.draw

    def first_of_a_class(*arguments: object, **more: object) -> LabelledSample:
        drawn = draw(*arguments, **more)
        few = torch.tensor([0, *drawn.samples.labels.ne(drawn.samples.labels[0]).nonzero()[:3, 0].tolist()])
        return LabelledSample(Samples(drawn.samples.inputs[few], drawn.samples.labels[few]), drawn.to_inputs)

    monkeypatch.setattr(LabelledSample, "draw", first_of_a_class)
    fleet.paths.table_csv("digits").unlink()
    fleet.search("3", "--select", "accuracy")
    assert not any(row["leep"] for row in rows_of(fleet.paths.table_csv("digits")).values())
    message = refusal(search_script.main, fleet.search_flags("3", "--select", "leep"))
    assert "target four_five has a class with a single training sample: --select leep needs two" in message


def test_a_choice_records_what_its_rule_needs_and_no_more(fleet: Fleet) -> None:
    """Otherwise choices of earlier versions would not be recognised."""
    for rule in ("farthest", "parc"):
        fleet.search("3", "--select", rule)
    recorded = {}
    for rule in ("farthest", "parc"):
        path = fleet.paths.result_csv("digits", rule=rule)
        recorded[rule] = set(json.loads(path.with_name(f"{path.name}.arguments.json").read_text())["3"])
    assert recorded["farthest"] == {
        *("candidates", "networks", "val_batch_size", "seed", "protocol", "max_iterations", "epsilon"),
        *("precision", "select", "mutation", "chosen"),
    }
    assert recorded["parc"] - recorded["farthest"] == {"pruned", "rule_samples"}
