"""How a task on several processes ends: killed, failed, started wrongly, or by torchrun."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import transfer_kv_perceiver_io as transfer_script
from models.layers import PLAIN
from models.lenet5 import lenet5
from pipeline import train_task
from tests.helpers import REPOSITORY, Fleet, command, load, refusal
from tests.parallel.conftest import ALL, together
from tools import select_pruning_ratio as select_script
from training import parallel
from training.loop import Progress
from training.outputs import Output
from utils.errors import UserError


@pytest.fixture
def by_torchrun(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that torchrun gives the first of two processes."""
    variables = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    variables["LOCAL_WORLD_SIZE"] = "2"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def kill_at_second_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every epoch, and kill the second process after the second save."""
    save, saved = Output.save_unfinished, []

    def killing(self: Output, payload: dict, progress: Progress) -> None:
        save(self, payload, progress)
        saved.append(progress.epoch)
        if len(saved) == 2:
            parallel._team._workers[1].kill()

    monkeypatch.setattr(train_task, "SAVING_SHARE", 1e9)
    monkeypatch.setattr(Output, "save_unfinished", killing)


@pytest.mark.parametrize("others", [1, pytest.param(4, marks=pytest.mark.skipif(not ALL, reason="long"))])
def test_a_killed_process_ends_the_task_and_another_number_of_them_resumes(
    fresh: Fleet,
    tmp_path: Path,
    double: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    others: int,
) -> None:
    short = ("--epochs", "3", "--train_per_class", "50", "--run", fresh.run)
    killed = "process 2 of 2 of this task was killed by signal 9: run the same command again"
    with monkeypatch.context() as patch:
        kill_at_second_save(patch)
        with pytest.raises(UserError, match=killed), together(2):
            fresh.baseline("1", *short)
    with together(others):
        fresh.baseline("1", *short)
    assert "after epoch 2" in capsys.readouterr().err
    uninterrupted = Fleet(root=tmp_path / "other", data=fresh.data)
    uninterrupted.baseline("1", *short)
    resumed, expected = (
        load(fleet.baseline_checkpoint("zero_one"))["model_state_dict"] for fleet in (fresh, uninterrupted)
    )
    assert all(torch.allclose(resumed[name], value, rtol=0, atol=1e-5) for name, value in expected.items())


def test_what_fails_in_another_process_is_reported_by_the_first() -> None:
    network = lenet5(layers=PLAIN, batch_norm=False)
    network.add_head(2)
    with (
        pytest.raises(RuntimeError, match=r"process 2 of 2 failed:(.|\n)*has no attribute '_fly'"),
        together(2),
    ):
        forward = parallel.split(network)
        parallel._team.link.message({"do": "fly"})
        forward(torch.zeros(8, 3, 32, 32))


def test_more_gpus_than_there_are_are_refused(fresh: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, held in (("auto", 2), ("cuda:1", 1)):
        line = refusal(
            packnet_script.main, fresh.files("--dataset", "1", "--device", device, "--gpus_per_task", "3")
        )
        first = device.removeprefix("cuda:").replace("auto", "0")
        assert f"--gpus_per_task 3: this machine has {held} GPUs from cuda:{first} on: lower it" in line


@pytest.mark.parametrize("script", [search_script, transfer_script, select_script])
def test_torchrun_is_refused_where_one_process_computes(script: object, by_torchrun: dict) -> None:
    assert "computes in one process: run it without torchrun" in refusal(script.main, [])


def test_flags_that_contradict_torchrun_are_refused(
    fresh: Fleet, by_torchrun: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--gpus_per_task 3, but torchrun started 2 processes"):
        fresh.baseline("1", "--gpus_per_task", "3")
    with pytest.raises(UserError, match="--device cuda:1: torchrun gives every process a GPU of its own"):
        fresh.baseline("1", "--device", "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="torchrun started 2 processes on this machine, which has 1 GPUs"):
        fresh.baseline("1", "--device", "cuda")


def test_only_the_first_process_of_torchrun_speaks(
    fresh: Fleet, by_torchrun: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    flags = fresh.baseline_flags("1", "--epochs", "1")
    second = subprocess.Popen(
        command("packnet_cifar100_main_normal.py", flags),
        env={**os.environ, "RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    packnet_script.main(flags)
    assert second.communicate(timeout=60) == ("", None)
    assert second.returncode == 0
    assert load(fresh.baseline_checkpoint("zero_one"))["epoch"] == 1


@pytest.mark.skipif(not ALL, reason="long: PARALLEL_TESTS=all")
def test_a_killed_process_of_torchrun_is_reported_in_one_line(fresh: Fleet) -> None:
    flags = fresh.baseline_flags("1", "--epochs", "500")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    job = subprocess.Popen(
        [*start, str(REPOSITORY / "packnet_cifar100_main_normal.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = fresh.paths.baselines("digits") / "zero_one"
    end = time.monotonic() + 120
    while not (folder / "resume.pth.tar").exists() and time.monotonic() < end:
        time.sleep(0.2)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[2]), 9)
    output, _ = job.communicate(timeout=60)
    ours = [line for line in output.splitlines() if line.startswith("error: ")]
    assert job.returncode == 1
    assert ours == [
        "error: one of the 4 processes of this task ended: run the same command again; it continues from the "
        "last saved epoch"
    ]
