"""Processes that are killed, interrupted or started twice."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import spg_main as spg_script
import transfer_kv_perceiver_io as transfer_script
from pipeline import cpg_sequence, kv_transfer, search, spg, train_task
from tests.helpers import EPOCHS, Fleet, command
from tests.run_pickaback.test_stages_bash import Bash
from tools import select_pruning_ratio as select_script
from utils.errors import UserError
from utils.files import update_json
from utils.folders import alone_in

ENTRY_POINTS = [
    *("packnet_cifar100_main_normal.py", "CPG_cifar100_main_normal.py", "CPG_MM_main_normal.py"),
    *("pickaback_perceiverIO.py", "transfer_kv_perceiver_io.py", "spg_main.py"),
]
TOOLS = [
    "tools.compare",
    "tools.export_task",
    "tools.report",
    "tools.select_pruning_ratio",
    "tools.verify_pairs",
]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this on Linux alone")


def ended(process: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed]


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@LINUX
@pytest.mark.parametrize("script", ["run_all.sh", "cpg_sequence.sh", "baseline.sh"])
def test_everything_ends_when_the_outer_script_is_killed(tmp_path: Path, script: str) -> None:
    bash = Bash(tmp_path)
    stage = bash.start(script, JOBS="2", FAKE_HANG="1", OVERWRITE="1")
    jobs = bash.wait_for("start", 2)
    inner = children(stage.pid)
    stage.kill()
    stage.wait()
    wait_until(lambda: all(ended(process) for process in (*inner, *jobs)))
    assert len(bash.commands()) == 2, "a killed stage started another job"


def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from unittest import mock
from utils.errors import UserError
from utils.files import update_json
from utils.folders import alone_in
with alone_in(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen(
        [sys.executable, "-c", "import logging; logging.basicConfig(level=logging.INFO)\n" + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = waiter.stderr.readline()
    assert str(tmp_path) in line and "Waiting for " in line
    if sys.platform == "linux":
        assert f"process {holder.pid}, " in line
    assert waiter.poll() is None
    holder.kill()
    assert waiter.stdout.readline() == "held\n"
    waiter.kill()
    for process in (holder, waiter):
        process.communicate()
    with alone_in(tmp_path):
        pass


def test_a_second_start_waits_then_finds_the_work_finished(fresh: Fleet) -> None:
    argv = command("packnet_cifar100_main_normal.py", fresh.baseline_flags("1", "--epochs", "12"))
    folder = fresh.paths.baselines("digits") / "zero_one"
    with alone_in(folder):  # both start while a third process works in the folder
        runs = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for run in runs:
            assert "Waiting for " in run.stderr.readline()
        assert not (folder / "train.log").exists()
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert sum("is finished: skipped" in text for text in errors) == 1
    epochs = re.findall(r"Train Ep\. #(\d+) ", (folder / "train.log").read_text())
    assert epochs == [str(number) for number in range(1, 13)]
    assert EPOCHS < 12


class Held(Exception):
    """Raised instead of holding a folder."""


def stop_at_lock(folder: Path, *, part: str = "") -> None:
    raise Held(folder, *([part] if part else []))


def held_by(main: Callable, argv: list[str]) -> Path:
    """The first folder that a script holds; nothing may be in it yet."""
    with pytest.raises(Held) as stopped:
        main(argv)
    (folder,) = stopped.value.args
    assert not folder.exists()
    return folder


def test_each_training_script_holds_its_folder_before_it_writes(
    fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (train_task, cpg_sequence, spg):
        monkeypatch.setattr(module, "alone_in", stop_at_lock)
    paths = fresh.paths
    assert held_by(packnet_script.main, fresh.baseline_flags("1")) == paths.baselines("digits") / "zero_one"
    assert held_by(cpg_script.main, fresh.own_flags("1")) == paths.single_scratch("digits", "zero_one")
    named = fresh.root / "named"
    assert held_by(packnet_script.main, fresh.baseline_flags("1", "--save_folder", named)) == named
    baselines = fresh.root / "baselines.txt"
    baselines.parent.mkdir(parents=True)
    baselines.write_text('{"zero_one": "0.5"}')
    sequence = fresh.own_flags("1", "--total_num_tasks", "1", "--jsonfile", baselines)
    assert held_by(cpg_script.main, sequence) == paths.in_sequence("digits", 1, "zero_one").parent
    roots = (
        "--data_root",
        fresh.data,
        "--checkpoints_root",
        fresh.checkpoints,
        "--logs_root",
        fresh.root / "logs",
    )
    flags = ("--seq", "digits_5", "--run", "mine", "--device", "cpu")
    continual = held_by(spg_script.main, [*map(str, roots), *flags])
    assert continual == fresh.checkpoints / "mine"
    packnet_script.main(fresh.baseline_flags("1", "--list_unfinished"))


def test_each_choice_and_transfer_is_made_by_one_process(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (search, kv_transfer, select_script):
        monkeypatch.setattr(module, "alone_in", stop_at_lock)
    pruned = fleet.paths.pruned("digits", "zero_one")
    with pytest.raises(Held) as stopped:
        fleet.select("1", "--overwrite")
    assert stopped.value.args == (pruned,)
    result = fleet.paths.result_csv("digits")
    with pytest.raises(Held) as stopped:  # the targets of one file are chosen side by side
        fleet.search("3", "--overwrite")
    assert stopped.value.args == (result.parent, f"{result.name}.3")
    pair = ("--dataset_config", "digits", "--load_folder", pruned, "--backbone", "1", "--target_id", "3")
    with pytest.raises(Held) as stopped:
        transfer_script.main(fleet.files(*pair))
    assert stopped.value.args == (pruned,)


def test_parts_of_a_folder_are_held_apart(tmp_path: Path) -> None:
    with alone_in(tmp_path, part="a"), alone_in(tmp_path, part="b"), alone_in(tmp_path):
        names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == [".a.output.lock", ".b.output.lock", ".output.lock"]


@LINUX
@pytest.mark.parametrize("script", [*ENTRY_POINTS, *TOOLS])
def test_an_interrupt_during_imports_leaves_no_traceback(script: str, tmp_path: Path) -> None:
    """The signal comes when PyTorch's libraries are being loaded, or somewhat later."""
    argv = [script] if script.endswith(".py") else ["-m", script]
    for delay in (0.0, 0.3) if script in ENTRY_POINTS else (0.15,):
        process = subprocess.Popen(
            [sys.executable, *argv, "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A test run in the background would hand on an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda maps=maps: "libtorch" in maps.read_text())
        time.sleep(delay)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        if process.returncode != 0:  # it may have ended before the signal
            assert process.returncode in (-signal.SIGINT, 130) and output == ""


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, error: int) -> None:
    broken = mock.patch("fcntl.flock", side_effect=OSError(error, os.strerror(error)))
    named = pytest.raises(UserError, match=f"{tmp_path} is on a file system without locks")
    with broken, named, alone_in(tmp_path):
        pass
    with broken, pytest.raises(UserError, match="file system without locks"):
        update_json(tmp_path / "shared.json", {"a": 1})
