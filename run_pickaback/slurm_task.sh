#!/usr/bin/env bash
# One element of a job array, on its node: a task of a stage. slurm.sh submits it.
#
# usage: bash run_pickaback/slurm_task.sh FOLDER REPOSITORY FIRST
#
#   FOLDER      of the fan-out; holds command.sh
#   REPOSITORY  where the command runs
#   FIRST       number of this array's first task
set -uo pipefail

folder=$1 repository=$2
number=$(($3 + SLURM_ARRAY_TASK_ID))
child='' ended=''

end() { # STATUS: leave the exit status to the follower and exit
    echo "$1" >"$folder/.status-$number.$$" && mv "$folder/.status-$number.$$" "$folder/status-$number"
    exit "$1"
}

need() { # PATH: end unless this node sees it
    [[ -e $1 ]] && return
    echo "error: node $(hostname -s) does not see $1: the repository, PYTHON and the roots must lie on a file" \
        "system that all nodes share" >&2
    end 1
}

end_child() { # WHY: pass a signal on
    ended=$1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}

saved_since_start() { # whether any task has saved something: this one will, too, once it runs again
    [[ -n $(find "${ROOTS[0]}" -name '*.pth.tar' -newer "$folder/.started-$number" -print -quit) ]]
}

# Slurm sends USR1 before the time limit (--signal), and TERM to a job that is cancelled or preempted.
trap 'end_child limit' USR1
trap 'end_child stopped' TERM

need "$folder/command.sh"
rm -f "$folder/status-$number"
: >"$folder/.started-$number"
need "$repository"
cd "$repository" || end 1
# shellcheck source=/dev/null
source "$folder/command.sh"
for root in "${ROOTS[@]}"; do
    need "$root"
done
[[ ${COMMAND[0]} != */* ]] || need "${COMMAND[0]}"

task=${TASKS[number]}
threads=${THREADS:-$((${SLURM_CPUS_PER_TASK:-1} / GPUS_PER_TASK))}
((threads > 0)) || threads=1
device=$DEVICE
if [[ $device == auto ]]; then
    # A GPU that the job was not given belongs to another one.
    device=cpu
    [[ -z ${SLURM_JOB_GPUS:-}${SLURM_GPUS_ON_NODE:-} && $GPUS_PER_TASK == 1 ]] || device=cuda
fi
case $APPENDED in
    task) COMMAND+=(--dataset "$task" --device "$device" --threads "$threads") ;;
    machine) COMMAND+=(--device "$device" --threads "$threads") ;;
esac
restarts=${SLURM_RESTART_COUNT:-0}
((restarts == 0)) && restarts='' || restarts=", restart $restarts"
echo "-- $((number + 1)) of ${#TASKS[@]}: $task on $device of ${SLURMD_NODENAME:-$(hostname -s)}$restarts"

export OMP_NUM_THREADS=$threads INSIDE_A_STAGE=1 PYTHONUNBUFFERED=1 TASKS_SIDE_BY_SIDE=$SIDE_BY_SIDE
"${COMMAND[@]}" &
child=$!
[[ -z $ended ]] || end_child "$ended"
wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`
    wait "$child"
    status=$?
done
if [[ $status != 0 && $ended == limit ]]; then
    if ! saved_since_start; then
        echo "error: $task saved nothing within its time limit: raise --time in SLURM_ARGS" >&2
        end 1
    fi
    echo "-- $task: the time limit is near, requeued"
    # The job id alone would mean the whole array.
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && exit 0
    echo "error: $task: Slurm did not requeue it: run the same command again" >&2
fi
# What Slurm ended, it reports itself; a preempted job starts again. (143: its TERM reached the command first.)
[[ $status == 0 || ($ended != stopped && $status != 143) ]] || exit "$status"
end "$status"
