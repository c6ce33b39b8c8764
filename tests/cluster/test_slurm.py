"""LAUNCHER=slurm on a cluster of three nodes, which runs on this machine: about two minutes in all."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from tests.cluster.slurm_cluster import Cluster, await_that
from tests.helpers import REPOSITORY, Fleet, load, same
from tools import select_pruning_ratio as select_script

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch", "squeue")),
    reason="Slurm is not installed (Debian: apt-get install slurm-wlm munge), or the user is not root",
)

# Stands for an interpreter. A task prints that it computes, waits for the file `go` in FAKE, and ends with
# the exit status in the file of its name, if there is one. It has saved something if the file `saves` exists.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c "*version_info*) echo 3.12 ;;
    "-c "*) ;;
    "-m tools.list_tasks "*) tr ' ' '\\n' <<<"$FAKE_TASKS" ;;
    *" --list_unfinished") exit 1 ;;
    *)
        [[ $* =~ --dataset\\ ([a-z]+) ]] && task=${BASH_REMATCH[1]}
        echo "$task computes with $OMP_NUM_THREADS threads"
        touch "$FAKE/started-$task-${SLURM_RESTART_COUNT:-0}"
        [[ ! -e $FAKE/saves ]] || touch "$FAKE/checkpoints/resume.pth.tar"
        while [[ ! -e $FAKE/go ]]; do sleep 0.1; done
        exit "$(cat "$FAKE/$task" 2>/dev/null || echo 0)" ;;
esac
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # munged wants folders that only their owner can write to.
    with Cluster(tmp_path_factory.mktemp("cluster"), max_array=2) as cluster:
        yield cluster


class Stage:
    """A stage with a fake interpreter; its roots are in `folder`."""

    def __init__(self, folder: Path, cluster: Cluster):
        self.folder, self.cluster = folder, cluster
        python = folder / "fake_python"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        self.variables = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "REPORT": "0",
            **{"LAUNCHER": "slurm", "SLURM_CONF": str(cluster.configuration), "FILE_DELAY": "0"},
            **{f"{name.upper()}_ROOT": str(folder / name) for name in ("data", "checkpoints", "logs")},
            **{"PYTHON": str(python), "FAKE": str(folder), "FAKE_TASKS": "red green blue"},
        }

    def start(self, script: str = "baseline.sh", *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", REPOSITORY / "run_pickaback" / script, *arguments],
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        with self.start(*arguments, **variables) as stage:
            output, _ = stage.communicate()
        return stage.returncode, output

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def await_start(self, task: str, restart: int = 0) -> str:
        """Wait until a task has started; its id in Slurm."""
        await_that((self.folder / f"started-{task}-{restart}").exists, what=f"{task}, restart {restart}")
        return self.id_of(task)

    def id_of(self, task: str) -> str:
        number = self.variables["FAKE_TASKS"].split().index(task)
        own = {f"pickaback.{folder.name}" for folder in (self.folder / "logs" / "slurm").iterdir()}
        jobs = [line.split() for line in self.queue("%i %j")]
        arrays = sorted({job.split("_")[0] for job, name in jobs if name in own}, key=int)
        return f"{arrays[number // 2]}_{number % 2}"

    def queue(self, what: str) -> list[str]:
        answer = self.cluster.run("squeue", "--noheader", "--array", f"--format={what}")
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()


@pytest.fixture
def stage(tmp_path: Path, cluster: Cluster) -> Iterator[Stage]:
    stage = Stage(tmp_path, cluster)
    yield stage
    cluster.run("scancel", "--quiet", "--user=root")
    await_that(lambda: not stage.queue("%i"), what="an empty queue")


def test_an_array_over_the_limit_is_split_and_failures_are_named(stage: Stage) -> None:
    stage.let_go()
    (stage.folder / "blue").write_text("3")
    status, output = stage.run(THREADS="1", JOBS="2")
    assert status == 1
    began = sorted(re.findall(r"-- (\d of 3: \w+) on cpu of n\d", output))
    assert began == ["1 of 3: red", "2 of 3: green", "3 of 3: blue"]
    assert output.count("computes with 1 threads") == 3
    assert (
        "error: 1 of 3 tasks failed: blue. See the lines above; once that is corrected, the same command"
        in output
    )
    (stage.folder / "blue").unlink()
    status, output = stage.run()
    assert status == 0 and output.splitlines()[-1].startswith("== stage 1 finished")


def test_what_others_cancel_and_what_vanishes_is_told_apart(stage: Stage, tmp_path: Path) -> None:
    running = stage.start()
    stage.cluster.run("scancel", stage.await_start("red"))
    stage.await_start("green")
    stage.await_start("blue")
    (script,) = [
        process
        for process in stage.cluster.processes_of_job(stage.id_of("green"))
        if b"slurm_script" in Path(f"/proc/{process}/cmdline").read_bytes()
    ]
    os.kill(script, signal.SIGKILL)
    await_that(lambda: len(stage.queue("%i")) == 1, what="the end of the killed one")
    stage.let_go()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1, output
    assert "error: red: cancelled in Slurm (scancel)\n" in output, output
    assert "error: green: ended without an exit status (FAILED): do its nodes see " in output
    assert "error: 2 of 3 tasks failed: " in output and "blue" not in output.split("tasks failed: ")[1]

    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").chmod(0o755)
    (stage.folder / "go").unlink()
    status, output = stage.run(PATH=f"{tmp_path}:{os.environ['PATH']}", FAKE_TASKS="red")
    assert status == 1 and "error: red: vanished: Slurm no longer knows it" in output


def test_ctrl_c_cancels_all_jobs(stage: Stage) -> None:
    running = stage.start("run_all.sh", "digits")
    stage.await_start("red")
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert output.endswith("\ninterrupted: the same command continues from here\n")
    assert output.count("interrupted") == 1
    await_that(lambda: not stage.queue("%i"), what="an empty queue")


def test_a_failed_node_and_a_time_limit_requeue_a_task(stage: Stage) -> None:
    running = stage.start(SLURM_ARGS="--time=1 --signal=B:USR1@50", FAKE_TASKS="red green")
    red = stage.await_start("red")
    stage.await_start("green")
    (stage.folder / "saves").touch()
    (stage.folder / "checkpoints" / "resume.pth.tar").touch()
    (node,) = [line.split()[1] for line in stage.queue("%i %N") if line.startswith(f"{red} ")]
    stage.cluster.kill_node(node)
    stage.await_start("red", restart=1)
    stage.await_start("green", restart=1)  # its time limit was near
    stage.let_go()
    output, _ = running.communicate(timeout=60)
    stage.cluster.start_node(node)
    stage.cluster.await_idle()
    assert running.returncode == 0, output
    assert "-- green: the time limit is near, requeued\n" in output
    assert re.search(r"-- 1 of 2: red on cpu of n\d, restart 1\n", output)


def test_a_task_that_saves_nothing_within_its_time_is_not_requeued_for_ever(stage: Stage) -> None:
    running = stage.start(FAKE_TASKS="red")
    stage.cluster.run("scancel", "--batch", "--signal=USR1", stage.await_start("red"))
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1, output
    assert "error: red saved nothing within its time limit: raise --time in SLURM_ARGS\n" in output


def test_a_failed_task_leaves_no_later_job_in_the_queue(stage: Stage) -> None:
    (stage.folder / "red").write_text("1")
    status, output = stage.run("run_all.sh", "digits", "--detach", JOBS="2")
    assert status == 0, output
    assert "-- submitted: jobs " in output
    # Four stages in two arrays each, the choice of the ratios and the table.
    assert len({name.split("_")[0] for name in stage.queue("%i")}) == 10
    stage.let_go()
    await_that(lambda: not stage.queue("%i"), what="an empty queue")
    ended = [path.relative_to(stage.folder / "logs") for path in stage.folder.rglob("status-*")]
    assert len(ended) == 3 and all("baseline." in str(path) for path in ended)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"PATH": "/nowhere"},
            "LAUNCHER=slurm: sbatch not found: run this on a login node, or set",
        ),
        (
            {"SLURM_ARGS": "--partition nope"},
            "Slurm refused the jobs: invalid partition specified: nope; Batch job submission failed: "
            "Invalid partition name specified: correct SLURM_ARGS",
        ),
        ({"JOBS": "3"}, "JOBS=3 exceeds this cluster's MaxArraySize of 2: lower it, or leave it empty"),
        ({"GPUS": "0 1"}, 'GPUS="0 1" and LAUNCHER=slurm contradict: request GPUs in SLURM_ARGS'),
        ({"LAUNCHER": "condor"}, "LAUNCHER=condor must be local or slurm"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    stage: Stage, variables: dict[str, str], message: str
) -> None:
    if "PATH" in variables:  # everything but Slurm
        folder = stage.folder / "bin"
        folder.mkdir()
        for name in ("bash", "basename", "dirname", "env", "sed", "setpriv", "true"):
            (folder / name).symlink_to(shutil.which(name))
        variables = {"PATH": str(folder)}
    status, output = stage.run(**variables)
    assert status == 1
    assert len(re.findall("^error: ", output, flags=re.MULTILINE)) == 1
    assert f"error: {message}" in output


def test_only_jobs_can_be_left(stage: Stage) -> None:
    status, output = stage.run("run_all.sh", "digits", "--detach", LAUNCHER="local")
    assert status == 1
    assert "error: --detach submits jobs to Slurm: set LAUNCHER=slurm\n" in output


def test_a_node_that_does_not_see_a_folder_is_named(stage: Stage) -> None:
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    (stage.folder / "job").mkdir()
    (stage.folder / "job" / "command.sh").touch()
    ended = subprocess.run(
        ["bash", REPOSITORY / "run_pickaback" / "slurm_task.sh", stage.folder / "job", "/nowhere", "0"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert re.fullmatch("error: node .+ does not see /nowhere: .* that all nodes share\n", ended.stderr)
    assert (stage.folder / "job" / "status-0").read_text() == "1\n"


def test_a_detached_run_with_requeued_tasks_equals_a_local_one(stage: Stage, tmp_path: Path) -> None:
    variables = {"PYTHON": sys.executable, "THREADS": "1", "CONTROL": "0", "EPOCHS": "6", "PRUNE_EPOCHS": "2"}
    variables |= {"SPARSITIES": "0.5", "MAX_WIDTH": "1.0", "MAX_ITERATIONS": "2"}
    status, output = stage.run("run_all.sh", "digits", "1-2", "--detach", **variables)
    assert status == 0, output
    requeued = set()

    def ended() -> bool:
        # As Slurm does before the time limit, once in each stage that trains, after a saved epoch.
        for folder in stage.folder.glob("checkpoints/lenet5/seed1/*"):
            if folder.name not in requeued and list(folder.rglob("resume.pth.tar")):
                requeued.add(folder.name)
                stage.cluster.run("scancel", "--batch", "--signal=USR1", "--user=root", "--state=RUNNING")
        return not stage.queue("%i")

    await_that(ended, what="an empty queue", seconds=600)
    printed = "".join(path.read_text() for path in stage.folder.glob("logs/slurm/*/output-*.txt"))
    assert "the time limit is near, requeued" in printed
    assert "restart 1" in printed
    assert re.search(r"^gain", printed, flags=re.MULTILINE) or "scratch" in printed

    local = Fleet(root=tmp_path / "local", data=stage.folder / "data")
    training = ("--epochs", "6", "--threads", "1")
    pruning = ("--prune_epochs", "2", "--target_sparsity", "0.5")
    packnet_script.main(local.flags("--dataset", "1-2", *training))
    cpg_script.main(local.flags("--dataset", "1-2", "--mode", "finetune", "prune", *training, *pruning))
    select_script.main(local.files("--dataset", "1-2", *pruning[2:]))
    among = ("--dataset", "1-2", "--candidates", "1-2")
    search_script.main(local.flags(*among, "--max_iterations", "2", "--threads", "1"))
    narrow = ("--max_allowed_network_width_multiplier", "1.0")
    cpg_script.main(local.flags(*among, "--backbone", "from_csv", *training, *narrow))
    names = [path.relative_to(local.checkpoints) for path in local.checkpoints.rglob("*.pth.tar")]
    # Per task: scratch; own, pruned and chosen; the target and its only width.
    assert len(names) == 2 * (1 + 3 + 2)
    for name in names:
        first, second = load(local.checkpoints / name), load(stage.folder / "checkpoints" / name)
        for key in ("model_state_dict", "masks", "shared_layer_info"):
            assert same(first.get(key), second.get(key)), f"{name}: {key}"
