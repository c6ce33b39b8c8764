# Processes: the only place where tasks become processes, and where a signal stops them. Sourced.
# shellcheck shell=bash

# shellcheck source=run_pickaback/slurm.sh
source run_pickaback/slurm.sh

# Children run in the background, so that a signal reaches this script at once. It then stops them itself:
# an interactive Ctrl-C does not reach background children.
STOPPED='' # how a signal ended this script, in words
stop() { # SIGNAL NUMBER
    trap '' INT TERM HUP
    STOPPED=interrupted
    (($1 == 2)) || STOPPED="stopped by signal $1"
    local -a children
    mapfile -t children < <(jobs -rp)
    kill -TERM ${children[@]+"${children[@]}"} 2>/dev/null || true
    wait
    cancel_followed
    cancel_chain
    exit $((128 + $1))
}
trap 'stop 1' HUP
trap 'stop 2' INT
trap 'stop 15' TERM

# A SIGKILL of this script runs no trap. On Linux, the kernel then stops the children (setpriv is part of
# util-linux); elsewhere they run to their end.
WITH_PARENT=()
if setpriv --pdeathsig TERM true 2>/dev/null; then
    WITH_PARENT=(setpriv --pdeathsig TERM)
fi

run_one() { # COMMAND…: run it and wait
    ${WITH_PARENT[@]+"${WITH_PARENT[@]}"} "$@" &
    wait $!
}

joined_tasks() { # print TASK_NAMES, separated by commas; if they are too long for an argument, what selects them
    local IFS=,
    local names=${TASK_NAMES[*]}
    # Linux limits an argument to 128 KiB, a character to 4 bytes.
    ((${#names} < 30000)) || names=${TASK_SPEC:-$names}
    echo "$names"
}

in_one_process() { # COMMAND…: run it once for all of TASK_NAMES, on the first of GPUS or on DEVICE
    local device=$DEVICE
    local -a gpus todo failed=()
    if [[ $LAUNCHER == slurm ]]; then
        todo=("$(joined_tasks)")
        run_in_slurm task "$@"
        check_failed
        return
    fi
    read -ra gpus <<<"$GPUS"
    ((${#gpus[@]} == 0)) || device=cuda:${gpus[0]}
    OMP_NUM_THREADS=$THREADS run_one "$@" --dataset "$(joined_tasks)" --device "$device" --threads "$THREADS"
}

run_alone() { # NAME COMMAND…: run it once; under Slurm as a job, with --device and --threads appended
    local -a todo=("$1") failed=()
    if [[ $LAUNCHER == local ]]; then
        run_one "${@:2}"
        return
    fi
    run_in_slurm machine "${@:2}"
    check_failed
}

run_light() { # NAME COMMAND…: run what takes seconds: here, unless the stages before it are still to run
    local -a todo=("$1") failed=()
    if [[ -z ${PICKABACK_CHAIN:-} ]]; then
        run_one "${@:2}"
        return
    fi
    run_in_slurm nothing "${@:2}"
}

write_report() { # FLAGS…: the report as an HTML file, unless REPORT=0 or another stage called this one
    [[ $REPORT == 1 && -z ${CALLED_BY_A_STAGE:-} ]] || return 0
    if ! "$PYTHON_BIN" -c 'import altair, jinja2, vl_convert' 2>/dev/null; then
        echo "-- no HTML report: \`$PYTHON_BIN -m pip install '.[report]'\` adds it, REPORT=0 leaves it out"
        return
    fi
    run_light "the report" "$PYTHON_BIN" -m tools.report_html "$@" || echo "-- no HTML report: see the line above"
}

# fan_out COMMAND…: run COMMAND for every unfinished task of TASK_NAMES, JOBS at a time, each with --dataset,
# --device and --threads appended. If one fails, the others continue. With LAUNCHER=slurm, the tasks are the
# elements of a job array.
fan_out() {
    local -a gpus=() todo=() running=() failed=()
    local -A task_of=()
    local task slot device begun=0
    read -ra gpus <<<"$GPUS"
    find_unfinished "$@"
    if ((${#todo[@]} == 0)); then
        echo "-- all ${#TASK_NAMES[@]} tasks are finished"
        return
    fi
    # Epoch lines of several tasks in one stream are unreadable: they go to each task's log only.
    [[ $JOBS == 1 ]] || export TASKS_SIDE_BY_SIDE=1
    if [[ $LAUNCHER == slurm ]]; then
        run_in_slurm task "$@"
        check_failed
        return
    fi
    for task in "${todo[@]}"; do
        while ((${#running[@]} >= JOBS)); do
            await_a_job
        done
        slot=0
        while [[ -n ${running[slot]:-} ]]; do
            slot=$((slot + 1))
        done
        device=$DEVICE
        ((${#gpus[@]} == 0)) || device=cuda:${gpus[slot * GPUS_PER_TASK % ${#gpus[@]}]}
        begun=$((begun + 1))
        echo "-- $begun of ${#todo[@]}: $task on $device"
        OMP_NUM_THREADS=$THREADS ${WITH_PARENT[@]+"${WITH_PARENT[@]}"} "$@" --dataset "$task" \
            --device "$device" --threads "$THREADS" &
        running[slot]=$!
        task_of[$slot]=$task
    done
    while ((${#running[@]})); do
        await_a_job
    done
    check_failed
}

check_failed() { # for fan_out, whose variables it uses: fail if a task has failed; name them
    ((${#failed[@]} == 0)) && return
    echo "error: ${#failed[@]} of ${#todo[@]} tasks failed: ${failed[*]}. See the lines above;" \
        "once that is corrected, $(resuming)" >&2
    return 1
}

# find_unfinished COMMAND…: set fan_out's `todo` to the tasks that COMMAND reports as unfinished. One process
# answers for all of them, since importing PyTorch for each takes seconds. If it fails, all tasks are
# started: the jobs then report the error.
find_unfinished() {
    local list log to_list from_list to_log from_log task
    local -a names
    local -A unfinished=()
    todo=("${TASK_NAMES[@]}")
    [[ ! -s ${PICKABACK_CHAIN:-} ]] || return 0 # what comes before is still to run
    ((${#todo[@]} > 1)) && [[ $OVERWRITE == 0 ]] || return 0
    list=$(mktemp) && log=$(mktemp)
    exec {to_list}>"$list" {from_list}<"$list" {to_log}>"$log" {from_log}<"$log"
    rm -f "$list" "$log" # the open descriptors suffice, and a signal leaves nothing behind
    # On the CPU: nothing is computed, and the GPUs are left to the jobs.
    # Only the command is redirected: a trap that runs meanwhile writes to the terminal.
    OMP_NUM_THREADS=${THREADS:-1} ${WITH_PARENT[@]+"${WITH_PARENT[@]}"} "$@" --device cpu --threads "${THREADS:-1}" \
        --dataset "$(joined_tasks)" --list_unfinished 1>&"$to_list" 2>&"$to_log" &
    if wait $!; then
        mapfile -t names <&"$from_list"
        todo=()
        for task in ${names[@]+"${names[@]}"}; do
            unfinished["_$task"]=1
        done
        for task in "${TASK_NAMES[@]}"; do
            [[ -z ${unfinished["_$task"]:-} ]] || todo+=("$task")
        done
        if ((${#todo[@]} == ${#names[@]})); then
            cat <&"$from_log" >&2
        else # a name that was not requested: the answer cannot be trusted
            todo=("${TASK_NAMES[@]}")
        fi
    fi
    exec {to_list}>&- {from_list}<&- {to_log}>&- {from_log}<&-
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
