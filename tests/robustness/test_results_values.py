"""Result files with impossible values are refused in one line that names the file and the entry."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from pipeline.fleet import read_arguments, read_baseline, read_reference, read_widths
from tests.helpers import Fleet, refusal
from tools import select_pruning_ratio as select_script
from tools.select_pruning_ratio import read_record
from utils.errors import UserError
from utils.files import read_json

# As they stand in the file: JSON that Python's parser accepts, or not.
IMPOSSIBLE = {
    "nan": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "percent": "99.5",
    "true": "true",
    "false": "false",
    "negative": "-0.1",
    "null": "null",
    "list": "[0.5]",
    "object": "{}",
    "text": '"high"',
    "nan text": '"nan"',
    "infinity text": '"inf"',
    "empty text": '""',
    "big integer": "1" + "0" * 400,
    "huge integer": "1" * 5000,
    "long text": '"' + "9" * 5000 + '"',
}
DEEP = "[" * 100_000 + "]" * 100_000


def refused(read: Callable[[], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("value", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_baseline_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.txt"
    path.write_text(f'{{"fish": {value}, "dog": "0.5"}}')
    message = refused(lambda: read_baseline(path, task="fish"), path)
    assert "fish" in message or "is not valid JSON" in message
    assert "baseline.sh" in message


@pytest.mark.parametrize("value", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_accuracy_in_a_record_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "record.txt"
    path.write_text(f'{{"0.0": 0.5, "0.8": {value}}}')
    message = refused(lambda: read_record(path, ratios=[0.8]), path)
    assert "0.8" in message or "is not valid JSON" in message
    assert "wo_backbone.sh" in message


@pytest.mark.parametrize("value", ["0", "1", "0.7834", '"0.7834"', "1e-3"])
def test_possible_accuracies_are_read(value: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.txt"
    path.write_text(f'{{"fish": {value}}}')
    assert read_baseline(path, task="fish") == float(json.loads(value))


def shortened(value: object) -> str:
    return ascii(value)[:20]


METRICS = {"train_accuracy": 0.9, "validation_accuracy": 0.8, "test_accuracy": 0.8, "grow": True}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"1.0": None},
        {"1.0": {}},
        {"1.0": METRICS | {"test_accuracy": None}},
        {"1.0": METRICS | {"test_accuracy": float("nan")}},
        {"1.0": METRICS | {"validation_accuracy": True}},
        {"1.0": METRICS, "wide": METRICS},
        {"1.0": METRICS, "nan": METRICS},
        {"1.0": METRICS, "inf": METRICS},
        {"-1.0": METRICS},
        {"0": METRICS},
        {"9" * 5000: METRICS},
        [],
    ],
    ids=shortened,
)
def test_impossible_widths_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "widths.json"
    path.write_text(json.dumps(content))
    assert "w_backbone.sh" in refused(lambda: read_widths(tmp_path), path)


def test_widths_come_narrowest_first(tmp_path: Path) -> None:
    (tmp_path / "widths.json").write_text(json.dumps({"10.0": METRICS, "2.0": METRICS}))
    assert list(read_widths(tmp_path)) == [2.0, 10.0]


@pytest.mark.parametrize(
    "content", ["[]", '{"3": []}', '{"3": "x"}', '{"3": null}', DEEP, '{"3": {}', "\x00"]
)
def test_impossible_arguments_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.csv.arguments.json"
    path.write_text(content)
    assert "delete it" in refused(lambda: read_arguments(path, "3"), path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"arguments": [], "accuracy_matrix": [[0.5], [0.5, 0.5]]},
        {"arguments": {}, "accuracy_matrix": None},
        {"arguments": {}, "accuracy_matrix": [[0.5]]},
        {"arguments": {}, "accuracy_matrix": [[0.5], []]},
        {"arguments": {}, "accuracy_matrix": [0.5, 0.5]},
        {"arguments": {}, "accuracy_matrix": [[0.5], [0.5, 2.0]]},
        {"arguments": {}, "accuracy_matrix": [[float("nan")], [0.5, 0.5]]},
    ],
)
def test_impossible_metrics_of_a_reference_run_are_refused(content: dict, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    assert "run it again" in refused(lambda: read_reference(path, tasks=2, remedy="run it again"), path)


def test_the_reference_is_each_tasks_accuracy_after_learning_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"arguments": {"seed": 1}, "accuracy_matrix": [[0.25], [0.5, 0.75]]}))
    assert read_reference(path, tasks=2, remedy="") == ({"seed": 1}, [0.25, 0.75])


@pytest.mark.parametrize(
    "content", [DEEP, '{"a": ' * 50_000, '{"a": ' + "1" * 5000 + "}", "\udcff", ""], ids=shortened
)
def test_json_that_breaks_the_parser_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert refused(lambda: read_json(path, remedy="delete it"), path).endswith("delete it")


# The stages that read them


def test_stages_refuse_impossible_values(fleet: Fleet) -> None:
    baseline = fleet.paths.baseline_file("digits")
    whole = baseline.read_text()
    baseline.write_text(json.dumps(json.loads(whole) | {"four_five": float("nan")}))
    message = refusal(cpg_script.main, fleet.target_flags("3"))
    assert f"{baseline}: the entry of task four_five is not a number from 0 to 1 (nan)" in message
    baseline.write_text(whole)

    record = fleet.paths.pruned("digits", "zero_one") / "record.txt"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"0.8": float("inf")}))
    message = refusal(select_script.main, fleet.select_flags("1", "--overwrite"))
    assert f"{record}: the entry of sparsity 0.8 is not a number from 0 to 1 (inf)" in message

    widths = fleet.target_folder() / "widths.json"
    widths.write_text("{}")
    argv = fleet.baseline_flags("3", "--network_width_multiplier", "from_target")
    assert str(widths) in refusal(packnet_script.main, argv)

    result = fleet.paths.result_csv("digits")
    arguments = result.with_name(f"{result.name}.arguments.json")
    arguments.write_text('{"3": []}')
    message = refusal(search_script.main, fleet.search_flags("3", "--backbone", "zero_one"))
    assert f"{arguments}: the entry 3 holds no JSON object" in message
    result.write_text(f"target_id,task_id\n3,{'9' * 5000}\n")
    message = refusal(cpg_script.main, fleet.target_flags("3"))
    assert str(result) in message and len(message) < 1000


def test_an_edited_result_is_used_with_a_warning(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """They may be edited by hand; a digit that changed by itself does not stay unnoticed."""

    def edit(path: Path, change: Callable[[str], str]) -> None:
        whole = path.read_text()
        path.write_text(change(whole))
        assert path.read_text() != whole

    fleet.select("1", "--overwrite")
    fleet.target("3")
    assert "nobody edited it" not in caplog.text

    record = fleet.paths.pruned("digits", "zero_one") / "record.txt"
    edit(record, lambda text: json.dumps(json.loads(text) | {"0.8": 0.125}))
    fleet.select("1", "--overwrite")
    assert f"{record}: the entry of sparsity 0.8 is 0.125, but" in caplog.text

    baseline = fleet.paths.baseline_file("digits")
    edit(baseline, lambda text: json.dumps(json.loads(text) | {"four_five": "0.1250"}))
    fleet.target("3", "--list_unfinished")
    assert f"{baseline}: the entry of task four_five is 0.125, but" in caplog.text

    result = fleet.paths.result_csv("digits")
    edit(result, lambda text: text.replace("3,1", "3,2"))
    fleet.target("3", "--list_unfinished")
    assert f"{result} pairs target 3 with 2, but stage 3-1 chose 1" in caplog.text
