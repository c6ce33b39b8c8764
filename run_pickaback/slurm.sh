# Slurm (LAUNCHER=slurm): the tasks of a fan-out are the elements of job arrays. Sourced by jobs.sh.
#
# A fan-out has a folder of its own under LOGS_ROOT. It holds command.sh, what every element runs
# (slurm_task.sh), and per element, by its number in the fan-out, output-N.txt and, once it has ended, status-N.
# shellcheck shell=bash

# Handed on to the stages that a stage runs, never taken from the user's environment.
[[ -n ${INSIDE_A_STAGE:-} ]] || unset PICKABACK_CHAIN
FOLLOWED='' # name of the jobs to cancel if this script is stopped; unique
# Seconds that a file written on a node may take to appear here: NFS caches folders for up to a minute.
: "${FILE_DELAY:=60}"

one_line() { # print standard input as one line, without Slurm's prefixes
    sed -E 's/^(sbatch|scontrol|squeue|scancel): (error|fatal): //' | paste -sd'|' | sed 's/|/; /g'
}

check_slurm() { # refuse what cannot work, before any job; set MAX_ARRAY
    local program config
    for program in sbatch squeue scancel scontrol; do
        command -v "$program" >/dev/null ||
            die "LAUNCHER=slurm: $program not found: run this on a login node, or set LAUNCHER=local"
    done
    [[ -z $GPUS ]] ||
        die "GPUS=\"$GPUS\" and LAUNCHER=slurm contradict: request GPUs in SLURM_ARGS, such as \"--gpus-per-task 1\""
    [[ $DEVICE != cuda:* ]] || die "DEVICE=$DEVICE and LAUNCHER=slurm contradict: Slurm chooses the GPU; set DEVICE=cuda"
    config=$(scontrol show config 2>&1) || die "Slurm does not answer: $(one_line <<<"$config")"
    MAX_ARRAY=$(sed -nE 's/^MaxArraySize *= *([0-9]+).*/\1/p' <<<"$config")
    ((${MAX_ARRAY:-0} > 0)) || die "this cluster allows no job arrays (MaxArraySize): set LAUNCHER=local"
    [[ -z $JOBS ]] || ((JOBS <= MAX_ARRAY)) ||
        die "JOBS=$JOBS exceeds this cluster's MaxArraySize of $MAX_ARRAY: lower it, or leave it empty"
}

absolute_root() { # PATH: print it as an absolute path
    if [[ $1 == /* ]]; then echo "$1"; else echo "$REPOSITORY/$1"; fi
}

# run_in_slurm task|machine|nothing COMMAND…: run COMMAND for each of the caller's `todo`; with `task`, append
# --dataset, --device and --threads, with `machine` the latter two. Set the caller's `failed`.
run_in_slurm() {
    local folder
    local -A first_of=() # job id of an array → number of its first element
    submit "$@"
    if [[ -n ${PICKABACK_CHAIN:-} ]]; then
        FOLLOWED=''
        return
    fi
    follow
    FOLLOWED=''
    ((${#failed[@]})) || rm -rf "$folder"
}

submit() { # for run_in_slurm, whose variables it uses: submit the arrays, each of at most MAX_ARRAY elements
    local logs stage first last id='' before='' dependency root
    local -a arguments roots=()
    logs=$(absolute_root "$LOGS_ROOT") stage=$(basename "$LAUNCHED_AS" .sh)
    mkdir -p "$logs/slurm"
    folder=$(mktemp -d "$logs/slurm/$stage.XXXXXX")
    for root in "$(absolute_root "$CHECKPOINTS_ROOT")" "$(absolute_root "$DATA_ROOT")"; do
        mkdir -p "$root"
        roots+=("$root")
    done
    {
        printf 'TASKS=(%s)\n' "$(printf '%q ' "${todo[@]}")"
        printf 'COMMAND=(%s)\n' "$(printf '%q ' "${@:2}")"
        printf 'ROOTS=(%s)\n' "$(printf '%q ' "${roots[@]}")"
        printf '%s=%q\n' APPENDED "$1" DEVICE "$DEVICE" THREADS "$THREADS" GPUS_PER_TASK "$GPUS_PER_TASK" \
            SIDE_BY_SIDE "${TASKS_SIDE_BY_SIDE:-0}"
    } >"$folder/command.sh"
    if [[ -s ${PICKABACK_CHAIN:-} ]]; then
        before=afterok:$(tail -n 1 "$PICKABACK_CHAIN")
    fi
    arguments=(--ntasks=1 --signal=B:USR1@60 --requeue) # without --ntasks, sbatch refuses --gpus-per-task
    [[ -z $THREADS || $1 == nothing ]] || arguments+=(--cpus-per-task "$((THREADS * GPUS_PER_TASK))")
    words "$SLURM_ARGS"
    arguments+=(${WORDS[@]+"${WORDS[@]}"})
    FOLLOWED=pickaback.${folder##*/}
    for ((first = 0; first < ${#todo[@]}; first += MAX_ARRAY)); do
        last=$((${#todo[@]} - first < MAX_ARRAY ? ${#todo[@]} - first - 1 : MAX_ARRAY - 1))
        dependency=$before
        # JOBS limits each array: the next one waits.
        [[ -z $JOBS || -z $id ]] || dependency=${before:+$before,}afterany:$id
        # Values of an enclosing job would pass for those of the new one.
        env -u SLURM_CPUS_PER_TASK -u SLURM_JOB_GPUS -u SLURM_GPUS_ON_NODE \
            sbatch --parsable "${arguments[@]}" \
            ${dependency:+"--dependency=$dependency" --kill-on-invalid-dep=yes} \
            --array="0-$last${JOBS:+%$JOBS}" --job-name="$FOLLOWED" --chdir="$REPOSITORY" \
            --output="${folder//%/%%}/output-$first-%a.txt" --open-mode=append \
            "$REPOSITORY/run_pickaback/slurm_task.sh" "$folder" "$REPOSITORY" "$first" \
            >"$folder/submitted" 2>"$folder/refusal" &
        if ! wait $!; then
            cancel_followed
            die "Slurm refused the jobs: $(one_line <"$folder/refusal"): correct SLURM_ARGS"
        fi
        id=$(<"$folder/submitted")
        id=${id%%;*}
        first_of[$id]=$first
    done
    if [[ -n ${PICKABACK_CHAIN:-} ]]; then
        (IFS=: && echo "${!first_of[*]}") >>"$PICKABACK_CHAIN"
        echo "-- job ${!first_of[*]}: ${todo[*]}; output in $folder"
    fi
}

follow() { # for run_in_slurm, whose variables it uses: print what the elements print until all have ended
    local -A state=() lost_since=() descriptor=() partial=()
    local -a open=("${!todo[@]}") status
    local number file began=$SECONDS asked=0 answers=1 told=0 interval
    while ((${#open[@]})); do
        # Often at first, then less: many users share the controller.
        interval=$(((SECONDS - began) / 20 + 2))
        ((interval <= 15)) || interval=15
        if ((SECONDS >= asked + interval)); then
            ask_for_states
            asked=$SECONDS
        fi
        status=()
        # A listing, since NFS caches which names are missing.
        for file in "$folder"/status-*; do
            [[ ! -e $file ]] || status[${file##*-}]=$(<"$file")
        done
        for number in "${open[@]}"; do
            print_output "$number"
            if [[ -z ${status[number]:-} ]]; then
                ended_without_status "$number" || continue
            fi
            [[ -z ${partial[$number]:-} ]] || echo "${partial[$number]}"
            [[ -z ${descriptor[$number]:-} ]] || exec {descriptor[$number]}<&-
            [[ ${status[number]:-} == 0 ]] || failed+=("${todo[number]}")
            unset "open[number]"
        done
        if ((!told && ${#descriptor[@]} == 0 && SECONDS - began > 60)); then
            echo "-- no task has started yet: squeue --name=$FOLLOWED shows why"
            told=1
        fi
        ((${#open[@]} == 0)) || run_one sleep 1
    done
}

print_output() { # NUMBER, for follow: print the lines that the element has written since the last call
    local number=$1 line file first
    if [[ -z ${descriptor[$number]:-} ]]; then
        first=$((number / MAX_ARRAY * MAX_ARRAY))
        file=$folder/output-$first-$((number - first)).txt
        [[ -e $file ]] || return 0
        exec {descriptor[$number]}<"$file"
    fi
    while IFS= read -r -u "${descriptor[$number]}" line; do
        printf '%s\n' "${partial[$number]:-}$line"
        partial[$number]=''
    done
    partial[$number]=${partial[$number]:-}$line # not yet a whole line
}

ask_for_states() { # for follow: set `state` of every element that Slurm still knows
    local id name reason number index
    # In the background, so that a signal stops this script at once.
    squeue --noheader --array --states=all --user="$(id -u)" --name="$FOLLOWED" --format='%i %T %r' \
        >"$folder/states" 2>"$folder/refusal" &
    if ! wait $!; then
        ((answers == 0)) || echo "-- Slurm does not answer, still waiting: $(one_line <"$folder/refusal")"
        answers=0
        return
    fi
    answers=1
    state=()
    while read -r id name reason; do
        index=${id#*_} number=${first_of[${id%%_*}]:-}
        [[ -n $number && $index =~ ^[0-9]+$ ]] || continue
        number=$((number + index))
        state[$number]=$name
        [[ $reason != *launch*failed* ]] || state[$number]=LAUNCH_FAILED
    done <"$folder/states"
    for number in "${open[@]}"; do
        case ${state[$number]:-} in
            '' | BOOT_FAIL | CANCELLED | COMPLETED | DEADLINE | FAILED | LAUNCH_FAILED | NODE_FAIL | \
                OUT_OF_MEMORY | PREEMPTED | REVOKED | TIMEOUT)
                : "${lost_since[$number]:=$SECONDS}"
                ;;
            *) unset "lost_since[$number]" ;;
        esac
    done
}

ended_without_status() { # NUMBER, for follow: whether the element has ended without an exit status; say how
    local number=$1 how delay=$FILE_DELAY
    [[ -n ${lost_since[$number]:-} ]] || return 1
    case ${state[$number]:-} in
        CANCELLED) how="cancelled in Slurm (scancel)" delay=0 ;;
        TIMEOUT | DEADLINE) how="ended by Slurm at its time limit" delay=0 ;;
        OUT_OF_MEMORY) how="out of memory: request more in SLURM_ARGS (--mem)" delay=0 ;;
        NODE_FAIL | BOOT_FAIL) how="its node failed" delay=0 ;;
        PREEMPTED | REVOKED) how="preempted" delay=0 ;;
        LAUNCH_FAILED) how="Slurm could not start it: do its nodes see $folder?" delay=0 ;;
        '') how="vanished: Slurm no longer knows it, and it left no exit status in $folder" ;;
        *) how="ended without an exit status (${state[$number]}): do its nodes see $folder?" ;;
    esac
    ((SECONDS >= ${lost_since[$number]} + delay)) || return 1
    echo "error: ${todo[number]}: $how" >&2
}

# ---------------------------------------------------------------------------------------------
# Submitted and left (--detach): PICKABACK_CHAIN is a file with a line of job ids for each fan-out so far. The
# next one starts if the last has succeeded, and is removed from the queue if it has failed.

start_chain() { # for start_stage
    [[ $LAUNCHER == slurm ]] || die "--detach submits jobs to Slurm: set LAUNCHER=slurm"
    [[ -z ${PICKABACK_CHAIN:-} ]] || return 0 # of the stage that runs this one for each of its seeds
    local logs
    logs=$(absolute_root "$LOGS_ROOT")
    mkdir -p "$logs/slurm"
    PICKABACK_CHAIN=$(mktemp "$logs/slurm/chain.XXXXXX")
    export PICKABACK_CHAIN
}

chained_ids() { # print the job ids of all fan-outs, on one line
    tr ':\n' '  ' <"$PICKABACK_CHAIN"
}

cancel_chain() { # nothing is left behind if a later stage cannot be submitted
    [[ -n ${PICKABACK_CHAIN:-} && -z $CALLED_BY_A_STAGE ]] || return 0
    local -a ids
    read -ra ids < <(chained_ids)
    ((${#ids[@]} == 0)) || scancel --quiet "${ids[@]}" || echo "error: scancel failed: cancel the jobs ${ids[*]}" >&2
}

report_chain() {
    echo "-- submitted: jobs $(chained_ids); the last ones print the table and write the report, into their folders. If a task fails, the" \
        "later jobs are removed; once that is corrected, $(resuming)"
}

cancel_followed() { # cancel what this script has submitted, also jobs of which it does not know the id yet
    [[ -n $FOLLOWED ]] || return 0
    scancel --quiet --user="$(id -u)" --name="$FOLLOWED" 2>/dev/null ||
        echo "error: scancel failed: cancel the jobs named $FOLLOWED" >&2
}
