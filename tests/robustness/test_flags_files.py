"""No file is written over an input, or over another kind of file."""

from collections.abc import Callable
from pathlib import Path

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from tests.helpers import Fleet, refusal
from tools import export_task, verify_pairs
from utils.files import csv_text
from utils.folders import same_file

CHECKPOINT = b"PK\x03\x04" + bytes(range(256)) * 4


@pytest.fixture
def checkpoint(fresh: Fleet) -> Path:
    """A file with the bytes of a checkpoint."""
    fresh.root.mkdir(parents=True, exist_ok=True)
    path = fresh.root / "own.pt"
    path.write_bytes(CHECKPOINT)
    return path


def refused(main: Callable, argv: list, path: Path) -> str:
    """The refusal; `path` must keep its bytes, and nothing else be written beside it."""
    before = {found: found.read_bytes() for found in path.parent.rglob("*") if found.is_file()}
    message = refusal(main, [str(word) for word in argv])
    assert {found: found.read_bytes() for found in path.parent.rglob("*") if found.is_file()} == before
    return message


def test_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert same_file(first, tmp_path / "x" / ".." / "a") and not same_file(first, second)
    first.write_text("x")
    second.symlink_to(first)
    assert same_file(first, second)
    second.unlink()
    second.hardlink_to(first)
    assert same_file(first, second)


@pytest.mark.parametrize("link", [None, "symlink", "folder"])
def test_a_task_is_not_exported_over_its_checkpoint(checkpoint: Path, link: str | None) -> None:
    source = checkpoint
    if link == "symlink":
        source = checkpoint.with_name("link.pt")
        source.symlink_to(checkpoint)
    elif link == "folder":
        source = checkpoint.parent / "there" / ".." / checkpoint.name
        (checkpoint.parent / "there").mkdir()
    assert "is also the checkpoint" in refused(
        export_task.main, [source, "1", "--to", checkpoint], checkpoint
    )


def test_verification_does_not_write_over_its_network(checkpoint: Path) -> None:
    files = [checkpoint, "--pairs", "pairs.txt", "--images", "."]
    assert "is also the network" in refused(verify_pairs.main, [*files, "--to", checkpoint], checkpoint)
    other = checkpoint.with_name("other.pt")
    other.write_bytes(CHECKPOINT)
    assert "is not a report" in refused(verify_pairs.main, [*files, "--to", other], checkpoint)


@pytest.mark.parametrize("script", [packnet_script, cpg_script])
@pytest.mark.parametrize("content", [CHECKPOINT, b'{"zero_one": "0.9"}\n'])
def test_a_report_replaces_only_a_report(
    script: object, content: bytes, fresh: Fleet, checkpoint: Path
) -> None:
    checkpoint.write_bytes(content)
    report = ("--mode", "inference", "--compute_report", "--report_file", checkpoint)
    message = refused(script.main, fresh.flags("--dataset", "1", *report), checkpoint)
    assert message.startswith(f"error: --report_file {checkpoint} exists and is not a report")


@pytest.mark.parametrize("place", ["log_path", "save_folder"])
def test_a_log_is_not_appended_to_another_file(place: str, fresh: Fleet, checkpoint: Path) -> None:
    argv = fresh.baseline_flags("1", f"--{place}", checkpoint.parent, "--logfile", checkpoint.name)
    # The name of a checkpoint is refused at once; one that looks like a log's is looked into.
    with pytest.raises(SystemExit, match="2"):
        packnet_script.main(argv)
    disguised = checkpoint.rename(checkpoint.with_name("own.log"))
    argv[-1] = disguised.name
    held = disguised.read_bytes()
    assert "exists and is not a log" in refusal(packnet_script.main, argv)
    assert disguised.read_bytes() == held


def test_a_log_with_a_damaged_line_is_continued(fresh: Fleet) -> None:
    fresh.root.mkdir(parents=True, exist_ok=True)
    log = fresh.root / "mine.log"
    log.write_bytes(b"\x00\xff\n2026-01-01 00:00:00,000 - root - INFO - before\n")
    fresh.baseline("1", "--epochs", "1", "--log_path", fresh.root, "--logfile", "mine.log")
    assert b"INFO - before" in log.read_bytes() and b"Train Ep. #1 " in log.read_bytes()


@pytest.mark.parametrize("flag", ["--jsonfile", "--csv_path"])
def test_a_checkpoint_is_not_a_result_file(flag: str, fresh: Fleet, checkpoint: Path) -> None:
    message = refused(packnet_script.main, fresh.baseline_flags("1", flag, checkpoint), checkpoint)
    assert str(checkpoint) in message and f"name another file with {flag}" in message


def test_one_file_is_not_named_twice(fresh: Fleet, checkpoint: Path) -> None:
    path = checkpoint.with_name("results.txt")
    flags = ("--jsonfile", path, "--pruning_ratio_to_acc_record_file", path)
    message = refused(cpg_script.main, fresh.own_flags("1", *flags), checkpoint)
    assert f"{path} is also --jsonfile" in message


def test_the_choice_is_not_written_over_the_distances(fresh: Fleet, checkpoint: Path) -> None:
    table = fresh.paths.table_csv("digits")
    flags = fresh.search_flags("1", "--csv_path", table)
    assert "is also the CSV of the distances" in refused(search_script.main, flags, checkpoint)
    copied = checkpoint.with_name("copied.csv")
    columns = ("target_id", "task_id", "ddv_cos", "ddv_euc")
    copied.write_text(csv_text([dict.fromkeys(columns, 1)], columns))
    flags = fresh.search_flags("1", "--csv_path", copied)
    assert "holds the distances" in refused(search_script.main, flags, checkpoint)
