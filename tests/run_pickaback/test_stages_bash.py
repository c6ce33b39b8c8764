"""The bash layer, driven with a fake interpreter that only records how it was called."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = REPOSITORY / "run_pickaback"

# Answers the queries of the bash layer; any other command is logged as a `start` and an `end` line.
# FAKE_FINISHED holds finished tasks, FAKE_UNFINISHED replaces the answer to --list_unfinished.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c "*version_info*) echo "${FAKE_VERSION:-3.12}" ;;
    "-c "*tomllib*) [[ $* != *" all "* ]] || echo "torch>=2" ;;
    "-c "*) ;;
    "-m venv "*)
        echo "$*" >>"$FAKE_LOG"
        mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"
        if [[ $* == *--clear* ]]; then rm -f "${!#}"/.in*; fi ;;
    "-m pip "*)
        echo "$*" >>"$FAKE_LOG"
        sleep "${FAKE_SLEEP:-0}"
        exit "${FAKE_PIP_STATUS:-0}" ;;
    "-m tools.list_tasks"*" ${FAKE_REFUSED:-none} "*)
        echo "error: refused" >&2
        exit 1 ;;
    "-m tools.list_tasks "*" --dataset ${FAKE_BACKBONE:-none}") echo "${FAKE_BACKBONE_NAME:-red}" ;;
    "-m tools.list_tasks "*" --with_candidates") tr ' ' '\\n' <<<"${FAKE_WITH_CANDIDATES:-red}" ;;
    "-m tools.list_tasks "*) tr ' ' '\\n' <<<"${FAKE_TASKS:-red green blue}" ;;
    *" --list_unfinished")
        echo "list $$ $*" >>"$FAKE_LOG"
        [[ -z ${FAKE_HANG:-} ]] || exec sleep 60
        set -- "${@:1:$#-1}"
        for task in ${!#//,/ }; do
            if [[ " ${FAKE_FINISHED:-} " == *" $task "* ]]; then
                echo "$task is finished: skipped" >&2
            else
                echo "${FAKE_UNFINISHED-$task}"
            fi
        done
        exit "${FAKE_LIST_STATUS:-0}" ;;
    *)
        echo "start $$ $* OMP=${OMP_NUM_THREADS:-}" >>"$FAKE_LOG"
        [[ -z ${FAKE_HANG:-} ]] || exec sleep 60
        sleep "${FAKE_SLEEP:-0}"
        echo "end $$" >>"$FAKE_LOG"
        [[ -z ${FAKE_FAIL:-} || " $* " != *" --dataset $FAKE_FAIL "* ]] || exit 1 ;;
esac
"""


class Bash:
    """Runs stage scripts in `folder` without the caller's configuration in the environment."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log.txt"
        self.python = folder / "fake_python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        return {**kept, "PYTHON": str(self.python), "FAKE_LOG": str(self.log), "REPORT": "0", **variables}

    def run(self, script: str | Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", STAGES / script, *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=30,
        )

    def start(self, script: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", STAGES / script],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A test run in the background would hand on an ignored SIGINT, which bash cannot trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def commands(self) -> list[str]:
        """The commands started, without process ids."""
        return [line.split(" ", 2)[2] for line in self.lines() if line.startswith("start ")]

    def queries(self) -> list[str]:
        """The commands that only list the unfinished tasks, without process ids."""
        return [line.split(" ", 2)[2] for line in self.lines() if line.startswith("list ")]

    def wait_for(self, kind: str, count: int) -> list[int]:
        """Process ids of the first `count` commands logged as `kind`, once they have started."""
        for _ in range(1000):
            started = [int(line.split()[1]) for line in self.lines() if line.startswith(f"{kind} ")]
            if len(started) >= count:
                return started
            time.sleep(0.01)
        raise AssertionError(f"only {self.lines()}")


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    return Bash(tmp_path)


def value(command: str, flag: str) -> str:
    """The word after `flag` in a logged command."""
    found = re.search(rf" {flag} (\S+)", command)
    assert found, f"{flag} not in {command}"
    return found.group(1)


def succeeded(result: subprocess.CompletedProcess) -> None:
    assert result.returncode == 0, result.stdout + result.stderr


# Fan-out.


def test_every_task_runs_once_and_at_most_jobs_at_a_time(bash: Bash) -> None:
    tasks = [f"task{number}" for number in range(7)]
    succeeded(bash.run("baseline.sh", FAKE_TASKS=" ".join(tasks), JOBS="3", FAKE_SLEEP="0.1"))
    assert sorted(value(command, "--dataset") for command in bash.commands()) == tasks

    at_once = most = 0
    for line in bash.lines():
        at_once += {"start": 1, "end": -1, "list": 0}[line.split()[0]]
        most = max(most, at_once)
    assert most == 3


def test_other_tasks_continue_after_a_failure_which_is_named(bash: Bash) -> None:
    result = bash.run("baseline.sh", JOBS="1", FAKE_FAIL="red")
    assert result.returncode == 1
    assert [value(command, "--dataset") for command in bash.commands()] == ["red", "green", "blue"]
    assert "1 of 3 tasks failed: red." in result.stderr
    assert "stage 1 stopped with exit status 1" in result.stdout


def test_a_failure_is_reported_for_any_order_of_ending(bash: Bash) -> None:
    tasks = " ".join(f"task{number}" for number in range(8))
    result = bash.run("baseline.sh", FAKE_TASKS=tasks, JOBS="8", FAKE_FAIL="task3")
    assert result.returncode == 1
    assert "1 of 8 tasks failed: task3." in result.stderr


def test_jobs_are_bound_to_the_gpus_in_turn(bash: Bash) -> None:
    succeeded(bash.run("baseline.sh", GPUS="0 3", JOBS="4", FAKE_TASKS="a b c d", FAKE_SLEEP="0.2"))
    devices = {value(command, "--dataset"): value(command, "--device") for command in bash.commands()}
    assert devices == {"a": "cuda:0", "b": "cuda:3", "c": "cuda:0", "d": "cuda:3"}


def test_the_gpus_of_a_task_are_consecutive_ones(bash: Bash) -> None:
    result = bash.run("baseline.sh", GPUS="0 1 4 5", GPUS_PER_TASK="2", FAKE_TASKS="a b", FAKE_SLEEP="0.2")
    succeeded(result)
    commands = {value(command, "--dataset"): command for command in bash.commands()}
    assert [value(commands[task], "--device") for task in "ab"] == ["cuda:0", "cuda:4"]
    assert {value(command, "--gpus_per_task") for command in commands.values()} == {"2"}
    assert "jobs: 2," in result.stdout and "GPUs 0 1 4 5 (2 per task)" in result.stdout


def test_a_freed_gpu_runs_the_next_task(bash: Bash) -> None:
    succeeded(bash.run("baseline.sh", GPUS="5", FAKE_TASKS="a b c"))
    assert [value(command, "--device") for command in bash.commands()] == ["cuda:5"] * 3


def test_one_job_per_gpu_by_default(bash: Bash) -> None:
    result = bash.run("baseline.sh", GPUS="0 1 2")
    assert "jobs: 3," in result.stdout


def test_threads_are_cores_over_jobs_and_pinned(bash: Bash) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # The user's OMP_NUM_THREADS must not change the number of cores counted.
    succeeded(bash.run("baseline.sh", JOBS="1", OMP_NUM_THREADS="1", FAKE_TASKS="a"))
    succeeded(bash.run("baseline.sh", JOBS="1000", FAKE_TASKS="a"))
    succeeded(bash.run("baseline.sh", JOBS="1000", THREADS="3", FAKE_TASKS="a"))
    threads = [value(command, "--threads") for command in bash.commands()]
    assert threads == [str(cores), "1", "3"]
    assert [re.search(r"OMP=(\d+)", command).group(1) for command in bash.commands()] == threads


def test_finished_tasks_start_no_job(bash: Bash) -> None:
    result = bash.run("baseline.sh", FAKE_FINISHED="red blue", FAKE_TASKS="red green blue")
    succeeded(result)
    assert [value(command, "--dataset") for command in bash.commands()] == ["green"]
    assert "-- 1 of 1: green on auto" in result.stdout
    assert result.stderr == "red is finished: skipped\nblue is finished: skipped\n"


def test_a_stage_whose_tasks_are_all_finished_asks_once(bash: Bash) -> None:
    arguments = {"FAKE_FINISHED": "red green blue", "SPARSITIES": "0.5"}
    result = bash.run("wo_backbone.sh", **arguments)
    succeeded(result)
    assert not bash.commands()
    (query,) = bash.queries()
    assert query.endswith(
        " --target_sparsity 0.5 --device cpu --threads 1 --dataset red,green,blue --list_unfinished"
    )
    assert "-- all 3 tasks are finished" in result.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {"FAKE_LIST_STATUS": "2"},
        {"FAKE_LIST_STATUS": "1", "FAKE_UNFINISHED": ""},
        {"FAKE_UNFINISHED": "purple"},
        {"FAKE_UNFINISHED": ""},
    ],
)
def test_without_a_valid_list_of_unfinished_tasks_every_task_starts(
    bash: Bash, variables: dict[str, str]
) -> None:
    result = bash.run("baseline.sh", JOBS="1", FAKE_FINISHED="red", **variables)
    succeeded(result)
    assert [value(command, "--dataset") for command in bash.commands()] == ["red", "green", "blue"]
    assert result.stderr == ""


@pytest.mark.parametrize("variables", [{"OVERWRITE": "1"}, {"FAKE_TASKS": "red"}])
def test_a_single_task_or_overwrite_needs_no_list(bash: Bash, variables: dict[str, str]) -> None:
    succeeded(bash.run("baseline.sh", FAKE_FINISHED="red", **variables))
    assert bash.commands() and not bash.queries()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_list_of_unfinished_tasks(bash: Bash, number: int) -> None:
    (bash.folder / "tmp").mkdir()
    stage = bash.start("baseline.sh", FAKE_HANG="1", TMPDIR=str(bash.folder / "tmp"))
    (query,) = bash.wait_for("list", 1)
    stage.send_signal(number)
    output, _ = stage.communicate(timeout=10)
    how = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by signal 15"}[number]
    assert output.endswith(f"\n{how}: the same command continues from here\n")
    assert stage.returncode == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(query, 0)
    assert not bash.commands()
    assert not list((bash.folder / "tmp").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_stage_and_its_jobs(bash: Bash, number: int) -> None:
    stage = bash.start("baseline.sh", JOBS="2", FAKE_HANG="1", OVERWRITE="1")
    jobs = bash.wait_for("start", 2)
    stage.send_signal(number)
    stage.communicate(timeout=10)
    assert stage.returncode == 128 + number
    for job in jobs:
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)
    assert len(bash.commands()) == 2


def test_a_signal_to_run_all_stops_the_jobs_of_its_stage(bash: Bash) -> None:
    run_all = bash.start("run_all.sh", JOBS="2", FAKE_HANG="1", OVERWRITE="1")
    jobs = bash.wait_for("start", 2)
    run_all.send_signal(signal.SIGINT)
    output, _ = run_all.communicate(timeout=10)
    assert run_all.returncode == 130, output
    assert output.endswith("\ninterrupted: with OVERWRITE=1, the same command redoes what is finished\n")
    assert "exit status" not in output and output.count("interrupted") == 1
    for job in jobs:
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)


# What the stages pass to Python.


def test_variables_of_the_environment_reach_the_command(bash: Bash) -> None:
    result = bash.run(
        "baseline.sh",
        *("cifar100", "1-3"),
        **{"ARCH": "resnet50", "SEED": "7", "EPOCHS": "3", "BATCH_SIZE": "8", "LR": "0.5", "DEVICE": "cpu"},
        **{"PRECISION": "bf16", "PROTOCOL": "heldout", "RUN": "mine", "OVERWRITE": "1", "JOBS": "1"},
        **{"CHECKPOINTS_ROOT": "kept", "LOGS_ROOT": "/logs", "EXTRA_ARGS": "--weight_decay 0\n --lr_mask *"},
        TEXT_ENCODER="bert-base-uncased",
    )
    succeeded(result)
    command = bash.commands()[0]
    assert command.startswith("packnet_cifar100_main_normal.py ")
    expected = {
        **{"--arch": "resnet50", "--dataset_config": "cifar100", "--seed": "7", "--protocol": "heldout"},
        **{"--data_root": "data", "--logs_root": "/logs", "--run": "mine", "--precision": "bf16"},
        # A relative path in the environment starts at the user's folder.
        **{"--checkpoints_root": str(bash.folder / "kept"), "--device": "cpu", "--mode": "finetune"},
        "--text_encoder": "bert-base-uncased",
        **{"--epochs": "3", "--batch_size": "8", "--lr": "0.5", "--weight_decay": "0", "--lr_mask": "*"},
    }
    assert {flag: value(command, flag) for flag in expected} == expected
    assert " --overwrite " in command


def test_a_relative_path_of_a_table_starts_at_the_users_folder(bash: Bash) -> None:
    (bash.folder / "mine.toml").touch()
    for given in ("mine.toml", f"../{bash.folder.name}/mine.toml"):
        succeeded(bash.run("baseline.sh", given))
        assert value(bash.commands()[-1], "--dataset_config") == str(bash.folder / "mine.toml")


def test_a_relative_path_of_an_architecture_starts_at_the_users_folder(bash: Bash) -> None:
    for script in ("baseline.sh", "spg.sh"):
        succeeded(bash.run(script, ARCH="nets/mine.py:net"))
        assert value(bash.commands()[-1], "--arch") == f"{bash.folder}/nets/mine.py:net"


def test_flags_are_passed_only_on_request(bash: Bash) -> None:
    succeeded(bash.run("baseline.sh"))
    assert not re.search(r"--(overwrite|run|nondeterministic)\b", bash.commands()[0])


def test_the_machine_variables_reach_the_commands_that_compute(bash: Bash) -> None:
    for script in ("baseline.sh", "find_backbone.sh", "spg.sh"):
        succeeded(bash.run(script, PRECISION="tf32", NONDETERMINISTIC="1", FAKE_TASKS="red"))
        command = bash.commands()[-1]
        assert value(command, "--precision") == "tf32" and " --nondeterministic " in command
    succeeded(bash.run("select_pruning_ratio_of_backbone.sh", NONDETERMINISTIC="1"))
    assert "--nondeterministic" not in bash.commands()[-1]


def test_one_process_trains_and_prunes_a_task_to_all_ratios(bash: Bash) -> None:
    succeeded(bash.run("wo_backbone.sh", SPARSITIES="0.1 0.95", FAKE_TASKS="red", PRUNE_EPOCHS="2"))
    (command,) = bash.commands()
    assert command.startswith("CPG_cifar100_main_normal.py ")
    assert " --mode finetune prune --prune_epochs 2 --target_sparsity 0.1 0.95 --dataset red " in command


def test_one_process_chooses_the_pruning_ratios_of_all_tasks(bash: Bash) -> None:
    succeeded(bash.run("select_pruning_ratio_of_backbone.sh", "digits", "1-3", ALLOW_ACC_LOSS="0.02"))
    (command,) = bash.commands()
    assert command.startswith("-m tools.select_pruning_ratio ")
    assert " --dataset 1-3 --allow_acc_loss 0.02 " in command


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        *(("nearest", "--select nearest"), ("leep", "--select leep"), ("fish", "--backbone fish")),
        ("race", "--select race --batch_size 32 --lr 0.01 --freed zero"),
    ],
)
def test_the_rule_or_a_task_decides_the_backbone(bash: Bash, backbone: str, expected: str) -> None:
    succeeded(bash.run("find_backbone.sh", BACKBONE=backbone, CANDIDATES="1-4", MAX_ITERATIONS="0"))
    assert f" {expected} --candidates 1-4 --max_iterations 0 " in bash.commands()[0]


def test_targets_use_the_backbones_in_the_csv(bash: Bash) -> None:
    succeeded(bash.run("w_backbone.sh", "cifar100", "2", MAX_WIDTH="1.5"))
    assert " --backbone from_csv --max_allowed_network_width_multiplier 1.5 " in bash.commands()[0]


def test_a_pair_replaces_the_csv(bash: Bash) -> None:
    arguments = ("cifar100", "--backbone", "4", "--target", "14")
    names = {"FAKE_TASKS": "non-insect_invertebrates", "FAKE_BACKBONE": "4", "FAKE_BACKBONE_NAME": "food"}
    succeeded(bash.run("w_backbone.sh", *arguments, **names))
    for command in bash.commands():  # the training and its table
        assert value(command, "--dataset_config") == "cifar100"
        assert value(command, "--backbone") == "4"
        assert value(command, "--dataset") == "non-insect_invertebrates"
    assert [command.startswith("-m tools.report ") for command in bash.commands()] == [False, True]


def test_run_all_runs_the_stages_in_order_then_reports(bash: Bash) -> None:
    succeeded(bash.run("run_all.sh", "cifar100", "4,14", FAKE_TASKS="red green", JOBS="1"))
    commands = [line for line in bash.commands() if " --dataset green " not in line]
    assert [command.split(" --arch")[0] for command in commands] == [
        "packnet_cifar100_main_normal.py",
        "CPG_cifar100_main_normal.py",
        "-m tools.select_pruning_ratio",
        "pickaback_perceiverIO.py",
        "CPG_cifar100_main_normal.py",
        "-m tools.report",
    ]
    # Only the tasks of this run are sure to have networks.
    assert value(commands[3], "--candidates") == "4,14"


def test_run_all_trains_the_controls_before_the_report(bash: Bash) -> None:
    succeeded(bash.run("run_all.sh", "--control", FAKE_TASKS="red green", JOBS="1"))
    *commands, report = bash.commands()
    assert report.startswith("-m tools.report ")
    at_width = [command for command in commands if " --network_width_multiplier from_target " in command]
    assert [command[:3] for command in at_width if "--list_unfinished" not in command] == [
        *("pac",) * 2,
        *("CPG",) * 2,
    ]
    reused = [value(command, "--reuse") for command in commands if "--reuse" in command]
    assert [reuse for reuse, after in zip(reused, [*reused[1:], None], strict=True) if reuse != after] == [
        *("cpg", "copy", "probe")
    ]


def test_a_task_that_is_the_backbone_of_all_is_not_a_target(bash: Bash) -> None:
    names = {"BACKBONE": "2", "FAKE_BACKBONE": "2", "FAKE_BACKBONE_NAME": "green", "JOBS": "1"}
    for stage in ("find_backbone.sh", "w_backbone.sh"):
        succeeded(bash.run(stage, **names))
    assert [value(command, "--dataset") for command in bash.commands()] == [*["red", "blue"] * 2, "red,blue"]


def test_run_all_refuses_the_only_task_of_a_table_before_it_trains_anything(bash: Bash) -> None:
    result = bash.run("run_all.sh", "digits", "2", FAKE_TASKS="red", FAKE_WITH_CANDIDATES="red")
    assert result.returncode == 1
    assert "task red has no candidate for its backbone: " in result.stderr
    assert not bash.log.exists() or not bash.commands()


def test_a_single_target_is_trained_after_the_networks_of_all_its_candidates(bash: Bash) -> None:
    names = {"FAKE_TASKS": "red", "FAKE_WITH_CANDIDATES": "red green blue"}
    succeeded(bash.run("run_all.sh", "digits", "red", **names))
    select, search, target, table = bash.commands()[-4:]
    assert value(select, "--dataset") == "red,green,blue"
    assert value(search, "--dataset") == value(target, "--dataset") == value(table, "--dataset") == "red"
    assert value(search, "--candidates") == "all"


# Several seeds.


def test_a_stage_runs_for_each_seed_in_turn_and_ends_with_a_table_over_them(bash: Bash) -> None:
    (bash.folder / "mine.toml").touch()
    result = bash.run(
        "w_backbone.sh", "mine.toml", SEEDS="3 1", RUN="mine/{seed}", FAKE_TASKS="red", JOBS="1"
    )
    succeeded(result)
    *targets, table = bash.commands()
    assert [value(command, "--seed") for command in targets] == ["3", "1"]
    assert [value(command, "--run") for command in targets] == ["mine/3", "mine/1"]
    assert table.startswith("-m tools.report ") and " --seeds 3 1 " in f"{table} "
    assert value(table, "--run") == "mine/{seed}"
    path = str(bash.folder / "mine.toml")
    assert {value(command, "--dataset_config") for command in bash.commands()} == {path}


def test_run_all_and_the_sequence_run_for_each_seed(bash: Bash) -> None:
    succeeded(bash.run("run_all.sh", SEEDS="1 2", FAKE_TASKS="red green", JOBS="1"))
    tables = [command for command in bash.commands() if command.startswith("-m tools.report ")]
    assert [value(command, "--seed") for command in tables[:2]] == ["1", "2"]
    assert " --seeds 1 2 " in f"{tables[2]} " and len(tables) == 3
    bash.log.unlink()
    succeeded(bash.run("cpg_sequence.sh", SEEDS="1 2", FAKE_TASKS="red", JOBS="3"))
    *runs, table = bash.commands()
    assert [value(command, "--seed") for command in runs] == ["1", "1", "2", "2"]
    assert " --seeds 1 2 --in_sequence " in table


def test_spg_passes_the_seeds_to_its_one_process(bash: Bash) -> None:
    succeeded(bash.run("spg.sh", SEEDS="4 2", RUN="mine-{seed}"))
    (command,) = [command for command in bash.commands() if command.startswith("spg_main.py ")]
    assert " --seeds 4 2 " in command and "--trials" not in command
    assert value(command, "--run") == "mine-{seed}"


def test_a_single_seed_fills_the_name_of_the_run(bash: Bash) -> None:
    succeeded(bash.run("baseline.sh", SEEDS="7", RUN="a-{seed}", FAKE_TASKS="red"))
    (command,) = bash.commands()
    assert (value(command, "--seed"), value(command, "--run")) == ("7", "a-7")


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("baseline.sh", {"SEEDS": "1 2", "SEED": "1"}, 'SEED=1 and SEEDS="1 2" contradict: set one of them'),
        (
            "run_all.sh",
            {"SEEDS": "1 2", "RUN": "mine"},
            'RUN=mine names a single run, but SEEDS="1 2": put {seed} into it, such as RUN=mine-{seed}',
        ),
        ("baseline.sh", {"SEEDS": "1 x"}, 'SEEDS="1 x" is not a list of seeds such as "1 2 3"'),
        ("spg.sh", {"SEEDS": "1 1"}, 'SEEDS="1 1" names seed 1 twice'),
        ("spg.sh", {"SEEDS": "1 2", "TRIALS": "3"}, 'SEEDS="1 2" and TRIALS=3 contradict: set one of them'),
    ],
)
def test_seeds_that_contradict_are_refused_in_one_line(
    bash: Bash, script: str, variables: dict[str, str], message: str
) -> None:
    result = bash.run(script, **variables)
    assert (result.returncode, result.stderr) == (1, f"error: {message}\n")
    assert not bash.commands()


def test_run_all_stops_at_a_failing_stage(bash: Bash) -> None:
    result = bash.run("run_all.sh", FAKE_FAIL="green")
    assert result.returncode == 1
    assert {command.split()[0] for command in bash.commands()} == {"packnet_cifar100_main_normal.py"}


def test_the_sequence_follows_the_baselines_in_one_process(bash: Bash) -> None:
    variables = {"SPARSITIES": "0.5 0.9", "MAX_WIDTH": "1.5", "EXTRA_SEQUENCE_ARGS": "--stop_pruning_early"}
    succeeded(bash.run("cpg_sequence.sh", "cifar100", "1-3", GPUS="2 3", **variables))
    *baselines, sequence = bash.commands()
    assert len(baselines) == 3 and all(line.startswith("packnet_cifar100") for line in baselines)
    assert sequence.startswith("CPG_cifar100_main_normal.py ")
    assert " --mode finetune prune --prune_epochs 20 --target_sparsity 0.5 0.9 " in sequence
    assert " --max_allowed_network_width_multiplier 1.5 --total_num_tasks 3 --stop_pruning_early " in sequence
    assert value(sequence, "--dataset") == "red,green,blue"
    assert value(sequence, "--device") == "cuda:2"


# What would otherwise be refused only after the earlier stages have trained.


@pytest.mark.parametrize(
    ("script", "variables", "refused"),
    [
        ("run_all_MM.sh", {}, "--transfers yes"),
        ("w_backbone_MM.sh", {}, "--transfers yes"),
        ("run_all.sh", {}, "--transfers no"),
        ("w_backbone.sh", {}, "--transfers no"),
        ("run_all_MM.sh", {"MAX_ITERATIONS": "5"}, "--max_iterations 5"),
        ("run_all.sh", {"ARCH": "perceiver_io", "MAX_ITERATIONS": "5"}, "--max_iterations 5"),
        ("find_backbone.sh", {"MAX_ITERATIONS": "5"}, "--max_iterations 5"),
        ("run_all.sh", {"PROBES": "public", "PUBLIC_PROBES": "x"}, "--probes public --public_probes x"),
        ("baseline.sh", {"ARCH": "lenet6"}, "--arch lenet6"),
        ("baseline.sh", {"SIZE": "huge"}, "--size huge"),
    ],
)
def test_what_a_later_stage_refuses_is_reported_once_before_any_job(
    bash: Bash, script: str, variables: dict[str, str], refused: str
) -> None:
    result = bash.run(script, **variables, FAKE_REFUSED=refused)
    assert result.returncode == 1
    assert result.stderr == "error: refused\n"
    assert not bash.commands()


@pytest.mark.parametrize(
    ("script", "arguments", "variables"),
    [
        ("transfer_kv.sh", ("--backbone", "4", "--target", "red"), {}),
        ("w_backbone.sh", ("--backbone", "4", "--target", "red"), {}),
        ("w_backbone_MM.sh", ("digits_docs", "red"), {"BACKBONE": "4"}),
        ("run_all.sh", ("digits", "red"), {"BACKBONE": "4", "CANDIDATES": "1-4"}),
    ],
)
def test_a_backbone_that_is_the_only_target_is_refused_in_one_line(
    bash: Bash, script: str, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    names = {"FAKE_TASKS": "red", "FAKE_BACKBONE": "4", "FAKE_BACKBONE_NAME": "red"}
    result = bash.run(script, *arguments, **variables, **names)
    assert result.returncode == 1
    assert result.stderr == "error: backbone and target are the same task, red: choose two different ones\n"
    assert not bash.commands()


# Across modalities.


MM_STAGES = [
    *("packnet_cifar100_main_normal.py", "CPG_cifar100_main_normal.py", "-m tools.select_pruning_ratio"),
    *("pickaback_perceiverIO.py", "transfer_kv_perceiver_io.py", "CPG_MM_main_normal.py"),
]


def test_run_all_mm_runs_the_stages_in_order_then_reports(bash: Bash) -> None:
    succeeded(bash.run("run_all_MM.sh", "cifar_newsgroups", "4,14", FAKE_TASKS="red green", JOBS="1"))
    commands = [line for line in bash.commands() if " --dataset green " not in line]
    assert [line.split(" --arch")[0] for line in commands] == [*MM_STAGES, "-m tools.report"]
    assert {value(command, "--arch") for command in commands} == {"perceiver_io"}
    assert not any(" --size " in command for command in commands)
    assert " --candidates 4,14 --dataset red,green --backbone from_csv " in f"{commands[4]} "


def test_run_all_mm_runs_a_small_network_on_digits_docs_by_default(bash: Bash) -> None:
    succeeded(bash.run("run_all_MM.sh", EPOCHS="7", FAKE_TASKS="red green", JOBS="1"))
    commands = bash.commands()
    assert {value(command, "--dataset_config") for command in commands} == {"digits_docs"}
    assert {value(command, "--size") for command in commands} == {"tiny"}
    assert value(commands[0], "--epochs") == "7"
    # A stage by itself uses the same defaults.
    succeeded(bash.run("wo_backbone.sh", "digits_docs", EPOCHS="7", FAKE_TASKS="red", JOBS="1"))
    assert bash.commands()[-1].split(" OMP=")[0] == commands[2].split(" OMP=")[0].replace("green", "red")


def test_the_controls_choose_by_modality_and_skip_the_transfer(bash: Bash) -> None:
    succeeded(bash.run("run_all_MM.sh", "--control", FAKE_TASKS="red green", JOBS="1"))
    *_, report = commands = bash.commands()
    assert report.startswith("-m tools.report ")
    controls = [
        (command.split()[0], value(command, "--candidates"), " --no_kv_transfer " in command)
        for command in commands[len(commands) - 13 : -1]
        if " --dataset green " not in command
    ]
    search, transfer, target = MM_STAGES[3:]
    assert controls == [
        *((script, "same,all", False) for script in (search, transfer, target)),
        *((script, "other,all", False) for script in (search, transfer, target)),
        (target, "other,all", True),
    ]


@pytest.mark.parametrize("variables", [{"BACKBONE": "2"}, {"CANDIDATES": "same,1-3"}])
def test_controls_that_contradict_the_choice_are_refused(bash: Bash, variables: dict[str, str]) -> None:
    result = bash.run("run_all_MM.sh", "--control", **variables)
    assert result.returncode == 1 and result.stderr.startswith("error: --control ")
    assert not bash.commands()


def test_a_run_of_all_stages_refuses_to_skip_the_transfer(bash: Bash) -> None:
    result = bash.run("run_all_MM.sh", KV_TRANSFER="0")
    assert result.returncode == 1 and result.stderr.startswith("error: KV_TRANSFER=0 ")
    assert not bash.commands()


def test_a_pair_takes_precedence_over_the_csv_across_modalities(bash: Bash) -> None:
    pair = ("digits_docs", "--backbone", "4", "--target", "1")
    names = {"FAKE_TASKS": "red", "FAKE_BACKBONE": "4", "FAKE_BACKBONE_NAME": "blue"}
    succeeded(bash.run("transfer_kv.sh", *pair, **names))
    succeeded(bash.run("w_backbone_MM.sh", *pair, **names, KV_TRANSFER="0"))
    transfer, target, _ = bash.commands()
    assert [value(command, "--backbone") for command in (transfer, target)] == ["4", "4"]
    assert [value(command, "--dataset") for command in (transfer, target)] == ["red", "red"]
    assert " --no_kv_transfer " in target


def test_sizes_may_be_a_preset_or_flags(bash: Bash) -> None:
    for given, passed in (
        ("tiny --depth 3", "--size tiny --depth 3"),
        ("--latent_dim 64", "--latent_dim 64"),
    ):
        succeeded(bash.run("transfer_kv.sh", SIZE=given))
        assert f" {passed} " in bash.commands()[-1]


# Usage.


@pytest.mark.parametrize(
    "script", sorted(path.name for path in STAGES.glob("*.sh") if os.access(path, os.X_OK))
)
def test_help_and_wrong_usage(bash: Bash, script: str) -> None:
    shown = bash.run(script, "--help")
    assert shown.returncode == 0
    assert f"usage: bash run_pickaback/{script} [" in shown.stdout
    assert not shown.stdout.startswith("#")

    wrong = bash.run(script, "--colour")
    assert wrong.returncode == 2
    assert "error: unknown option --colour" in wrong.stderr
    assert bash.run(script, "digits", "1", "2").returncode == 2
    assert bash.commands() == []


def test_half_a_pair_is_wrong_usage(bash: Bash) -> None:
    for arguments in (("--backbone", "4"), ("--target", "4"), ("--backbone",)):
        assert bash.run("w_backbone.sh", *arguments).returncode == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JOBS": "0"}, "JOBS=0 must be"),
        ({"THREADS": "x"}, "THREADS=x must be"),
        ({"OVERWRITE": "yes"}, "OVERWRITE=yes must be"),
        ({"NONDETERMINISTIC": "true"}, "NONDETERMINISTIC=true must be"),
        ({"GPUS": "0,1"}, 'GPUS="0,1" is not a list'),
        ({"GPUS": "0", "DEVICE": "cpu"}, "contradict"),
        ({"GPUS_PER_TASK": "0"}, "GPUS_PER_TASK=0 must be"),
        ({"GPUS": "0 1 2", "GPUS_PER_TASK": "2"}, "is not a multiple of GPUS_PER_TASK=2"),
        ({"GPUS": "0 2", "GPUS_PER_TASK": "2"}, "must be consecutive"),
    ],
)
def test_bad_variables_are_refused_in_one_line(bash: Bash, variables: dict[str, str], message: str) -> None:
    result = bash.run("baseline.sh", **variables)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# The interpreter.


@pytest.mark.parametrize("version", ["3.10", "2.7"])
def test_an_old_interpreter_is_refused_in_one_line(bash: Bash, version: str) -> None:
    result = bash.run("baseline.sh", FAKE_VERSION=version)
    assert result.returncode == 1
    assert (
        result.stderr
        == f"error: PYTHON={bash.python} is Python {version}: set it to a Python 3.11 or later\n"
    )


def test_a_missing_interpreter_is_refused_in_one_line(bash: Bash) -> None:
    result = bash.run("baseline.sh", PYTHON="/nowhere/python")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "/nowhere/python does not run" in result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Bash:
    """A copy of the bash layer, so that .venv is made there; python3.12 on the path is the fake one."""
    shutil.copytree(STAGES, tmp_path / "run_pickaback")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    fake = Bash(tmp_path)
    (tmp_path / "bin").mkdir()
    fake.python.rename(tmp_path / "bin" / "python3.12")
    return fake


def install(checkout: Bash, extra: str = "base", **variables: str) -> subprocess.CompletedProcess:
    environment = {"PYTHON": "", "PATH": f"{checkout.folder / 'bin'}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        ["bash", "-c", f"source run_pickaback/lib.sh; setup_python {extra}; echo PYTHON_BIN=$PYTHON_BIN"],
        cwd=checkout.folder,
        env=checkout.environment(**environment),
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_dependencies_are_installed_once(checkout: Bash) -> None:
    first = install(checkout)
    succeeded(first)
    assert "Installing" in first.stdout
    assert f"PYTHON_BIN={checkout.folder}/.venv/bin/python" in first.stdout
    assert [line.split()[1] for line in checkout.lines()] == ["venv", "pip"]
    succeeded(install(checkout))
    assert len(checkout.lines()) == 2

    succeeded(install(checkout, "dev"))
    assert len(checkout.lines()) == 3, "the development tools are missing"
    with (checkout.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    succeeded(install(checkout, "dev"))
    assert len(checkout.lines()) == 4
    succeeded(install(checkout))
    assert len(checkout.lines()) == 4, "the development tools include the rest"


def test_a_killed_installation_starts_from_scratch(checkout: Bash) -> None:
    succeeded(install(checkout))
    (checkout.folder / ".venv" / ".installing").touch()
    (checkout.folder / ".venv" / ".installed-base").unlink()
    succeeded(install(checkout))
    assert [line.split()[1] for line in checkout.lines()] == ["venv", "pip", "venv", "pip"]
    assert not (checkout.folder / ".venv" / ".installing").exists()


def test_a_failed_installation_is_repeated(checkout: Bash) -> None:
    failed = install(checkout, FAKE_PIP_STATUS="1")
    assert failed.returncode == 1
    assert "installing the dependencies failed" in failed.stderr
    succeeded(install(checkout))
    assert [line.split()[1] for line in checkout.lines()] == ["venv", "pip", "pip"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_stages_started_at_once_install_once(checkout: Bash) -> None:
    environment = {
        "PYTHON": "",
        "PATH": f"{checkout.folder / 'bin'}:{os.environ['PATH']}",
        "FAKE_SLEEP": "0.3",
    }
    started = [
        subprocess.Popen(
            ["bash", "-c", "source run_pickaback/lib.sh; setup_python base"],
            cwd=checkout.folder,
            env=checkout.environment(**environment),
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.wait(timeout=20) for process in started] == [0, 0]
    assert [line.split()[1] for line in checkout.lines()] == ["venv", "pip"]


def test_a_missing_interpreter_is_reported_in_one_line(checkout: Bash) -> None:
    for name in ("python3.11", "python3.13", "python3"):
        shutil.copy(checkout.folder / "bin" / "python3.12", checkout.folder / "bin" / name)
    result = install(checkout, FAKE_VERSION="3.9")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no Python 3.11 or later")
    assert result.stderr.count("\n") == 1


# SPG.


def test_spg_runs_every_approach_in_turn_in_one_process_each(bash: Bash) -> None:
    result = bash.run(
        "spg.sh", "cifar100_10", APPR="spg one", SEED="3", TRIALS="2", EXTRA_SPG_ARGS="--lr 0.1"
    )
    succeeded(result)
    check, *commands, table = bash.commands()
    assert [value(command, "--appr") for command in commands] == ["one", "spg"]
    for command in (check, table):
        assert command.startswith("-m tools.report_spg --seq cifar100_10 --appr spg one --seeds 3 4 ")
        assert (" --check " in command) == (command == check)
    for command in commands:
        assert command.startswith("spg_main.py ")
        assert value(command, "--seq") == "cifar100_10"
        assert (value(command, "--seed"), value(command, "--trials")) == ("3", "2")
        assert value(command, "--lr") == "0.1"
        assert "--overwrite" not in command and "--threads" not in command
    assert "== SPG finished after" in result.stdout


def test_spg_without_an_argument_learns_digits_and_refuses_two(bash: Bash) -> None:
    succeeded(bash.run("spg.sh", THREADS="1", OVERWRITE="1"))
    (command,) = bash.commands()
    assert value(command, "--seq") == "digits_5"
    assert value(command, "--threads") == "1" and "--overwrite" in command
    assert bash.run("spg.sh", "digits_5", "cifar100_10").returncode == 2
    assert "usage: bash run_pickaback/spg.sh" in bash.run("spg.sh", "-h").stdout


def test_spg_finds_a_file_in_the_callers_folder(bash: Bash) -> None:
    (bash.folder / "mine.toml").write_text("")
    for given in ("mine.toml", "mine.toml:one", "none.toml"):
        succeeded(bash.run("spg.sh", given))
    succeeded(bash.run("spg.sh", SEQ="mine.toml"))
    found = [value(command, "--seq") for command in bash.commands()]
    own = str(bash.folder / "mine.toml")
    assert found == [own, f"{own}:one", "none.toml", own]


def test_spg_gets_an_architecture_only_from_the_environment(bash: Bash) -> None:
    succeeded(bash.run("spg.sh"))
    succeeded(bash.run("spg.sh", ARCH="resnet18"))
    default, chosen = bash.commands()
    assert "--arch" not in default
    assert value(chosen, "--arch") == "resnet18"


def test_spg_accepts_a_name_for_a_single_run(bash: Bash) -> None:
    succeeded(bash.run("spg.sh", RUN="mine", APPR="ncl"))
    (command,) = bash.commands()
    assert value(command, "--run") == "mine"
    for several in ({"TRIALS": "2"}, {"APPR": "one spg"}):
        result = bash.run("spg.sh", RUN="mine", **several)
        assert result.returncode == 1
        assert result.stderr.startswith("error: RUN=mine names a single run: ")
    assert len(bash.commands()) == 1


def test_trackers_reach_every_training_script_and_the_check_before_any_job(bash: Bash) -> None:
    for script in ("baseline.sh", "wo_backbone.sh", "w_backbone.sh", "cpg_sequence.sh", "spg.sh"):
        bash.log.unlink(missing_ok=True)
        succeeded(bash.run(script, LOG_TO="tensorboard wandb"))
        trained = [
            command for command in bash.commands() if "main_normal" in command or "spg_main" in command
        ]
        assert trained and all(" --log_to tensorboard wandb " in f"{command} " for command in trained)
    bash.log.unlink()
    result = bash.run("baseline.sh", LOG_TO="mlflow", FAKE_REFUSED="--log_to mlflow")
    assert (result.returncode, result.stderr) == (1, "error: refused\n")
    assert not bash.commands()


def test_watching_needs_no_argument_and_accepts_any_variable(bash: Bash) -> None:
    succeeded(bash.run("watch.sh", "--once", EPOCHS="3", SEQ="x", LOGS_ROOT="mine"))
    (command,) = bash.commands()
    assert command.startswith("-m tools.watch ") and " --once " in command
    assert value(command, "--logs_root") == str(bash.folder / "mine")


# Variables that a stage cannot act on.


ALL_STAGES = {path.stem for path in STAGES.glob("*.sh") if os.access(path, os.X_OK)}


def accepted() -> dict[str, set[str]]:
    """The stages that accept each variable, by the table in lib.sh."""
    rows = subprocess.run(
        ["bash", "-c", 'source run_pickaback/lib.sh; printf "%s\\n" "${ACCEPTED_BY[@]//$\'\\n\'/ }"'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = [row.split(":") for row in rows.stdout.splitlines()]
    return {name: set(stages.split()) for names, stages in pairs for name in names.split()}


def test_the_table_covers_every_variable_and_stage() -> None:
    variables = re.findall(r'^: "\$\{(\w+):=', (STAGES / "config.sh").read_text(), re.MULTILINE)
    assert set(accepted()) == set(variables)
    assert set.union(*accepted().values()) == ALL_STAGES


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (
            "spg.sh",
            {"LR": "0.1"},
            'LR=0.1 has no effect in spg.sh: unset it, or give EXTRA_SPG_ARGS="--lr 0.1"',
        ),
        ("spg.sh", {"EPOCHS": "100"}, 'unset it, or give EXTRA_SPG_ARGS="--epochs 100"'),
        ("spg.sh", {"GPUS": "2 3"}, 'GPUS="2 3" has no effect in spg.sh: unset it, or give DEVICE=cuda:2'),
        ("spg.sh", {"JOBS": "2"}, "JOBS=2 has no effect in spg.sh: unset it "),
        ("spg.sh", {"CONFIG": "cifar100"}, "unset it, or name a sequence in SEQ"),
        ("spg.sh", {"EXTRA_ARGS": "--clip 3"}, 'unset it, or give EXTRA_SPG_ARGS="--clip 3"'),
        ("w_backbone.sh", {"KV_TRANSFER": "0"}, "KV_TRANSFER=0 has no effect in w_backbone.sh: unset it "),
        ("run_all.sh", {"TRIALS": "3"}, "TRIALS=3 has no effect in run_all.sh: unset it "),
        ("cpg_sequence.sh", {"BACKBONE": "nearest"}, "BACKBONE=nearest has no effect in cpg_sequence.sh: "),
        (
            "baseline.sh",
            {"EXTRA_SEQUENCE_ARGS": "--x"},
            "EXTRA_SEQUENCE_ARGS=--x has no effect in baseline.sh",
        ),
    ],
)
def test_variables_without_an_effect_are_refused_in_one_line(
    bash: Bash, script: str, variables: dict[str, str], message: str
) -> None:
    result = bash.run(script, **variables)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not bash.commands()


def test_every_variable_without_an_effect_is_named(bash: Bash) -> None:
    result = bash.run("spg.sh", LR="0.1", PROTOCOL="heldout", MAX_WIDTH="", SEED="2")
    assert result.returncode == 1
    assert sorted(re.findall(r"error: (\w+)=", result.stderr)) == ["LR", "PROTOCOL"]


@pytest.mark.parametrize("script", ["run_all.sh", "run_all_MM.sh", "cpg_sequence.sh"])
def test_the_stages_of_a_run_accept_the_variables_of_the_run(bash: Bash, script: str) -> None:
    known = {
        **{
            "BACKBONE": "nearest",
            "CANDIDATES": "1-3",
            "EXTRA_SEARCH_ARGS": "--epsilon 1",
            "KV_TRANSFER": "1",
        },
        **{"EXTRA_SEQUENCE_ARGS": "--x", "MAX_WIDTH": "1.5", "SPARSITIES": "0.5", "PRUNE_EPOCHS": "1"},
        **{"ALLOW_ACC_LOSS": "0", "SEED": "2", "RUN": "mine", "PRECISION": "bf16", "EPOCHS": "1"},
    }
    variables = {name: text for name, text in known.items() if script[:-3] in accepted()[name]}
    succeeded(bash.run(script, **variables, JOBS="1"))
    assert len(bash.commands()) > 1


def test_settings_exported_once_serve_every_stage_of_a_run(bash: Bash) -> None:
    shared = {"EPOCHS": "1", "SPARSITIES": "0.5", "MAX_WIDTH": "1.0", "CANDIDATES": "1-3", "JOBS": "1"}
    runs = {"spg", "cpg_sequence", "run_all", "run_all_MM", "federated", "federated_device"}
    for stage in ALL_STAGES - runs:
        succeeded(bash.run(f"{stage}.sh", **shared))


def test_a_variable_edited_in_config_is_not_refused(checkout: Bash) -> None:
    config = checkout.folder / "run_pickaback" / "config.sh"
    config.write_text(config.read_text().replace("${LR:=0.01}", "${LR:=0.1}"))
    result = subprocess.run(
        ["bash", checkout.folder / "run_pickaback" / "spg.sh"],
        env=checkout.environment(PYTHON=str(checkout.folder / "bin" / "python3.12")),
        capture_output=True,
        text=True,
        timeout=30,
    )
    succeeded(result)
    assert len(checkout.commands()) == 1


# Files outside of git.


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_ignores_outputs_and_data_but_not_the_sources(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    kept = ["checkpoints/README.md", "logs/README.md", "data/sources/digits.py", "data/tables.py"]
    ignored = ["checkpoints/lenet5/seed1/x", "logs/lenet5/y.txt", "data/cifar100_org/a.png", "data/a.zip"]
    for name in (*kept, *ignored):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    shown = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=tmp_path, capture_output=True, text=True
    )
    assert sorted(shown.stdout.split()) == sorted([".gitignore", *kept])


# Few images, and the networks of another run.


def test_few_images_and_a_fleet_reach_the_stages_that_use_them(bash: Bash) -> None:
    few = {"TRAIN_PER_CLASS": "5", "FLEET": "rich/seed{seed}", "SEED": "2", "FREED": "dead"}
    few |= {"FAKE_TASKS": "red"}
    for script in ("baseline.sh", "wo_backbone.sh", "find_backbone.sh", "w_backbone.sh"):
        succeeded(bash.run(script, "digits", "1", **few))
    training = [command for command in bash.commands() if "_main_" in command or "perceiverIO" in command]
    assert all(value(command, "--train_per_class") == "5" for command in training)
    scratch, own, search, target = training
    assert "--fleet" not in scratch and "--fleet" not in own
    assert own.count("prune") == 0, "backbones come from the fleet"
    assert value(search, "--fleet") == value(target, "--fleet") == "rich/seed2"
    assert value(target, "--freed") == "dead"
    result = bash.run("select_pruning_ratio_of_backbone.sh", "digits", "1", **few)
    succeeded(result)
    assert "-- FLEET=rich/seed2 provides the backbones: there is no ratio to choose" in result.stdout


def test_every_backbone_and_controls_on_them(bash: Bash) -> None:
    pair = ("digits", "--backbone", "all", "--target", "1")
    succeeded(bash.run("w_backbone.sh", *pair, REUSE="copy", FAKE_TASKS="red"))
    (command,) = [command for command in bash.commands() if command.startswith("CPG_")]
    assert value(command, "--backbone") == "all" and value(command, "--reuse") == "copy"


@pytest.mark.parametrize(("arch", "rule"), [("lenet5", "logme"), ("perceiver_io", "farthest")])
def test_the_default_rule_suits_the_candidates_that_an_architecture_has(
    bash: Bash, arch: str, rule: str
) -> None:
    succeeded(bash.run("find_backbone.sh", "digits", "1", ARCH=arch, FAKE_TASKS="red"))
    (search,) = [command for command in bash.commands() if "perceiverIO" in command]
    assert value(search, "--select") == rule


def test_the_published_preset_sets_what_the_published_code_does(bash: Bash) -> None:
    succeeded(bash.run("find_backbone.sh", "digits", "1", PRESET="published", FAKE_TASKS="red"))
    (search,) = [command for command in bash.commands() if "perceiverIO" in command]
    assert value(search, "--select") == "farthest" and value(search, "--protocol") == "published"
    refused = bash.run("find_backbone.sh", PRESET="published", BACKBONE="leep")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: PRESET=published means BACKBONE=farthest, but BACKBONE=leep: ")
    assert "PRESET=other is unknown" in bash.run("baseline.sh", PRESET="other").stderr


# The report.


def test_runs_end_with_their_report_as_a_file(bash: Bash) -> None:
    for script, arguments in (("run_all.sh", ("digits",)), ("cpg_sequence.sh", ("digits",))):
        succeeded(bash.run(script, *arguments, REPORT="1"))
        *_, last = bash.commands()
        assert last.startswith("-m tools.report_html ") and value(last, "--dataset_config") == "digits"
    assert sum("report_html" in command for command in bash.commands()) == 2, "inner stages write none"
    succeeded(bash.run("spg.sh", "cifar100_10", REPORT="1"))
    assert value(bash.commands()[-1], "--run") == "spg/cifar100_10"
    succeeded(bash.run("run_all.sh", "digits", SEEDS="1 2", REPORT="1"))
    assert " --seeds 1 2 " in bash.commands()[-1] + " "
    assert bash.run("run_all.sh", REPORT="2").stderr.startswith("error: REPORT=2 must be 0 or 1")


def test_the_study_ends_with_its_tables_and_its_report(bash: Bash) -> None:
    script = REPOSITORY / "benchmarks" / "study.sh"
    succeeded(bash.run(script, "digits", "--per_class", "5", FAKE_TASKS="red", REPORT="1", LOGS_ROOT="mine"))
    *stages, table, report = bash.commands()
    assert sum("CPG_" in command for command in stages) == 5, "own networks twice, and three ways to reuse"
    assert value(stages[-1], "--fleet") == "study/lenet5/seed1"
    assert table.startswith("-m tools.study ") and value(table, "--per_class") == "5"
    assert report.startswith("-m tools.report_html ") and value(report, "--run") == "study/lenet5"
    assert value(report, "--logs_root") == value(stages[-1], "--logs_root") == str(bash.folder / "mine")
