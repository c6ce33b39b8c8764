"""What grows with the number of tasks: files are read once, and nothing is quadratic that need not be."""

import builtins
import csv
import io
import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import pickaback_perceiverIO as search_script
from data.tables import load_table
from models.network import Network
from pipeline import fleet as fleet_files
from pipeline import search
from pipeline.choices import Choices
from pipeline.fleet import chosen_backbone, read_baseline
from tests.helpers import REPOSITORY, Fleet, refusal
from utils.files import read_csv, read_json, update_csv, update_json
from utils.paths import Paths, arguments_file

TWO_STEPS = ("--select", "logistic", "--finalists", "1", "--first_rule", "cka", "--scores", "chosen")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been opened to read."""
    found: Counter[str] = Counter()
    real = builtins.open

    def note(path: object, mode: str = "r", *more: object, **settings: object) -> object:
        if "r" in mode and isinstance(path, str | Path):
            found[str(path)] += 1
        return real(path, mode, *more, **settings)

    monkeypatch.setattr(builtins, "open", note)
    monkeypatch.setattr(io, "open", note)
    return found


def scores(fleet: Fleet) -> dict[str, dict[str, str]]:
    with fleet.paths.table_csv("digits").open(newline="") as file:
        return {row["task_id"]: row for row in csv.DictReader(file) if row["target_id"] == "3"}


def test_a_search_reads_no_network_twice_and_passes_the_probes_through_each_once(
    fleet: Fleet, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: Counter[int] = Counter()
    encode = Network.encode

    def counted(self: Network, inputs):
        passed[id(self)] += len(inputs)
        return encode(self, inputs)

    monkeypatch.setattr(Network, "encode", counted)
    probes = 2 * 10
    one = ("--scores", "chosen", "--max_iterations", "0", "--val_batch_size", str(probes // 2), "--overwrite")
    for rule in ("cka", "farthest"):
        opened.clear(), passed.clear()
        fleet.search("3", "--select", rule, *one)
        networks = {path: times for path, times in opened.items() if path.endswith(".pth.tar")}
        assert len(networks) == 3 and set(networks.values()) == {1}
        # The target's network sees the probes of both pairs.
        assert sorted(passed.values()) == [probes, probes, 2 * probes], rule
    opened.clear()
    fleet.search("3", "--select", "leep", *one)
    networks = {path: times for path, times in opened.items() if path.endswith(".pth.tar")}
    assert len(networks) == 5 and set(networks.values()) == {1}


def test_distances_do_not_depend_on_how_many_candidates_are_compared_at_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("--scores", "chosen", "--overwrite")
    fleet.search("3", *again)
    together = scores(fleet)
    monkeypatch.setattr(search, "_AT_ONCE", 1)
    fleet.search("3", *again)
    for candidate, row in scores(fleet).items():
        assert float(row["ddv_euc"]) == pytest.approx(float(together[candidate]["ddv_euc"]), abs=1e-5)


def test_a_dear_rule_looks_only_at_the_best_by_a_cheap_one(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    fleet.search("3", *TWO_STEPS)
    found = scores(fleet)
    best = max(found, key=lambda candidate: float(found[candidate]["cka"]))
    assert [candidate for candidate, row in found.items() if row["logistic"]] == [best]
    log = capsys.readouterr().err
    assert f"Finalists for target 3 by cka: {best}\n" in log and "DDV" not in log
    (row,) = read_csv(fleet.paths.result_csv("digits", rule="logistic"), columns=(), remedy="")
    assert row["task_id"] == best

    fleet.search("3", *TWO_STEPS, "--finalists", "2", "--overwrite")
    assert all(row["logistic"] for row in scores(fleet).values())
    message = refusal(search_script.main, fleet.search_flags("3", *TWO_STEPS))
    assert "finalists (2 recorded, 1 requested)" in message


def test_files_that_all_tasks_share_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_table("cifar100", data_root=tmp_path)
    pairs, baselines = tmp_path / "result.csv", tmp_path / "baseline.txt"
    rows = [{"target_id": task.id, "task_id": task.id % 20 + 1} for task in table.tasks]
    update_csv(pairs, rows, columns=("target_id", "task_id"), replace={"target_id": "0"})
    update_json(arguments_file(pairs), {str(task.id): {"chosen": task.id % 20 + 1} for task in table.tasks})
    update_json(baselines, {task.name: "0.5" for task in table.tasks})
    parsed: list[Path] = []
    for name, read in {"read_csv": read_csv, "read_json": read_json}.items():
        monkeypatch.setattr(
            fleet_files,
            name,
            lambda path, *, read=read, **settings: parsed.append(path) or read(path, **settings),
        )
    for task in table.tasks:
        assert chosen_backbone(pairs, table=table, target=task).id == task.id % 20 + 1
        assert read_baseline(baselines, task=task.name) == 0.5
    assert sorted(parsed) == sorted([pairs, arguments_file(pairs), baselines])


def test_the_candidates_of_a_choice_take_no_more_room_the_more_there_are(tmp_path: Path) -> None:
    paths = Paths(checkpoints=tmp_path, logs=tmp_path, data=tmp_path, run="run")

    def choices(run: str) -> Choices:
        return Choices(paths=paths, config=run, among="all", rule="cka", path=None)

    def stamp(count: int) -> dict:
        return {
            "select": "cka",
            "candidates": list(range(count)),
            "networks": [f"{n:016x}" for n in range(count)],
        }

    sizes = []
    for count in (101, 10_000):
        made = choices(f"table{count}")
        made.write(1, "2", stamp(count))
        assert made.finished(1, stamp(count)) == "2"
        sizes.append(arguments_file(made.own.path).stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 10
    changed = stamp(10_000) | {"networks": ["changed", *stamp(10_000)["networks"][1:]]}
    assert "networks (10000 of them, sha256:" in refusal(lambda _: made.finished(1, changed), [])

    # Earlier versions recorded every candidate.
    file = arguments_file(made.own.path)
    file.write_text(json.dumps({"1": {**stamp(10_000), "chosen": 2}}))
    assert made.finished(1, stamp(10_000)) == "2"


def test_names_too_long_for_an_argument_are_passed_as_the_user_wrote_them() -> None:
    script = """
        source run_pickaback/jobs.sh
        TASK_SPEC=all TASK_NAMES=(a b); joined_tasks
        TASK_NAMES=($(printf 'task_%0100d ' $(seq 1000))); joined_tasks
    """
    found = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout == "a,b\nall\n"
