"""Work that is killed at any point, repeated, or requested with other arguments."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from data import cache
from pipeline import choices, cpg, scratch, train_task
from tests.helpers import (
    EPOCHS,
    RATIOS,
    Fleet,
    assert_same_checkpoint,
    build_fleet,
    command,
    load,
    refusal,
    same,
    snapshot,
)
from tools import select_pruning_ratio as select_script
from training.loop import Progress
from training.outputs import Output
from utils import logs


class Killed(BaseException):
    """Stands in for a kill: no handler in the project catches it."""


# Each stage: how to run it on a fleet, and its finished checkpoints.


def baseline_stage(fleet: Fleet, *more: object) -> None:
    fleet.baseline("1", *more)


def own_stage(fleet: Fleet, *more: object) -> None:
    fleet.own("1", *more)


def target_stage(fleet: Fleet, *more: object) -> None:
    fleet.target("3", *more)


def checkpoints_of(stage: Callable, fleet: Fleet) -> list[Path]:
    if stage is baseline_stage:
        return [fleet.baseline_checkpoint("zero_one")]
    if stage is own_stage:
        pruned = [fleet.pruned_checkpoint("zero_one", ratio) for ratio in RATIOS]
        return [fleet.scratch_checkpoint("zero_one"), *pruned]
    folder = fleet.target_folder()
    name = f"checkpoint-{EPOCHS}.pth.tar"
    return [folder / name, *(folder / f"width-{width}" / name for width in (1.0, 1.5, 2.0))]


def undone(stage: Callable, fleet: Fleet) -> Fleet:
    """Remove the outputs of `stage` from the fleet."""
    for path in checkpoints_of(stage, fleet):
        path.unlink()
    if stage is target_stage:
        (fleet.target_folder() / "widths.json").unlink()
    if stage is own_stage:
        (fleet.paths.pruned("digits", "zero_one") / "record.txt").unlink()
    return fleet


@pytest.fixture(params=[baseline_stage, own_stage, target_stage])
def stage(request: pytest.FixtureRequest) -> Callable:
    return request.param


def kill_at_save(monkeypatch: pytest.MonkeyPatch, *, number: int, before: bool = False) -> None:
    """Save after every epoch, and die before or after the `number`-th save."""
    monkeypatch.setattr(train_task, "SAVING_SHARE", 1e9)
    save, count = Output.save_unfinished, 0

    def dying(self: Output, *arguments: object) -> None:
        nonlocal count
        count += 1
        if count == number and before:
            raise Killed
        save(self, *arguments)
        if count == number:
            raise Killed

    monkeypatch.setattr(Output, "save_unfinished", dying)


def test_a_run_killed_after_every_epoch_gives_the_same_bits(
    stage: Callable, trained_fleet: Fleet, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone(stage, fleet)
    deaths = 0
    while True:
        with monkeypatch.context() as patch:
            kill_at_save(patch, number=1)
            try:
                stage(fleet)
            except Killed:
                deaths += 1
                continue
        break
    per_run = EPOCHS - 1
    assert deaths == {baseline_stage: per_run, own_stage: per_run + 4, target_stage: 3 * per_run}[stage]
    for path, expected in zip(
        checkpoints_of(stage, fleet), checkpoints_of(stage, trained_fleet), strict=True
    ):
        assert_same_checkpoint(path, expected)
        if path.parent != fleet.target_folder():
            assert path.with_name("train.csv").read_bytes() == expected.with_name("train.csv").read_bytes()


@pytest.mark.parametrize("number", [2, 5])
def test_an_unsaved_epoch_is_repeated(
    number: int, trained_fleet: Fleet, fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth save follows the first epoch of gradual pruning to the first ratio."""
    with monkeypatch.context() as patch:
        kill_at_save(patch, number=number, before=True)
        with pytest.raises(Killed):
            own_stage(fresh)
    own_stage(fresh)
    for path, expected in zip(
        checkpoints_of(own_stage, fresh), checkpoints_of(own_stage, trained_fleet), strict=True
    ):
        assert_same_checkpoint(path, expected)


@pytest.mark.parametrize("shared", [False, True], ids=["own log", "log_path"])
def test_epochs_since_the_last_save_are_repeated_and_logged_once(
    shared: bool, trained_fleet: Fleet, fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes may share a `--log_path`, so nothing is removed from it."""
    line = logs.epoch_line

    def die_after_the_third_epoch(message: str) -> None:
        line(message)
        if message.startswith("In validate()-> Val Ep. #3 "):
            raise Killed

    flags = ("--log_path", fresh.root / "named") if shared else ()
    with monkeypatch.context() as patch:
        patch.setattr(train_task, "SAVING_SHARE", 0.0)  # only after the first epoch
        patch.setattr(logs, "epoch_line", die_after_the_third_epoch)
        with pytest.raises(Killed):
            baseline_stage(fresh, *flags)
    baseline_stage(fresh, *flags)
    path, expected = (fleet.baseline_checkpoint("zero_one") for fleet in (fresh, trained_fleet))
    assert_same_checkpoint(path, expected)
    folder = fresh.root / "named" if shared else path.parent
    log = (folder / "train.log").read_text()
    once = range(1, EPOCHS + 1)
    epochs = [1, 2, 3, *once[1:]] if shared else once
    assert re.findall(r"In (\w+).* Ep\. #(\d+)", log) == [
        (part, str(epoch)) for epoch in epochs for part in ("train", "validate")
    ]
    assert log.count("Configuration: ") == 2
    assert f"Resuming {path.parent} after epoch 1" in log


def test_saving_costs_at_most_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = 0.0, []

    def save(progress: Progress) -> None:
        nonlocal now
        now += 2.0
        saved.append(progress.epoch)

    monkeypatch.setattr(train_task.time, "perf_counter", lambda: now)
    sparingly = train_task.Sparingly(save)
    for epoch in range(1, 14):
        now += 10.0
        sparingly.call(Progress(epoch=epoch))
    assert saved == [1, 5, 9, 13]


@pytest.mark.parametrize("module", [scratch, cpg])
def test_a_run_killed_between_checkpoint_and_shared_file_still_records_its_accuracy(
    module: ModuleType, trained_fleet: Fleet, fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        raise Killed

    run = baseline_stage if module is scratch else own_stage
    with monkeypatch.context() as patch:
        patch.setattr(module, "update_json", die)
        with pytest.raises(Killed):
            run(fresh)
    run(fresh)
    if module is scratch:
        assert "zero_one" in fresh.paths.baseline_file("digits").read_text()
    else:
        record, expected = (
            (it.paths.pruned("digits", "zero_one") / "record.txt").read_text()
            for it in (fresh, trained_fleet)
        )
        assert record == expected


# Processes that are really killed.


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """SIGKILL a process once `reached` is true, which must happen before it exits."""
    deadline = time.monotonic() + 100
    while not reached():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def start(script: str, argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command(script, argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_process_of_stage_1_resumes_to_the_same_bits(fresh: Fleet, tmp_path: Path) -> None:
    many = ("--epochs", "12")
    folder = fresh.paths.baselines("digits") / "zero_one"
    process = start("packnet_cifar100_main_normal.py", fresh.baseline_flags("1", *many))
    kill_when(process, lambda: (folder / "resume.pth.tar").exists())
    assert not list(folder.glob("checkpoint-*"))

    fresh.baseline("1", *many)
    whole = Fleet(root=tmp_path / "whole", data=fresh.data)
    whole.baseline("1", *many)
    assert_same_checkpoint(fresh.baseline_checkpoint("zero_one"), whole.baseline_checkpoint("zero_one"))


def test_a_process_killed_in_training_and_again_in_pruning_resumes_to_the_same_bits(
    fresh: Fleet, tmp_path: Path
) -> None:
    many = ("--epochs", "8", "--prune_epochs", "12", "--pruning_interval", "8")
    scratch = fresh.paths.single_scratch("digits", "zero_one")
    ratio = fresh.paths.pruned("digits", "zero_one") / "0.5"
    for folder in (scratch, ratio):
        process = start("CPG_cifar100_main_normal.py", fresh.own_flags("1", *many))
        kill_when(process, (folder / "resume.pth.tar").exists)
        assert not list(folder.glob("checkpoint-*"))
    assert list(scratch.glob("checkpoint-*")), "the second process finished what the first had begun"

    fresh.own("1", *many)
    whole = Fleet(root=tmp_path / "whole", data=fresh.data)
    whole.own("1", *many)
    assert_same_checkpoint(fresh.scratch_checkpoint("zero_one"), whole.scratch_checkpoint("zero_one"))
    for sparsity in RATIOS:
        assert_same_checkpoint(
            fresh.pruned_checkpoint("zero_one", sparsity), whole.pruned_checkpoint("zero_one", sparsity)
        )


def test_a_target_killed_while_growing_resumes_to_the_same_bits(fleet: Fleet, tmp_path: Path) -> None:
    undone(target_stage, fleet)
    whole = fleet.copy(tmp_path / "whole")
    many = ("--epochs", "10")
    wider = fleet.target_folder() / "width-1.5"
    process = start("CPG_cifar100_main_normal.py", fleet.target_flags("3", *many))
    kill_when(process, (wider / "resume.pth.tar").exists)
    assert not list(wider.glob("checkpoint-*"))

    fleet.target("3", *many)
    whole.target("3", *many)
    for folder in (".", "width-1.0", "width-1.5", "width-2.0"):
        left, right = (it.target_folder() / folder / "checkpoint-10.pth.tar" for it in (fleet, whole))
        assert_same_checkpoint(left, right)
    piggymasks = load(left)["shared_layer_info"]["four_five"]["piggymask"]
    assert piggymasks and all((mask != 0.01).any() for mask in piggymasks.values())


def test_an_unfinished_target_has_no_final_width(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The final width is not known while a wider network is still training."""
    undone(target_stage, fleet)
    with monkeypatch.context() as patch:
        kill_at_save(patch, number=EPOCHS)
        with pytest.raises(Killed):
            target_stage(fleet)
    argv = fleet.baseline_flags("3", "--network_width_multiplier", "from_target")
    message = refusal(packnet_script.main, argv)
    assert "widths.json" in message and "w_backbone.sh" in message


# Repeated work.


def test_finished_work_is_skipped_and_its_files_stay_unchanged(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    before = snapshot(fleet.root)
    build_fleet(fleet.root, fleet.data)
    assert snapshot(fleet.root) == before
    log = capsys.readouterr().err
    assert "In train()" not in log
    # 3 scratch networks; 3 networks with 2 ratios each; 3 widths of the target.
    assert log.count("is finished: skipped (--overwrite redoes it)") == 3 + 3 * 3 + 3
    assert log.count("is in place: skipped (--overwrite redoes it)") == 3
    assert "The backbone of target 3 is chosen: skipped (--overwrite redoes it)" in log


def test_the_same_commands_in_a_fresh_root_write_the_same_bytes(trained_fleet: Fleet, fresh: Fleet) -> None:
    build_fleet(fresh.root, fresh.data)
    first, second = (
        # config.json records the command, which names the root.
        {name: content for name, (_, content) in snapshot(root).items() if not name.endswith("/config.json")}
        for root in (trained_fleet.root, fresh.root)
    )
    assert first == second


def test_another_seed_gives_other_weights(trained_fleet: Fleet, fresh: Fleet) -> None:
    fresh.baseline("1", "--seed", "2")
    other = fresh.paths.checkpoints / "lenet5/seed2/baseline_scratch/digits/zero_one/checkpoint-4.pth.tar"
    mine = trained_fleet.baseline_checkpoint("zero_one")
    assert not same(load(other)["model_state_dict"], load(mine)["model_state_dict"])


def test_overwrite_redoes_finished_work(stage: Callable, trained_fleet: Fleet, fleet: Fleet) -> None:
    times = [path.stat().st_mtime_ns for path in checkpoints_of(stage, fleet)[1:]]
    stage(fleet, "--overwrite")
    paths = checkpoints_of(stage, fleet)
    assert all(path.stat().st_mtime_ns > time for path, time in zip(paths[1:], times, strict=True))
    for path, expected in zip(paths, checkpoints_of(stage, trained_fleet), strict=True):
        assert_same_checkpoint(path, expected)


# Other arguments.

OTHER = [
    (baseline_stage, ("--epochs", "3"), ["epochs (4 recorded, 3 requested)"]),
    (
        baseline_stage,
        ("--lr", "0.02", "--weight_decay", "0"),
        ["lr (0.1 recorded, 0.02 requested)", "weight_decay"],
    ),
    (baseline_stage, ("--batch_size", "16", "--precision", "bf16"), ["batch_size", "precision"]),
    (own_stage, ("--epochs", "5"), ["epochs (4 recorded, 5 requested)"]),
    (own_stage, ("--prune_epochs", "2"), ["epochs (3 recorded, 2 requested)"]),
    (own_stage, ("--prune_lr", "0.1", "--pruning_frequency", "2"), ["lr", "pruning_frequency (3 recorded"]),
    (own_stage, ("--pruning_interval", "1"), ["pruning_interval (2 recorded, 1 requested)"]),
    (target_stage, ("--lr_mask", "0.1"), ["lr_mask (0.0001 recorded, 0.1 requested)"]),
]


@pytest.mark.parametrize(("stage", "flags", "named"), OTHER)
def test_other_arguments_are_refused_by_name_and_nothing_changes(
    stage: Callable, flags: tuple, named: list[str], fleet: Fleet
) -> None:
    before = snapshot(fleet.root)
    message = refusal(lambda _: stage(fleet, *flags), [])
    for name in named:
        assert name in message
    assert f"{fleet.checkpoints}" in message and "--overwrite" in message and "--run" in message
    assert "device" not in message
    assert snapshot(fleet.root) == before


def test_a_named_run_keeps_both(fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    fleet.baseline("1", "--lr", "0.02", "--run", "fast")
    after = snapshot(fleet.root)
    assert before.items() <= after.items()
    assert "checkpoints/fast/baseline_scratch/digits/zero_one/checkpoint-4.pth.tar" in after
    assert "logs/fast/baseline_digits_acc_scratch.txt" in after


def test_overwriting_with_another_epoch_count_removes_the_old_checkpoint(
    stage: Callable, fleet: Fleet
) -> None:
    old = [path for path in checkpoints_of(stage, fleet) if path.name == f"checkpoint-{EPOCHS}.pth.tar"]
    stage(fleet, "--epochs", "2", "--overwrite")
    for path in old:
        assert [found.name for found in path.parent.glob("checkpoint-*")] == ["checkpoint-2.pth.tar"]


def test_overwriting_with_a_narrower_limit_forgets_the_wider_networks(
    fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    fleet.target("3", "--max_allowed_network_width_multiplier", "1.0", "--overwrite")
    capsys.readouterr()
    fleet.baseline("3", "--network_width_multiplier", "from_target")
    assert "Scratch accuracy of four_five" in capsys.readouterr().err
    assert not (fleet.checkpoints / fleet.run / "baseline_scratch_width-2.0").exists()


def test_an_unfinished_run_is_not_continued_with_other_arguments(
    fresh: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at_save(patch, number=2)
        with pytest.raises(Killed):
            fresh.baseline("1")
    other = ("--lr", "0.02")
    message = refusal(lambda _: fresh.baseline("1", *other), [])
    assert "lr (0.1 recorded, 0.02 requested)" in message and "resume.pth.tar" in message

    fresh.baseline("1", *other, "--overwrite")
    whole = Fleet(root=tmp_path / "whole", data=fresh.data)
    whole.baseline("1", *other)
    assert_same_checkpoint(fresh.baseline_checkpoint("zero_one"), whole.baseline_checkpoint("zero_one"))


def test_pruning_of_another_parent_is_refused(fleet: Fleet) -> None:
    only = ("--mode", "finetune", "--overwrite", "--lr", "0.02")
    cpg_script.main(fleet.own_flags("1", *only))
    message = refusal(cpg_script.main, fleet.own_flags("1", "--mode", "prune"))
    assert "parent (" in message


# The data.


def with_other_test_labels(fleet: Fleet, root: Path) -> Path:
    """A data root with the test labels of the first three tasks swapped."""
    for task in ("zero_one", "two_three", "four_five"):
        for split in cache.SPLITS:
            record = cache.read(cache.path_of(fleet.data, "digits", task, split), remedy="")
            labels = record["labels"] if split == "train" else 1 - record["labels"]
            cache.write(
                cache.path_of(root, "digits", task, split),
                images=record["images"],
                labels=labels,
                classes=tuple(record["classes"]),
                signature=record["signature"],
            )
    return root


def test_other_data_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    other = Fleet(root=fleet.root, data=with_other_test_labels(fleet, tmp_path / "data"))
    before = snapshot(fleet.root)
    for run in (baseline_stage, own_stage, target_stage):
        assert " data (" in refusal(lambda _, run=run: run(other), [])
    assert snapshot(fleet.root) == before


def heldout(root: Path, data: Path) -> Fleet:
    """Stages 1 to 3-2 under the held-out protocol."""
    fleet = Fleet(root=root, data=data, run="lenet5/seed1-heldout")
    flags = ("--protocol", "heldout")
    fleet.baseline("1-3", *flags)
    fleet.own("1-2", *flags)
    fleet.select("1-2", *flags)
    fleet.search("3", *flags, "--candidates", "1-2")
    fleet.target("3", *flags)
    return fleet


def test_heldout_decisions_do_not_use_the_test_set(
    trained_fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = with_other_test_labels(trained_fleet, tmp_path / "data")
    true, blind = heldout(tmp_path / "a", trained_fleet.data), heldout(tmp_path / "b", wrong)
    differing = (".arguments.json", "widths.json", "config.json")  # they name the root, or the test accuracy
    names = [name for name in snapshot(true.root) if not name.endswith(differing)]
    assert all(name.split("/")[1:3] == ["lenet5", "seed1-heldout"] for name in names)
    assert len([name for name in names if name.endswith(".pth.tar")]) == 3 + 2 * 4 + 4
    for name in names:
        left, right = true.root / name, blind.root / name
        if not name.endswith(".pth.tar"):
            assert left.read_bytes() == right.read_bytes(), name
            continue
        first, second = load(left), load(right)
        for key in ("model_state_dict", "masks", "shared_layer_info"):
            assert same(first[key], second[key]), f"{name}: {key}"
        assert first.get("selection") == second.get("selection")
        # Test accuracy is only reported, and the test sets differ.
        assert first["metrics"]["test_accuracy"] == pytest.approx(1 - second["metrics"]["test_accuracy"])


def test_published_decisions_use_the_test_set(trained_fleet: Fleet, tmp_path: Path) -> None:
    blind = Fleet(root=tmp_path / "b", data=with_other_test_labels(trained_fleet, tmp_path / "data"))
    blind.baseline("1")
    first, second = (load(it.baseline_checkpoint("zero_one")) for it in (trained_fleet, blind))
    assert same(first["model_state_dict"], second["model_state_dict"])
    assert first["metrics"]["validation_accuracy"] == pytest.approx(
        1 - second["metrics"]["validation_accuracy"]
    )
    assert first["metrics"]["validation_accuracy"] != second["metrics"]["validation_accuracy"]


# Choices.


def test_a_choice_made_with_other_arguments_is_refused_and_redone_on_request(fleet: Fleet) -> None:
    before = snapshot(fleet.root)
    message = refusal(search_script.main, fleet.search_flags("3", "--backbone", "1", "--epsilon", "0.2"))
    assert "epsilon (0.1 recorded, 0.2 requested)" in message and "--overwrite" in message
    message = refusal(select_script.main, fleet.select_flags("1", "--allow_acc_loss", "0.9"))
    assert "allow_acc_loss (0.001 recorded, 0.9 requested)" in message
    assert snapshot(fleet.root) == before

    fleet.search("3", "--backbone", "1", "--epsilon", "0.2", "--overwrite")
    fleet.select("1", "--allow_acc_loss", "0.9", "--overwrite")
    selection = load(fleet.chosen_checkpoint("zero_one"))["selection"]
    assert (selection["ratio"], selection["allow_acc_loss"]) == (max(RATIOS), 0.9)


@pytest.mark.parametrize(("killed", "moments"), [("update_json", 3), ("update_csv", 6)])
def test_a_search_killed_while_it_writes_never_pairs_an_old_choice_with_new_arguments(
    killed: str, moments: int, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the kill comes, repeating the command ends with the requested choice."""
    other = ("--backbone", "two_three", "--scores", "chosen")
    for moment in range(1, moments + 1):
        write, count = getattr(choices, killed), 0

        def dying(*arguments: object, write=write, moment=moment, **more: object) -> None:
            nonlocal count
            count += 1
            if count == moment:
                raise Killed
            write(*arguments, **more)

        copied = fleet.copy(fleet.root.parent / f"{killed}-{moment}")
        with monkeypatch.context() as patch:
            patch.setattr(choices, killed, dying)
            with pytest.raises(Killed):
                copied.search("3", *other, "--overwrite")
        copied.search("3", *other)
        assert copied.paths.result_csv("digits").read_text() == "target_id,task_id\n3,2\n"


def test_a_killed_runs_temporary_file_is_not_mistaken_for_a_checkpoint(fleet: Fleet) -> None:
    folder = fleet.paths.baselines("digits") / "zero_one"
    (folder / ".checkpoint-4.pth.tar.x1.tmp").write_bytes(b"half")
    fleet.baseline_checkpoint("zero_one").rename(folder / "aside")
    message = refusal(search_script.main, fleet.search_flags("3", "--overwrite"))
    assert "checkpoint-<epoch>.pth.tar not found" in message and "baseline.sh" in message
