"""All tasks in sequence in one network, through the real script: growth, pruning, choices and files."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import models
import training.outputs
from data.text_encoders import MAX_TOKENS
from methods.ownership import SharedNetwork
from pipeline import cpg_sequence
from pipeline.cpg_sequence import TaskInSequence
from tests.helpers import REPOSITORY, Fleet, assert_same_checkpoint, load, refusal, same, snapshot
from utils.errors import UserError
from utils.files import read_csv
from utils.paths import checkpoint_in, width_folder

TASKS = ("zero_one", "two_three", "four_five")
# The second task does not reach its baseline at any width.
BASELINES = {"zero_one": "0.1", "two_three": "1.0", "four_five": "0.1"}
QUICK = ("--epochs", "2", "--prune_epochs", "1", "--pruning_frequency", "3")


class Killed(BaseException):
    """Stands in for a kill."""


def flags(fleet: Fleet, *more: object) -> list[str]:
    baselines = fleet.root / "baselines.json"
    baselines.parent.mkdir(parents=True, exist_ok=True)
    baselines.write_text(json.dumps(BASELINES))
    return fleet.flags(
        *("--mode", "finetune", "prune", "--dataset", "1-3", "--total_num_tasks", "3"),
        *("--jsonfile", baselines, "--max_allowed_network_width_multiplier", "1.5", "--lr", "0.1"),
        *("--threads", "1", *QUICK, "--target_sparsity", "0.4", "0.8", *more),
    )


def folder(fleet: Fleet, number: int) -> Path:
    return fleet.paths.in_sequence("digits", number, TASKS[number - 1])


def chosen(fleet: Fleet, number: int) -> Path:
    return checkpoint_in(folder(fleet, number) / "gradual_prune", remedy="")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, digits_root: Path) -> Fleet:
    """Three tasks learned in sequence."""
    torch.set_num_threads(1)
    fleet = Fleet(root=tmp_path_factory.mktemp("sequence"), data=digits_root)
    cpg_script.main(flags(fleet))
    return fleet


def test_each_task_gets_the_width_and_ratio_that_its_baseline_requires(learned: Fleet) -> None:
    selections = [load(chosen(learned, number))["selection"] for number in (1, 2, 3)]
    assert [selection["width_multiplier"] for selection in selections] == [1.0, 1.5, 1.5]
    # One task is left: 1 - round(1/2, 1). The other tasks reach the baseline at their highest ratio.
    assert [selection["ratio"] for selection in selections] == [0.8, 0.5, 0.8]
    tried = json.loads((folder(learned, 2) / "scratch" / "widths.json").read_text())
    assert {width: metrics["grow"] for width, metrics in tried.items()} == {"1.0": True, "1.5": False}
    record = json.loads((folder(learned, 2) / "gradual_prune" / "record.txt").read_text())
    assert list(record) == ["0.0", "0.4", "0.5"]
    log = learned.paths.stage_log("digits", "cpg_sequence").read_text()
    assert log.count("It's time to expand the Network") == 1
    assert " at width multiplier 1.0 is too small: under its baseline by 0." in log
    assert log.count("We choose pruning ratio 0.5") == 1
    assert log.count("We choose pruning ratio 0.8") == 2


def test_earlier_tasks_do_not_change_by_a_bit(learned: Fleet) -> None:
    inputs = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def seen_as(task: int, after: int) -> torch.Tensor:
        path = chosen(learned, after)
        shared = SharedNetwork.from_payload(load(path), build=models.ARCHITECTURES["lenet5"], source=path)
        with torch.no_grad():
            return shared.as_task(TASKS[task - 1])(inputs)

    assert torch.equal(seen_as(1, after=2), seen_as(1, after=1))
    assert torch.equal(seen_as(1, after=3), seen_as(1, after=1))
    assert torch.equal(seen_as(2, after=3), seen_as(2, after=2))
    assert not torch.equal(seen_as(3, after=3), seen_as(2, after=3))


def test_pruning_touches_only_own_and_free_weights(learned: Fleet) -> None:
    before, after = load(chosen(learned, 2)), load(chosen(learned, 3))
    for name, owner in after["masks"].items():
        earlier = before["masks"][name]
        assert torch.equal(owner[earlier > 0], earlier[earlier > 0])
        kept = (earlier == 1) | (earlier == 2)
        weight = f"{name}.weight"
        assert same(after["model_state_dict"][weight][kept], before["model_state_dict"][weight][kept])
        open_to_third = (owner == 0) | (owner == 3)
        due = round(0.8 * open_to_third.sum().item())
        assert due <= (owner == 0).sum() <= due + 2, "more only where weights tie at the cut"


def test_finished_tasks_keep_their_piggymasks_as_booleans(learned: Fleet) -> None:
    info = load(chosen(learned, 3))["shared_layer_info"]
    assert not info["zero_one"]["piggymask"]
    assert {mask.dtype for mask in info["two_three"]["piggymask"].values()} == {torch.bool}
    assert {mask.dtype for mask in info["four_five"]["piggymask"].values()} == {torch.float32}


def test_the_table_shows_each_tasks_accuracy_when_learned_and_at_the_end(
    learned: Fleet, capsys: pytest.CaptureFixture
) -> None:
    path = learned.paths.in_sequence_report("digits")
    rows = read_csv(path, columns=("task", "learned", "end", "ratio", "width", "owned"), remedy="")
    assert [row["task"] for row in rows] == list(TASKS)
    assert all(row["learned"] == row["end"] for row in rows)
    assert [row["width"] for row in rows] == ["1.0", "1.5", "1.5"]
    owners = load(chosen(learned, 3))["masks"].values()
    total = sum(owner.numel() for owner in owners)
    for number, row in enumerate(rows, 1):
        owned = sum((owner == number).sum().item() for owner in owners)
        assert float(row["owned"]) == pytest.approx(owned / total)

    before = snapshot(learned.root)
    cpg_script.main(flags(learned))
    output = capsys.readouterr()
    assert output.err.count("is finished: skipped") == 3
    assert "four_five" in output.out and str(path) in output.out
    unchanged = {name: value[1] for name, value in snapshot(learned.root).items()}
    assert unchanged == {name: value[1] for name, value in before.items()}


def test_only_the_chosen_networks_are_kept(learned: Fleet) -> None:
    networks = [path.relative_to(learned.checkpoints) for path in learned.checkpoints.rglob("*.pth.tar")]
    assert len(networks) == 3 and all(path.parent.name == "gradual_prune" for path in networks)
    assert (width_folder(folder(learned, 2) / "scratch", 1.5) / "train.csv").exists()


@pytest.mark.parametrize("save", [1, 4, 5])
def test_a_killed_sequence_resumes_to_the_same_bytes(
    save: int, learned: Fleet, fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first task's training, between the second's widths, and at the second's choice."""
    finish, finished = training.outputs.Output.finish, []

    def dying(self: training.outputs.Output, *args: object, **keywords: object) -> dict:
        finished.append(self.folder)
        if len(finished) == save:
            raise Killed
        return finish(self, *args, **keywords)

    two = ("--dataset", "1,2")
    with monkeypatch.context() as patched:
        patched.setattr(training.outputs.Output, "finish", dying)
        with pytest.raises(Killed):
            cpg_script.main(flags(fresh, *two))
    cpg_script.main(flags(fresh, *two))
    assert_same_checkpoint(chosen(fresh, 2), chosen(learned, 2))


def test_other_arguments_are_refused_by_name(learned: Fleet) -> None:
    assert "lr_mask (0.0001 recorded, 0.5 requested)" in refusal(
        cpg_script.main, flags(learned, "--lr_mask", "0.5")
    )
    # With more tasks left, the second would have been pruned further.
    more = refusal(cpg_script.main, flags(learned, "--total_num_tasks", "5"))
    assert "forced_ratio (0.5 recorded, 0.8 requested)" in more


def test_a_sequence_in_which_no_ratio_was_forced_can_be_continued(
    fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    cpg_script.main(flags(fresh, "--dataset", "1", "--total_num_tasks", "1", "--keep_checkpoints"))
    assert checkpoint_in(folder(fresh, 1) / "gradual_prune" / "0.4", remedy="")
    cpg_script.main(flags(fresh, "--dataset", "1,3", "--total_num_tasks", "2"))
    assert capsys.readouterr().err.count("is finished: skipped") == 1
    assert load(fresh.paths.in_sequence("digits", 2, "four_five") / "gradual_prune/checkpoint-1.pth.tar")[
        "dataset_history"
    ] == ["zero_one", "four_five"]


def test_a_missing_baseline_and_too_many_tasks_are_refused_before_any_work(fresh: Fleet) -> None:
    argv = flags(fresh)
    (fresh.root / "baselines.json").write_text(json.dumps({"zero_one": "0.5"}))
    assert "has no entry for task two_three" in refusal(cpg_script.main, argv)
    message = refusal(cpg_script.main, flags(fresh, "--total_num_tasks", "2"))
    assert "--total_num_tasks 2: --dataset names 3 tasks" in message
    assert not fresh.checkpoints.exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--mode", "finetune"), "--mode finetune prune"),
        (("--backbone", "2"), "leave out --backbone"),
        (("--initial_sparsity", "0.1"), "leave out"),
        (("--network_width_multiplier", "from_target"), "from_target"),
        (("--total_num_tasks", "0"), "--total_num_tasks"),
    ],
)
def test_flags_that_contradict_a_sequence_are_rejected(
    wrong: tuple, named: str, fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        cpg_script.main(flags(fresh, *wrong))
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


class Scripted:
    """Stands in for a task's run."""

    def __init__(self, root: Path) -> None:
        self.args = Namespace(total_num_tasks=4)
        self.task, self.table = Namespace(name="red"), Namespace(name="colours")
        self.paths = Namespace(in_sequence=lambda *_: root)


@pytest.mark.parametrize(
    ("early", "forced", "tried"),
    [
        (False, None, [0.0, 0.2, 0.5, 0.8]),
        (True, None, [0.0, 0.2, 0.5]),
        (True, 0.7, [0.0, 0.2, 0.5, 0.7]),
        (False, 0.0, [0.0]),
    ],
)
def test_pruning_stops_early_only_on_request(
    early: bool, forced: float | None, tried: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {0.2: 0.7, 0.5: 0.6, 0.7: 0.6, 0.8: 0.7}

    def scripted(*_: object, ratios: list[float], **__: object) -> Iterator[tuple[float, dict]]:
        for ratio in ratios:
            yield ratio, {"metrics": {"validation_accuracy": accuracies[ratio]}}

    monkeypatch.setattr(cpg_sequence, "prune_gradually", scripted)
    step = TaskInSequence(Scripted(tmp_path), number=1)
    recipe = Namespace(
        target_sparsity=(0.2, 0.5, 0.8),
        allow_acc_loss=0.001,
        stop_pruning_early=early,
        baseline=0.7,
        pruning=None,
    )
    how = {"recipe": recipe, "accuracy": 0.9, "width": 1.0, "forced": forced}
    parent = {"masks": {"features.0": torch.ones(2, dtype=torch.uint8)}}
    record = step.prune(parent, **how)
    assert list(record) == tried
    nothing = {"masks": {"features.0": torch.full((2,), 2, dtype=torch.uint8)}}
    assert list(step.prune(nothing, **how)) == [0.0]


@pytest.mark.parametrize("identity", [None, "words 5"])
def test_a_selection_of_an_earlier_version_implies_what_it_does_not_record(
    identity: str | None, tmp_path: Path
) -> None:
    """The clipping that was its architecture's, and the text encoder that was the only one."""
    step = TaskInSequence(Scripted(tmp_path), number=1)
    step.args.overwrite = False
    step.run.build = Namespace(clip_grad_norm=1.5)
    step.run.data = Namespace(encoder=None if identity is None else Namespace(identity=identity))
    recorded = {"lr": 0.1, "forced_ratio": None}
    step.run.load = lambda _: {"selection": {"recipe": recorded}}
    (tmp_path / "gradual_prune").mkdir()
    (tmp_path / "gradual_prune" / "checkpoint-1.pth.tar").touch()
    texts = {} if identity is None else {"text_encoder": identity, "max_tokens": MAX_TOKENS}

    def finished(**more: object) -> dict | None:
        stamp = {"lr": 0.1, "clip_grad_norm": 1.5} | texts | more
        return step.finished(Namespace(stamp=lambda: stamp))

    assert finished()["selection"]["recipe"] is recorded
    with pytest.raises(UserError, match=r"clip_grad_norm \(1.5 recorded, 0.5 requested\)"):
        finished(clip_grad_norm=0.5)
    if identity is not None:
        with pytest.raises(UserError, match=r"text_encoder \(words 5 recorded, words 6 requested\)"):
            finished(text_encoder="words 6")
    recorded["clip_grad_norm"] = 0.5
    with pytest.raises(UserError, match=r"clip_grad_norm \(0.5 recorded, 1.5 requested\)"):
        finished()


def test_the_stage_trains_missing_baselines_and_ends_with_the_table(fresh: Fleet) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    roots = {
        "DATA_ROOT": fresh.data,
        "CHECKPOINTS_ROOT": fresh.checkpoints,
        "LOGS_ROOT": fresh.root / "logs",
    }
    tiny = {"EPOCHS": "1", "PRUNE_EPOCHS": "1", "SPARSITIES": "0.5", "MAX_WIDTH": "1.0", "THREADS": "1"}
    environment = kept | {name: str(path) for name, path in roots.items()} | tiny
    ended = subprocess.run(
        ["bash", REPOSITORY / "run_pickaback" / "cpg_sequence.sh", "digits", "2,1"],
        env=environment | {"PYTHON": sys.executable, "DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(json.loads(fresh.paths.baseline_file("digits").read_text())) == {"zero_one", "two_three"}
    rows = read_csv(fresh.paths.in_sequence_report("digits"), columns=("task", "scratch"), remedy="")
    assert [row["task"] for row in rows] == ["two_three", "zero_one"]
    assert all(float(row["scratch"]) > 0 for row in rows)
    assert "gain: end minus scratch" in ended.stdout and "CPG sequence finished" in ended.stdout
