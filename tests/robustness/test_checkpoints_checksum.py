"""Damaged checkpoints and resume files are noticed, whichever byte changed, and named with the remedy."""

import io
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import spg_main
from tests.helpers import EPOCHS, Fleet, assert_same_checkpoint, load, refusal
from tools import select_pruning_ratio as select_script
from training.checkpoints import read_checkpoint, save_checkpoint
from training.loop import Progress
from training.outputs import Output, remove_output
from utils import logs
from utils.errors import UserError
from utils.paths import redo_command
from utils.tensor_files import Damaged

MATCH = "its content does not match its checksum"


def small_payload(**entries: object) -> dict:
    return {
        "model_state_dict": {
            "features.0.weight": torch.ones(3, 2),
            "classifiers.0.weight": torch.zeros(2, 3),
        },
        "dataset_history": ["fish"],
        "dataset2num_classes": {"fish": 2},
        "masks": {"features.0": torch.ones(3, 2, dtype=torch.uint8)},
        "shared_layer_info": {"fish": {"network_width_multiplier": 1.0}},
        **entries,
    }


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_a_weight(path: Path) -> None:
    """Change the lowest bit of one weight: the file loads, and computes other results."""
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda item: item.file_size)
        content = archive.read(entry)
    position = path.read_bytes().index(content) + len(content) // 2
    flip(path, position)
    load(path)  # torch reads it without an error


# One file


def test_a_flip_of_any_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pth.tar"
    save_checkpoint(path, small_payload())
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged, match="--overwrite"):
            read_checkpoint(path)


def test_a_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pth.tar"
    save_checkpoint(path, small_payload())
    whole = path.read_bytes()
    for size in (*range(0, len(whole) - 200, 97), *range(len(whole) - 200, len(whole))):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged, match="--overwrite"):
            read_checkpoint(path)


def test_torch_and_zip_readers_open_a_file_with_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pth.tar"
    save_checkpoint(path, small_payload())
    for mmap in (False, True):
        weights = torch.load(path, weights_only=True, mmap=mmap)["model_state_dict"]
        assert weights["features.0.weight"].equal(torch.ones(3, 2))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"sha256:")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_a_checksum_are_accepted(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1.pth.tar"
    torch.save(small_payload(), path, _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(path)["dataset_history"] == ["fish"]


def test_the_checksum_covers_the_writers_bytes(tmp_path: Path) -> None:
    """A checksum that any content satisfies would notice nothing."""
    path = tmp_path / "checkpoint-1.pth.tar"
    save_checkpoint(path, small_payload())
    buffer = io.BytesIO(path.read_bytes()[:-64])
    buffer.seek(0, io.SEEK_END)
    buffer.write(b"0" * 64)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(Damaged, match=MATCH):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("folder", "name", "script"),
    [
        ("baseline_scratch/digits/fish", "checkpoint-4.pth.tar", "baseline.sh"),
        ("CPG_single_scratch_woexp/digits/fish/scratch", "checkpoint-4.pth.tar", "wo_backbone.sh"),
        ("CPG_single_scratch_woexp/digits/fish/gradual_prune/0.5", "checkpoint-4.pth.tar", "wo_backbone.sh"),
        (
            "CPG_single_scratch_woexp/digits/fish/gradual_prune",
            "checkpoint-4.pth.tar",
            "select_pruning_ratio_of_backbone.sh",
        ),
        (
            "CPG_single_scratch_woexp/digits/fish/gradual_prune",
            "checkpoint-4_kv_transfer_dog.pth.tar",
            "transfer_kv.sh",
        ),
        ("CPG_fromsingle_scratch_woexp_target/digits/a/b/scratch", "checkpoint-4.pth.tar", "w_backbone.sh"),
        ("CPG_sequence/digits/01_fish/gradual_prune", "checkpoint-4.pth.tar", "cpg_sequence.sh"),
    ],
)
def test_the_remedy_names_the_stage(folder: str, name: str, script: str) -> None:
    command = redo_command(Path("checkpoints/lenet5/seed1") / folder / name)
    assert f"OVERWRITE=1 bash run_pickaback/{script}" in command


# Stages that read what others wrote


@pytest.mark.parametrize("reader", ["search", "select", "pruning", "target", "its own stage"])
def test_a_stage_refuses_a_damaged_input(reader: str, fleet: Fleet) -> None:
    baseline, chosen = fleet.baseline_checkpoint("zero_one"), fleet.chosen_checkpoint("zero_one")
    path, script, argv, remedy = {
        "search": (baseline, search_script, fleet.search_flags("3", "--overwrite"), "baseline.sh"),
        "select": (
            fleet.pruned_checkpoint("zero_one", 0.8),
            select_script,
            fleet.select_flags("1", "--overwrite"),
            "wo_backbone.sh",
        ),
        "pruning": (
            fleet.scratch_checkpoint("zero_one"),
            cpg_script,
            fleet.own_flags("1", "--mode", "prune"),
            "wo_backbone.sh",
        ),
        "target": (
            chosen,
            cpg_script,
            fleet.target_flags("3"),
            "select_pruning_ratio_of_backbone.sh",
        ),
        "its own stage": (baseline, packnet_script, fleet.baseline_flags("1"), "baseline.sh"),
    }[reader]
    flip_a_weight(path)
    message = refusal(script.main, argv)
    assert f"{path} is damaged: {MATCH}" in message
    assert f"OVERWRITE=1 bash run_pickaback/{remedy}" in message
    assert "other arguments" not in message


def test_a_damaged_checkpoint_of_a_run_on_a_sequence_is_named_and_overwrite_redoes_it(
    tmp_path: Path, digits_root: Path
) -> None:
    argv = [
        *("--logs_root", str(tmp_path / "logs"), "--checkpoints_root", str(tmp_path / "checkpoints")),
        *("--data_root", str(digits_root), "--epochs", "1", "--lr", "0.1", "--threads", "1"),
        *("--device", "cpu", "--appr", "ncl"),
    ]
    spg_main.main(argv)
    (path,) = tmp_path.glob("checkpoints/spg/digits_5/ncl/seed1/*/train/checkpoint-*.pth.tar")
    whole = path.read_bytes()
    flip_a_weight(path)
    message = refusal(spg_main.main, argv)
    assert f"{path} is damaged: {MATCH}" in message
    assert "OVERWRITE=1 bash run_pickaback/spg.sh" in message
    spg_main.main([*argv, "--overwrite"])
    assert len(path.read_bytes()) == len(whole)
    read_checkpoint(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose_progress(path: Path) -> None:
    payload = load(path)
    del payload["progress"]
    torch.save(payload, path)


@pytest.mark.parametrize("damage", [flip_a_weight, cut, empty, lose_progress])
@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_damaged_resume_file_is_set_aside(
    damage: Callable[[Path], None],
    flags: tuple,
    unfinished: Callable[[], Path],
    fresh: Fleet,
    trained_fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = unfinished()
    damage(path)
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        fresh.baseline("1", *flags)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(path) in warning and "set aside as resume.pth.tar.damaged" in warning
    assert path.with_name("resume.pth.tar.damaged").read_bytes() == content
    assert not path.exists()
    assert_same_checkpoint(
        fresh.baseline_checkpoint("zero_one"), trained_fleet.baseline_checkpoint("zero_one")
    )


def test_a_log_that_is_not_utf8_does_not_block_a_resumed_run(
    unfinished: Callable[[], Path], fresh: Fleet, trained_fleet: Fleet
) -> None:
    log = unfinished().with_name("train.log")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], b"\xff\xfe\x80 torn\x00\n", *lines[1:]]))
    fresh.baseline("1")
    assert b"\xff\xfe\x80 torn\x00\n" in log.read_bytes()
    assert_same_checkpoint(
        fresh.baseline_checkpoint("zero_one"), trained_fleet.baseline_checkpoint("zero_one")
    )


def test_later_epochs_are_removed_from_a_log_with_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    kept = b"\xff Val Ep. #1 loss\n"
    path.write_bytes(kept + b"\x80 Val Ep. #2 loss\n" + b"x Ep. #" + b"9" * 5000 + b" y\n")
    with logs.to_file(path):
        logs.forget_epochs(after=1)
    assert path.read_bytes() == kept + b"x Ep. #" + b"9" * 5000 + b" y\n"


# Folders that hold more than one stage's checkpoints


def output(folder: Path, *, epochs: int, **stamp: object) -> Output:
    return Output(
        folder=folder,
        epochs=epochs,
        architecture={"name": "lenet5", "layers": "plain"},
        stamp={"config": "digits", "task": "fish", "stage": "baseline", "epochs": epochs, **stamp},
        task_table={"name": "fish"},
        overwrite=True,
    )


METRICS = dict.fromkeys(("train_accuracy", "validation_accuracy", "test_accuracy"), 0.5)


def finish(made: Output) -> None:
    made.finish(small_payload(), Progress(epoch=made.epochs), metrics=METRICS)


def test_finishing_removes_only_what_the_same_stage_of_the_same_task_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epochs, stamp in ((3, {}), (5, {"task": "dog"}), (6, {"stage": "prune 0.5"}), (7, {"config": "x"})):
        made = output(tmp_path / str(epochs), epochs=epochs, **stamp)
        finish(made)
        made.checkpoint.rename(tmp_path / made.checkpoint.name)
    torch.save(small_payload(), tmp_path / "checkpoint-8.pth.tar")  # a published one
    (tmp_path / "checkpoint-9.pth.tar").write_bytes(b"damaged")
    finish(output(tmp_path, epochs=4))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        *(f"checkpoint-{epochs}.pth.tar" for epochs in (4, 5, 6, 7, 8)),
        "checkpoint-9.pth.tar.damaged",
    ]
    assert caplog.text.count("is not from this stage of this task: left in place") == 4


def test_removing_an_output_sets_damaged_files_aside(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "task"
    finish(output(folder, epochs=4))
    (folder / "resume.pth.tar").write_bytes(b"")
    remove_output(folder, root=tmp_path / "root", made_by={"task": "fish"})
    assert [path.name for path in folder.iterdir()] == ["resume.pth.tar.damaged"]


def test_nothing_is_removed_from_a_folder_that_holds_another_runs_output(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "task"
    finish(output(folder, epochs=4))
    (folder / "checkpoint-5.pth.tar").write_bytes(b"")
    with pytest.raises(UserError, match="belongs to another run"):
        remove_output(folder, root=tmp_path / "root", made_by={"task": "dog"})
    assert len(list(folder.glob("checkpoint-?.pth.tar"))) == 2


def test_an_unrecorded_accuracy_is_refused(tmp_path: Path) -> None:
    made = output(tmp_path, epochs=4)
    finish(made)
    payload = load(made.checkpoint)
    del payload["metrics"]
    save_checkpoint(made.checkpoint, payload)
    again = Output(**{**vars(made), "overwrite": False})
    with pytest.raises(UserError, match="does not record its accuracy"):
        again.finished()


def test_a_finished_target_removes_no_checkpoint_of_others_from_its_folder(
    fleet: Fleet, tmp_path: Path
) -> None:
    """A folder given by --save_folder may hold anything."""
    folder = tmp_path / "given"
    folder.mkdir()
    published = folder / "checkpoint-3.pth.tar"
    torch.save(small_payload(), published)
    other = folder / "checkpoint-2.pth.tar"
    other.write_bytes(fleet.scratch_checkpoint("two_three").read_bytes())
    stale = folder / "checkpoint-1.pth.tar"
    stale.write_bytes((fleet.target_folder() / f"checkpoint-{EPOCHS}.pth.tar").read_bytes())
    before = {path: path.read_bytes() for path in (published, other)}
    fleet.target("3", "--save_folder", folder, "--max_allowed_network_width_multiplier", "1.0")
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / f"checkpoint-{EPOCHS}.pth.tar").is_file() and not stale.exists()
