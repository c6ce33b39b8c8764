# What the stages share. Sourced by them, not run.
# shellcheck shell=bash

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 403)); then
    echo "error: bash $BASH_VERSION is too old: install bash 4.3 or later (macOS: brew install bash)" >&2
    exit 1
fi

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LAUNCHED_AS=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

# Paths that the user gives count from where the user is; then everything runs from the repository.
CALLED_FROM=$PWD
for _name in DATA_ROOT CHECKPOINTS_ROOT LOGS_ROOT PYTHON; do
    _value=${!_name:-}
    if [[ -n $_value && $_value != /* && ($_name != PYTHON || $_value == */*) ]]; then
        printf -v "$_name" '%s/%s' "$PWD" "$_value"
    fi
done
if [[ -d ${TEXT_ENCODER:-} && $TEXT_ENCODER != /* ]]; then
    TEXT_ENCODER=$PWD/$TEXT_ENCODER
fi
cd "$REPOSITORY"

asked_config() { # ARGUMENTS…: prints the first that is neither an option nor an option's value, else CONFIG
    while (($#)); do
        case $1 in
            --backbone | --target) shift ;;
            -*) ;;
            *) break ;;
        esac
        shift || break
    done
    echo "${1:-${CONFIG:-}}"
}

# A table's own defaults come before the general ones. (The arguments are those of the script that sources this.)
_name=$(asked_config "$@")
if [[ $_name =~ ^[a-z_0-9]+$ && -f run_pickaback/config_$_name.sh ]]; then
    # shellcheck source=run_pickaback/config_digits_docs.sh
    source "run_pickaback/config_$_name.sh"
fi
# shellcheck source=run_pickaback/config.sh
source run_pickaback/config.sh

export PYTHONUNBUFFERED=1
# glibc otherwise returns activations to the kernel each step and pays page faults for them again
# (15 % of a LeNet-5 step).
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_TOP_PAD_=67108864

die() {
    echo "error: $*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------------
# Command line

usage() { # the header comment of the script
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$LAUNCHED_AS"
}

usage_error() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

need_value() { # OPTION VALUE…: an option must be followed by its value
    if (($# < 2)) || [[ -z $2 || $2 == -* ]]; then
        usage_error "$1 needs a value"
    fi
}

positional() { # ARGUMENTS…: those that are no option, into GIVEN
    GIVEN=()
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            -*) usage_error "unknown option $1" ;;
            *) GIVEN+=("$1") ;;
        esac
        shift
    done
}

parse_arguments() { # [config] [tasks]
    positional "$@"
    ((${#GIVEN[@]} <= 2)) || usage_error "too many arguments: ${GIVEN[*]:2} (several tasks are written 4,14 or 1-20)"
    CONFIG=${GIVEN[0]:-$CONFIG}
    TASKS=${GIVEN[1]:-$TASKS}
    if [[ $CONFIG == *.toml && $CONFIG != /* && -f $CALLED_FROM/$CONFIG ]]; then
        CONFIG=$CALLED_FROM/$CONFIG
    fi
}

parse_control() { # [config] [tasks] [--control]: CONTROL and the rest in REST
    local argument
    CONTROL=0 REST=()
    for argument in "$@"; do
        if [[ $argument == --control ]]; then CONTROL=1; else REST+=("$argument"); fi
    done
}

parse_pair() { # [config] [targets], or [config] --backbone TASK --target TARGETS: PAIR_BACKBONE and the rest in REST
    local target=''
    PAIR_BACKBONE='' REST=()
    while (($#)); do
        case $1 in
            --backbone)
                need_value "$@"
                PAIR_BACKBONE=$2
                shift
                ;;
            --target)
                need_value "$@"
                target=$2
                shift
                ;;
            *) REST+=("$1") ;;
        esac
        shift
    done
    [[ -n $PAIR_BACKBONE || -n $target ]] || return 0
    [[ -n $PAIR_BACKBONE && -n $target ]] || usage_error "--backbone and --target go together"
    ((${#REST[@]} < 2)) || usage_error "give the targets by --target or by position, not both"
    REST=("${REST[0]:-$CONFIG}" "$target")
}

# ---------------------------------------------------------------------------------------------
# Python

python_version() { # INTERPRETER: prints 3.12; fails if it does not run, as a pyenv shim without a version
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

recent_enough() { # VERSION
    [[ $1 =~ ^([0-9]+)\.([0-9]+)$ ]] && ((BASH_REMATCH[1] * 100 + BASH_REMATCH[2] >= 311))
}

requirements() { # INTERPRETER all|missing [EXTRA]: those of pyproject.toml, one a line, with EXTRA's
    "$1" -c '
import importlib.metadata, re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = list(project["dependencies"])
for extra in filter(None, sys.argv[2:]):
    wanted += project["optional-dependencies"][extra]
def missing(requirement):
    try:
        return not importlib.metadata.version(re.match(r"[\w.-]+", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return True
for requirement in wanted:
    if sys.argv[1] == "all" or missing(requirement):
        print(requirement)
' "${@:2}"
}

setup_python() { # base|dev: sets PYTHON_BIN, and makes .venv unless PYTHON names an interpreter
    local version lacking
    if [[ -n $PYTHON ]]; then
        version=$(python_version "$PYTHON") || die "PYTHON=$PYTHON does not run: name a Python 3.11 or later"
        recent_enough "$version" || die "PYTHON=$PYTHON is Python $version: name a Python 3.11 or later"
        lacking=$(requirements "$PYTHON" missing)
        [[ -z $lacking ]] || die "PYTHON=$PYTHON lacks ${lacking//$'\n'/, }: install them, or leave PYTHON empty"
        PYTHON_BIN=$PYTHON
        return
    fi
    PYTHON_BIN=$REPOSITORY/.venv/bin/python
    python_is_set_up "$1" && return
    # Two stages started at once must not both install. (Without flock, as on macOS, start one first.)
    local lock=''
    if command -v flock >/dev/null; then
        exec {lock}>>pyproject.toml # for its lock alone: nothing is written
        flock -n "$lock" || { echo "Waiting for another installation into .venv"; flock "$lock"; }
    fi
    python_is_set_up "$1" || install_python "$1"
    [[ -z $lock ]] || exec {lock}>&-
}

python_is_set_up() { # base|dev: a stamp holds the checksum of the pyproject.toml that was installed
    python_version "$PYTHON_BIN" >/dev/null || return 1
    stamped dev || stamped "$1"
}

stamped() {
    [[ $(cat ".venv/.installed-$1" 2>/dev/null) == "$(cksum <pyproject.toml)" ]]
}

install_python() { # base|dev
    local python='' candidate version wanted
    # The mark stays if the installation is killed; a half-installed .venv is then made anew.
    if [[ -e .venv/.installing ]] || ! version=$(python_version "$PYTHON_BIN") || ! recent_enough "$version"; then
        for candidate in python3.12 python3.11 python3.13 python3; do
            if version=$(python_version "$candidate") && recent_enough "$version" &&
                "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
        [[ -n $python ]] || die "no Python 3.11 or later with its venv module found (tried python3.12, python3.11," \
            "python3.13, python3): install one (Debian: apt install python3-venv), or set PYTHON"
        run_one "$python" -m venv --clear .venv || die "$python -m venv .venv failed: see the lines above"
    fi
    : >.venv/.installing
    echo "Installing the dependencies into .venv: 1 to 5 minutes, up to 6 GB of disk, once."
    wanted=$(requirements "$PYTHON_BIN" all "${1/base/}")
    mapfile -t wanted <<<"$wanted"
    if ! run_one "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"; then
        rm -f .venv/.installing
        die "installing the dependencies failed: see pip's lines above; then run the same command again" \
            "(delete .venv first if it fails in the same way)"
    fi
    cksum <pyproject.toml >".venv/.installed-$1"
    rm -f .venv/.installing
}

# ---------------------------------------------------------------------------------------------
# A stage

REFUSALS=() # what else tools.list_tasks is to refuse before any job; some stages say

start_stage() { # "stage NUMBER, WHAT IT DOES" ARGUMENTS…: everything before the first Python command of a stage
    STAGE=$1
    parse_arguments "${@:2}"
    check_variables
    setup_python base
    common_args
    expand_tasks
    trap end_stage EXIT
    local protocol=$PROTOCOL
    [[ $PROTOCOL != published ]] || protocol="published (decisions look at the test set)"
    echo "== $STAGE: $CONFIG, tasks: ${#TASK_NAMES[@]}, jobs: $JOBS, threads of each: $THREADS," \
        "device: ${GPUS:+GPUs }${GPUS:-$DEVICE}, protocol: $protocol"
}

start_sequence() { # ARGUMENTS…: the same for a sequence of tasks, which is learned in one process
    STAGE="SPG, learn a sequence of tasks in one network"
    positional "$@"
    ((${#GIVEN[@]} <= 1)) || usage_error "too many arguments: ${GIVEN[*]:1}"
    SEQ=${GIVEN[0]:-$SEQ}
    [[ $OVERWRITE == [01] ]] || die "OVERWRITE=$OVERWRITE must be 0 or 1"
    setup_python base
    SPG_ARGS=(--seq "$SEQ" --seed "$SEED" --trials "$TRIALS" --precision "$PRECISION" --device "$DEVICE"
        --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" --logs_root "$LOGS_ROOT")
    [[ -z $THREADS ]] || SPG_ARGS+=(--threads "$THREADS")
    [[ $OVERWRITE == 0 ]] || SPG_ARGS+=(--overwrite)
    words "$EXTRA_SPG_ARGS"
    SPG_ARGS+=(${WORDS[@]+"${WORDS[@]}"})
    trap end_stage EXIT
    echo "== $STAGE: $SEQ, approaches: $APPR, seeds: $TRIALS from $SEED, device: $DEVICE"
}

end_stage() {
    local status=$?
    local outcome=finished
    ((status == 0)) || outcome="stopped with exit status $status"
    echo "== ${STAGE%%,*} $outcome after $((SECONDS / 60)) min $((SECONDS % 60)) s"
}

check_variables() { # also settles JOBS and THREADS
    local cores index
    words "$GPUS"
    if ((${#WORDS[@]})); then
        for index in "${WORDS[@]}"; do
            [[ $index =~ ^[0-9]+$ ]] || die "GPUS=\"$GPUS\" is no list of GPU indices such as \"0 1 2 3\""
        done
        [[ $DEVICE == auto || $DEVICE == cuda ]] || die "GPUS=\"$GPUS\" and DEVICE=$DEVICE contradict: set one of them"
    fi
    [[ $OVERWRITE == [01] ]] || die "OVERWRITE=$OVERWRITE must be 0 or 1"
    [[ $KV_TRANSFER == [01] ]] || die "KV_TRANSFER=$KV_TRANSFER must be 0 or 1"
    # nproc would obey an OMP_NUM_THREADS of the user's.
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    if [[ -z $JOBS ]]; then
        JOBS=$cores
        if ((${#WORDS[@]})); then
            JOBS=${#WORDS[@]}
        elif gpu_in_use; then
            JOBS=1
        fi
    fi
    [[ $JOBS =~ ^[1-9][0-9]*$ ]] || die "JOBS=$JOBS must be a number from 1"
    # Fixed by JOBS, not by the tasks at hand, so that a task's bytes do not depend on what runs beside it.
    [[ -n $THREADS ]] || THREADS=$((cores / JOBS > 0 ? cores / JOBS : 1))
    [[ $THREADS =~ ^[1-9][0-9]*$ ]] || die "THREADS=$THREADS must be a number from 1"
}

gpu_in_use() {
    [[ $DEVICE == cuda* ]] && return
    [[ $DEVICE == auto && -n ${CUDA_VISIBLE_DEVICES-unset} ]] && nvidia-smi -L >/dev/null 2>&1
}

expand_tasks() { # TASKS, as the user wrote it, into TASK_NAMES; refuses what the stages after would refuse
    local names
    names=$("$PYTHON_BIN" -m tools.list_tasks "${FILE_ARGS[@]}" ${SEARCH_ARGS[@]+"${SEARCH_ARGS[@]}"} \
        ${REFUSALS[@]+"${REFUSALS[@]}"} --dataset "$TASKS")
    mapfile -t TASK_NAMES <<<"$names"
}

backbone_is_a_task() { # BACKBONE names a task, not a rule
    [[ $BACKBONE != farthest && $BACKBONE != nearest && $BACKBONE != random ]]
}

leave_out() { # TASK: take a task, by name or id, out of TASK_NAMES
    local name task
    local -a kept=()
    name=$("$PYTHON_BIN" -m tools.list_tasks --dataset_config "$CONFIG" --data_root "$DATA_ROOT" --dataset "$1")
    for task in "${TASK_NAMES[@]}"; do
        if [[ $task == "$name" ]]; then
            echo "-- $task is the backbone itself: left out"
        else
            kept+=("$task")
        fi
    done
    ((${#kept[@]})) || die "backbone and target are the same task, $name: give another of them"
    TASK_NAMES=("${kept[@]}")
}

leave_out_backbone() { # the task that is the backbone of all is no target itself
    if [[ -n ${PAIR_BACKBONE:-} ]]; then
        leave_out "$PAIR_BACKBONE"
    elif backbone_is_a_task; then
        leave_out "$BACKBONE"
    fi
}

candidates_of_this_run() { # only the tasks of this run are sure to have a scratch network to compare with
    [[ $CANDIDATES == all ]] || return 0
    ((${#TASK_NAMES[@]} > 1)) ||
        die "a single task has no other to be its backbone: give two or more tasks, or set CANDIDATES"
    export CANDIDATES=$TASKS
}

targets_with_candidates() { # prints those of TASK_NAMES for which CANDIDATES leaves a backbone, between commas
    "$PYTHON_BIN" -m tools.list_tasks --dataset_config "$CONFIG" --data_root "$DATA_ROOT" \
        --dataset "$(IFS=,; echo "${TASK_NAMES[*]}")" --candidates "$CANDIDATES" | paste -sd,
}

common_args() { # the flags that commands share; which task, device and threads is fan_out's to say
    FILE_ARGS=(--arch "$ARCH" --dataset_config "$CONFIG" --seed "$SEED" --protocol "$PROTOCOL"
        --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" --logs_root "$LOGS_ROOT"
        --text_encoder "$TEXT_ENCODER")
    words "$SIZE"
    if ((${#WORDS[@]})); then
        [[ $SIZE == -* ]] || FILE_ARGS+=(--size)
        FILE_ARGS+=("${WORDS[@]}")
    fi
    [[ -z $RUN ]] || FILE_ARGS+=(--run "$RUN")
    SEARCH_ARGS=()
    [[ -z $MAX_ITERATIONS ]] || SEARCH_ARGS+=(--max_iterations "$MAX_ITERATIONS")
    WRITING_ARGS=("${FILE_ARGS[@]}")
    [[ $OVERWRITE == 0 ]] || WRITING_ARGS+=(--overwrite)
    COMMON_ARGS=("${WRITING_ARGS[@]}" --precision "$PRECISION")
    TRAINING_ARGS=("${COMMON_ARGS[@]}" --epochs "$EPOCHS" --batch_size "$BATCH_SIZE" --lr "$LR")
    words "$EXTRA_ARGS"
    TRAINING_ARGS+=(${WORDS[@]+"${WORDS[@]}"})
}

words() { # TEXT: its words into WORDS, without expanding wildcards
    read -rd '' -a WORDS <<<"$1" || true
}

# ---------------------------------------------------------------------------------------------
# Processes. A child is always in the background, so that a signal reaches this script at once; the
# script then stops its children. (An interactive Ctrl-C would not reach background children itself.)

stop() { # SIGNAL NUMBER
    trap '' INT TERM HUP
    local -a children
    mapfile -t children < <(jobs -rp)
    kill -TERM ${children[@]+"${children[@]}"} 2>/dev/null || true
    wait
    exit $((128 + $1))
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM

run_one() { # COMMAND…: one process for all tasks
    "$@" &
    wait $!
}

in_one_process() { # COMMAND…: run it once for all of TASK_NAMES, on the first of GPUS or on DEVICE
    local device=$DEVICE
    words "$GPUS"
    ((${#WORDS[@]} == 0)) || device=cuda:${WORDS[0]}
    OMP_NUM_THREADS=$THREADS run_one "$@" --dataset "$(IFS=,; echo "${TASK_NAMES[*]}")" --device "$device" \
        --threads "$THREADS"
}

# fan_out COMMAND…: run COMMAND for every task of TASK_NAMES, JOBS at a time, each with --dataset,
# --device and --threads appended. The other tasks go on if one fails.
#
# The only place where tasks become processes. To hand them to Slurm instead, replace the line that
# starts a job by `srun --ntasks 1 --gpus 1 --cpus-per-task "$THREADS" …` (which keeps everything
# else here: JOBS, failures, signals) or the loop by one `sbatch --wait --array`.
fan_out() {
    local -a gpus=() running=() failed=()
    local -A task_of=()
    local task slot device begun=0
    words "$GPUS"
    gpus=(${WORDS[@]+"${WORDS[@]}"})
    # Epochs of several tasks in one stream could not be told apart: they stay in each task's log.
    ((JOBS == 1)) || export TASKS_SIDE_BY_SIDE=1
    for task in "${TASK_NAMES[@]}"; do
        while ((${#running[@]} >= JOBS)); do
            await_a_job
        done
        slot=0
        while [[ -n ${running[slot]:-} ]]; do
            slot=$((slot + 1))
        done
        device=$DEVICE
        ((${#gpus[@]} == 0)) || device=cuda:${gpus[slot % ${#gpus[@]}]}
        begun=$((begun + 1))
        echo "-- $begun of ${#TASK_NAMES[@]}: $task on $device"
        OMP_NUM_THREADS=$THREADS "$@" --dataset "$task" --device "$device" --threads "$THREADS" &
        running[slot]=$!
        task_of[$slot]=$task
    done
    while ((${#running[@]})); do
        await_a_job
    done
    ((${#failed[@]} == 0)) && return
    echo "error: ${#failed[@]} of ${#TASK_NAMES[@]} tasks failed: ${failed[*]}. See the lines above; the same command" \
        "runs these again and skips the finished ones" >&2
    return 1
}

await_a_job() { # for fan_out, whose variables it uses: wait until a job ends and free its slot
    local slot
    wait -n || true
    for slot in "${!running[@]}"; do
        kill -0 "${running[slot]}" 2>/dev/null && continue
        wait "${running[slot]}" || failed+=("${task_of[$slot]}")
        unset "running[slot]"
    done
}
