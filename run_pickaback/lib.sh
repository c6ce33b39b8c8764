# What the stages share: their arguments, their variables and the checks before any job. Sourced.
# shellcheck shell=bash

ARGUMENTS=("$@")                             # of the stage, as given
CALLED_BY_A_STAGE=${INSIDE_A_STAGE:-}
LAUNCHED_AS=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

# Variables that the user set in the environment, as opposed to config.sh.
declare -A FROM_ENVIRONMENT=()
while read -r _name; do
    FROM_ENVIRONMENT[$_name]=${!_name-}
done < <(compgen -e)

# shellcheck source=run_pickaback/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
# shellcheck source=run_pickaback/jobs.sh
source run_pickaback/jobs.sh

absolute DATA_ROOT CHECKPOINTS_ROOT LOGS_ROOT
[[ ${ARCH:-} != *.py* ]] || absolute ARCH
[[ -z ${TEXT_ENCODER:-} || ! -d $CALLED_FROM/$TEXT_ENCODER ]] || absolute TEXT_ENCODER
[[ ${PUBLIC_PROBES:-} != */* || ! -d $CALLED_FROM/$PUBLIC_PROBES ]] || absolute PUBLIC_PROBES

requested_config() { # ARGUMENTS…: print the first that is neither an option nor an option's value, else CONFIG
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

# A table's own defaults take precedence over the general ones, except for that of CONFIG itself. ("$@" holds the
# arguments of the stage.)
_name=$(requested_config "$@")
: "${_name:=$(sed -n 's/^: "${CONFIG:=\([^}]*\)}".*/\1/p' run_pickaback/config.sh)}"
if [[ $_name =~ ^[a-z_0-9]+$ && -f run_pickaback/config_$_name.sh ]]; then
    # shellcheck source=run_pickaback/config_digits_docs.sh
    source "run_pickaback/config_$_name.sh"
fi
# shellcheck source=run_pickaback/config.sh
source run_pickaback/config.sh

# What the published code does, for PRESET=published.
PUBLISHED=(PROTOCOL=published BACKBONE=farthest FREED=zero PROBES=own)

apply_preset() {
    local setting name
    [[ -n $PRESET ]] || return 0
    [[ $PRESET == published ]] || die "PRESET=$PRESET is unknown: set it to published, or leave it empty"
    for setting in "${PUBLISHED[@]}"; do
        name=${setting%%=*}
        [[ ${FROM_ENVIRONMENT[$name]:-${setting#*=}} == "${setting#*=}" ]] ||
            die "PRESET=published means $setting, but $name=${!name}: unset one of them"
        printf -v "$name" '%s' "${setting#*=}"
    done
}

apply_preset

export PYTHONUNBUFFERED=1

# ---------------------------------------------------------------------------------------------
# Command line

usage() { # print the header comment of the script
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$LAUNCHED_AS"
}

usage_error() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

need_value() { # OPTION VALUE…: reject an option without its value
    if (($# < 2)) || [[ -z $2 || $2 == -* ]]; then
        usage_error "$1 needs a value"
    fi
}

positional() { # ARGUMENTS…: set GIVEN to the positional ones, reject options
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
    ((${#GIVEN[@]} <= 2)) || usage_error "too many arguments: ${GIVEN[*]:2} (write several tasks as 4,14 or 1-20)"
    CONFIG=${GIVEN[0]:-$CONFIG}
    TASKS=${GIVEN[1]:-$TASKS}
    if [[ $CONFIG == *.toml && -f $CALLED_FROM/$CONFIG ]]; then
        absolute CONFIG
    fi
}

parse_control() { # [config] [tasks] [--control] [--detach]: set CONTROL and DETACH; the rest goes to REST
    local argument
    REST=()
    for argument in "$@"; do
        case $argument in
            --control) CONTROL=1 ;;
            --detach) DETACH=1 ;;
            *) REST+=("$argument") ;;
        esac
    done
}

# parse_pair [config] [targets], or [config] --backbone TASK --target TARGETS: set PAIR_BACKBONE; the rest goes
# to REST, with the targets in their position.
parse_pair() {
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

words() { # TEXT: split it into WORDS, without expanding wildcards
    read -rd '' -a WORDS <<<"$1" || true
}

# ---------------------------------------------------------------------------------------------
# Variables

_pickaback="baseline wo_backbone select_pruning_ratio_of_backbone find_backbone transfer_kv w_backbone
    w_backbone_MM run_all run_all_MM"
_federation="federated federated_device"

# Which stages accept which variables, as `VARIABLES: STAGES`. The stages of Pick-a-back accept one another's
# variables, so that settings exported once serve a whole run stage by stage.
ACCEPTED_BY=(
    "ARCH SEED RUN OVERWRITE DATA_ROOT CHECKPOINTS_ROOT LOGS_ROOT: $_pickaback cpg_sequence spg $_federation"
    "DEVICE THREADS PRECISION NONDETERMINISTIC PYTHON: $_pickaback cpg_sequence spg $_federation"
    "SEEDS LAUNCHER SLURM_ARGS GPUS_PER_TASK LOG_TO REPORT: $_pickaback cpg_sequence spg"
    "CONFIG TASKS SIZE PROTOCOL TRAIN_PER_CLASS JOBS: $_pickaback cpg_sequence $_federation"
    "TEXT_ENCODER GPUS: $_pickaback cpg_sequence"
    "EPOCHS PRUNE_EPOCHS SPARSITIES BATCH_SIZE LR EXTRA_ARGS: $_pickaback cpg_sequence $_federation"
    "ALLOW_ACC_LOSS MAX_WIDTH FREED: $_pickaback cpg_sequence $_federation"
    "PRESET: $_pickaback cpg_sequence"
    "BACKBONE PROBES PUBLIC_PROBES MAX_ITERATIONS EXTRA_SEARCH_ARGS: $_pickaback $_federation"
    "CANDIDATES FLEET: $_pickaback"
    "REUSE: w_backbone"
    "CONTROL: run_all run_all_MM"
    "KV_TRANSFER: w_backbone_MM run_all_MM"
    "EXTRA_SEQUENCE_ARGS: cpg_sequence"
    "EXTRA_FEDERATION_ARGS FEDERATION_PORT: federated"
    "CERTIFICATES MAX_MEGABYTES: $_federation"
    "SEQ APPR TRIALS EXTRA_SPG_ARGS: spg"
)

refuse_unused_variables() { # those of the environment that the stage does not accept, each in one line
    # A stage that another one starts finds the variables of its caller, which has checked them.
    [[ -z ${INSIDE_A_STAGE:-} ]] || return 0
    export INSIDE_A_STAGE=1
    local script row name value refused=0
    local -a names
    script=$(basename "$LAUNCHED_AS")
    for row in "${ACCEPTED_BY[@]}"; do
        words "${row#*:}"
        [[ " ${WORDS[*]} " != *" ${script%.sh} "* ]] || continue
        read -ra names <<<"${row%%:*}"
        for name in "${names[@]}"; do
            value=${FROM_ENVIRONMENT[$name]:-}
            [[ -n $value ]] || continue
            refused=1
            [[ $value != *[[:space:]]* ]] || value="\"$value\""
            echo "error: $name=$value has no effect in $script: unset it$(alternative "$script" "$name")" >&2
        done
    done
    ((refused == 0)) || exit 1
}

alternative() { # SCRIPT VARIABLE: print what to set instead, if there is an equivalent
    local value=${FROM_ENVIRONMENT[$2]}
    case "$1 $2" in
        "spg.sh EPOCHS" | "spg.sh BATCH_SIZE" | "spg.sh LR") echo ", or give EXTRA_SPG_ARGS=\"--${2,,} $value\"" ;;
        "spg.sh EXTRA_ARGS") echo ", or give EXTRA_SPG_ARGS=\"$value\"" ;;
        "spg.sh GPUS") echo ", or give DEVICE=cuda:${value%% *}" ;;
        "spg.sh CONFIG") echo ", or name a sequence in SEQ" ;;
        *) echo " (run_pickaback/config.sh says where it acts)" ;;
    esac
}

check_seeds() { # set SEED_LIST to SEEDS if this stage is to run for each of them; settle SEED and RUN otherwise
    SEED_LIST=()
    # A stage that another one starts gets its seed from it; SEED in the environment overrides config.sh.
    if [[ -z $CALLED_BY_A_STAGE && -n ${FROM_ENVIRONMENT[SEED]:-} && -n ${FROM_ENVIRONMENT[SEEDS]:-} ]]; then
        die "SEED=$SEED and SEEDS=\"$SEEDS\" contradict: set one of them"
    fi
    if [[ -z $CALLED_BY_A_STAGE && -z ${FROM_ENVIRONMENT[SEED]:-} ]]; then
        words "$SEEDS"
        SEED_LIST=(${WORDS[@]+"${WORDS[@]}"})
    fi
    local seed known=' '
    for seed in ${SEED_LIST[@]+"${SEED_LIST[@]}"}; do
        [[ $seed =~ ^(0|[1-9][0-9]{0,17})$ ]] || die "SEEDS=\"$SEEDS\" is not a list of seeds such as \"1 2 3\""
        [[ $known != *" $seed "* ]] || die "SEEDS=\"$SEEDS\" names seed $seed twice"
        known+="$seed "
    done
    if ((${#SEED_LIST[@]} > 1)); then
        [[ -z $RUN || $RUN == *'{seed}'* ]] ||
            die "RUN=$RUN names a single run, but SEEDS=\"$SEEDS\": put {seed} into it, such as RUN=$RUN-{seed}"
        return
    fi
    if ((${#SEED_LIST[@]})); then
        export SEED=${SEED_LIST[0]}
        SEED_LIST=()
    fi
    RUN=${RUN//'{seed}'/$SEED}
    FLEET=${FLEET//'{seed}'/$SEED}
}

check_switches() {
    local name
    for name in OVERWRITE KV_TRANSFER NONDETERMINISTIC CONTROL REPORT; do
        [[ ${!name} == [01] ]] || die "$name=${!name} must be 0 or 1"
    done
    [[ $LAUNCHER == local || $LAUNCHER == slurm ]] || die "LAUNCHER=$LAUNCHER must be local or slurm"
    [[ $GPUS_PER_TASK =~ ^[1-9][0-9]{0,3}$ ]] ||
        die "GPUS_PER_TASK=$GPUS_PER_TASK must be a whole number from 1 to 9999"
    [[ $DEVICE =~ ^(auto|cpu|cuda(:[0-9]{1,4})?)$ ]] || die "DEVICE=$DEVICE must be auto, cpu, cuda or cuda:<i>"
}

check_machine() { # check GPUS, and settle JOBS and THREADS: under Slurm, empty ones leave them to the allocation
    local index
    words "$GPUS"
    if ((${#WORDS[@]})); then
        for index in "${WORDS[@]}"; do
            [[ $index =~ ^(0|[1-9][0-9]{0,3})$ ]] || die "GPUS=\"$GPUS\" is not a list of GPU indices such as \"0 1 2 3\""
        done
        [[ $DEVICE == auto || $DEVICE == cuda ]] || die "GPUS=\"$GPUS\" and DEVICE=$DEVICE contradict: set one of them"
        check_gpus_per_task
    fi
    [[ $LAUNCHER == slurm ]] || settle_jobs_and_threads
    [[ -z $JOBS || $JOBS =~ ^[1-9][0-9]{0,3}$ ]] || die "JOBS=$JOBS must be a whole number from 1 to 9999"
    [[ -z $THREADS ]] || { [[ $THREADS =~ ^[1-9][0-9]{0,3}$ ]] && ((THREADS <= 1024)); } ||
        die "THREADS=$THREADS must be a whole number from 1 to 1024"
    [[ $LAUNCHER == local ]] || check_slurm
}

check_gpus_per_task() { # for check_machine, which has put GPUS into WORDS
    local position offset
    ((${#WORDS[@]} % GPUS_PER_TASK == 0)) ||
        die "GPUS=\"$GPUS\" is not a multiple of GPUS_PER_TASK=$GPUS_PER_TASK: change one of them"
    for position in "${!WORDS[@]}"; do
        offset=$((position % GPUS_PER_TASK))
        ((WORDS[position] == WORDS[position - offset] + offset)) ||
            die "GPUS=\"$GPUS\": the GPUs of a task must be consecutive, such as \"0 1\" (CUDA_VISIBLE_DEVICES reorders them)"
    done
}

settle_jobs_and_threads() { # for check_machine, which has put GPUS into WORDS
    local cores
    # nproc would obey the user's OMP_NUM_THREADS.
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    if [[ -z $JOBS ]]; then
        JOBS=$((cores / GPUS_PER_TASK > 0 ? cores / GPUS_PER_TASK : 1))
        if ((${#WORDS[@]})); then
            JOBS=$((${#WORDS[@]} / GPUS_PER_TASK))
        elif gpu_in_use; then
            JOBS=1
        fi
    fi
    [[ $JOBS =~ ^[1-9][0-9]{0,3}$ ]] || return 0
    # Derived from JOBS, not from the number of tasks: a task's bytes do not depend on what runs beside it.
    cores=$((cores / GPUS_PER_TASK))
    [[ -n $THREADS ]] || THREADS=$((cores / JOBS > 0 ? cores / JOBS : 1))
}

gpu_in_use() {
    [[ $DEVICE == cuda* ]] && return
    [[ $DEVICE == auto && -n ${CUDA_VISIBLE_DEVICES-unset} ]] && nvidia-smi -L >/dev/null 2>&1
}

common_args() { # the flags that several commands share; fan_out adds the task, the device and the threads
    FILE_ARGS=(--arch "$ARCH" --dataset_config "$CONFIG" --seed "$SEED" --protocol "$PROTOCOL"
        --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" --logs_root "$LOGS_ROOT"
        --text_encoder "$TEXT_ENCODER")
    words "$SIZE"
    if ((${#WORDS[@]})); then
        [[ $SIZE == -* ]] || FILE_ARGS+=(--size)
        FILE_ARGS+=("${WORDS[@]}")
    fi
    [[ -z $RUN ]] || FILE_ARGS+=(--run "$RUN")
    [[ -z $TRAIN_PER_CLASS ]] || FILE_ARGS+=(--train_per_class "$TRAIN_PER_CLASS")
    FLEET_ARGS=()
    [[ -z $FLEET ]] || FLEET_ARGS+=(--fleet "$FLEET")
    SEARCH_ARGS=()
    [[ $PROBES == own ]] || SEARCH_ARGS+=(--probes "$PROBES")
    [[ -z $PUBLIC_PROBES ]] || SEARCH_ARGS+=(--public_probes "$PUBLIC_PROBES")
    [[ -z $MAX_ITERATIONS ]] || SEARCH_ARGS+=(--max_iterations "$MAX_ITERATIONS")
    WRITING_ARGS=("${FILE_ARGS[@]}")
    [[ $OVERWRITE == 0 ]] || WRITING_ARGS+=(--overwrite)
    COMMON_ARGS=("${WRITING_ARGS[@]}" --precision "$PRECISION")
    [[ $NONDETERMINISTIC == 0 ]] || COMMON_ARGS+=(--nondeterministic)
    TRAINING_ARGS=("${COMMON_ARGS[@]}" --epochs "$EPOCHS" --batch_size "$BATCH_SIZE" --lr "$LR")
    [[ $GPUS_PER_TASK == 1 ]] || TRAINING_ARGS+=(--gpus_per_task "$GPUS_PER_TASK")
    words "$EXTRA_ARGS"
    TRAINING_ARGS+=(${WORDS[@]+"${WORDS[@]}"})
    words "$LOG_TO"
    LOG_TO_ARGS=(${WORDS[@]+--log_to "${WORDS[@]}"})
    TRAINING_ARGS+=(${LOG_TO_ARGS[@]+"${LOG_TO_ARGS[@]}"})
}

# ---------------------------------------------------------------------------------------------
# A stage

DETACH=0    # run_all*.sh --detach
EXTRA=base  # what the stage needs installed: base, or an extra of pyproject.toml
REFUSALS=() # what else tools.list_tasks refuses before any job; set by some stages

start_stage() { # "stage NUMBER, WHAT IT DOES" ARGUMENTS…: everything before the first Python command of a stage
    STAGE=$1
    parse_arguments "${@:2}"
    refuse_unused_variables
    check_switches
    check_seeds
    check_machine
    setup_python "$EXTRA"
    common_args
    expand_tasks
    trap end_stage EXIT
    ((DETACH == 0)) || start_chain
    if ((${#SEED_LIST[@]})); then
        run_for_each_seed
        exit
    fi
    local protocol=$PROTOCOL
    [[ $PROTOCOL != published ]] || protocol="published (decisions look at the test set)"
    local shared=''
    [[ $GPUS_PER_TASK == 1 ]] || shared=" ($GPUS_PER_TASK per task)"
    echo "== $STAGE: $CONFIG, tasks: ${#TASK_NAMES[@]}, jobs: ${JOBS:-as Slurm allows}," \
        "threads per job: ${THREADS:-as Slurm allots}," \
        "device: ${GPUS:+GPUs }${GPUS:-$DEVICE}$shared, protocol: $protocol"
}

run_for_each_seed() { # run this stage for each of SEED_LIST, then print its table over them
    local seed
    local -a jobs=()
    # Some scripts change JOBS before they start.
    [[ -z ${FROM_ENVIRONMENT[JOBS]:-} ]] || jobs=("JOBS=${FROM_ENVIRONMENT[JOBS]}")
    for seed in "${SEED_LIST[@]}"; do
        echo "== seed $seed of ${SEED_LIST[*]}"
        cd "$CALLED_FROM" # the arguments may hold a relative path
        run_one env "SEED=$seed" "RUN=${RUN//'{seed}'/$seed}" "FLEET=${FLEET//'{seed}'/$seed}" \
            ${jobs[@]+"${jobs[@]}"} \
            bash "$LAUNCHED_AS" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
        cd "$REPOSITORY"
    done
    local -a of_sequence=()
    [[ $LAUNCHED_AS != */cpg_sequence.sh ]] || of_sequence=(--in_sequence)
    report --seeds "${SEED_LIST[@]}" ${of_sequence[@]+"${of_sequence[@]}"}
    case $LAUNCHED_AS in
        */run_all.sh | */run_all_MM.sh | */cpg_sequence.sh) write_report "${FILE_ARGS[@]}" --seeds "${SEED_LIST[@]}" ;;
    esac
}

report() { # FLAGS…: print the table of the tasks of this stage
    run_light "the table" "$PYTHON_BIN" -m tools.report "${FILE_ARGS[@]}" --candidates "${POOL:-$CANDIDATES}" \
        --dataset "$(joined_tasks)" --backbone "${PAIR_BACKBONE:-from_csv}" "$@"
}

report_alone() { # print the table, unless another stage called this one: it prints its own
    # Controls, and targets on every backbone, are not in it.
    [[ $REUSE == cpg && ${PAIR_BACKBONE:-} != all ]] || return 0
    [[ -n $CALLED_BY_A_STAGE ]] || report || echo "-- no table: see the line above"
}

start_sequence() { # ARGUMENTS…: start_stage for SPG, which learns a sequence of tasks in one process
    STAGE="SPG, learn a sequence of tasks in one network"
    positional "$@"
    ((${#GIVEN[@]} <= 1)) || usage_error "too many arguments: ${GIVEN[*]:1}"
    SEQ=${GIVEN[0]:-$SEQ}
    [[ ! -f $CALLED_FROM/${SEQ%.toml*}.toml ]] || absolute SEQ
    refuse_unused_variables
    check_switches
    [[ $LAUNCHER == local ]] || check_slurm
    words "$APPR"
    APPROACHES=("${WORDS[@]}")
    check_seeds
    [[ -z ${FROM_ENVIRONMENT[SEEDS]:-} || $TRIALS == 1 ]] ||
        die "SEEDS=\"$SEEDS\" and TRIALS=$TRIALS contradict: set one of them"
    [[ -z $RUN || ($TRIALS == 1 && ${#APPROACHES[@]} == 1) ]] ||
        die "RUN=$RUN names a single run: unset it, or set TRIALS=1 and one approach in APPR"
    setup_python base
    [[ $SEED =~ ^[0-9]{1,18}$ ]] || die "SEED=$SEED must be a whole number from 0"
    [[ $TRIALS =~ ^[1-9][0-9]{0,3}$ ]] || die "TRIALS=$TRIALS must be a whole number from 1 to 9999"
    local -a seeds=(--seed "$SEED" --trials "$TRIALS")
    ((${#SEED_LIST[@]} == 0)) || seeds=(--seeds "${SEED_LIST[@]}")
    SPG_ARGS=(--seq "$SEQ" "${seeds[@]}" --precision "$PRECISION" --device "$DEVICE"
        --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" --logs_root "$LOGS_ROOT")
    # config.sh's architecture is that of Pick-a-back.
    [[ -z ${FROM_ENVIRONMENT[ARCH]:-} ]] || SPG_ARGS+=(--arch "$ARCH")
    [[ -z $RUN ]] || SPG_ARGS+=(--run "$RUN")
    [[ -z $THREADS ]] || SPG_ARGS+=(--threads "$THREADS")
    [[ $GPUS_PER_TASK == 1 ]] || SPG_ARGS+=(--gpus_per_task "$GPUS_PER_TASK")
    [[ $NONDETERMINISTIC == 0 ]] || SPG_ARGS+=(--nondeterministic)
    [[ $OVERWRITE == 0 ]] || SPG_ARGS+=(--overwrite)
    words "$LOG_TO"
    ((${#WORDS[@]} == 0)) || SPG_ARGS+=(--log_to "${WORDS[@]}")
    words "$EXTRA_SPG_ARGS"
    SPG_ARGS+=(${WORDS[@]+"${WORDS[@]}"})
    trap end_stage EXIT
    echo "== $STAGE: $SEQ, approaches: $APPR," \
        "seeds: $( ((${#SEED_LIST[@]})) && echo "${SEED_LIST[*]}" || echo "$TRIALS from $SEED"), device: $DEVICE"
}

end_stage() {
    local status=$?
    local outcome=finished
    if [[ -n $STOPPED ]]; then
        [[ -n $CALLED_BY_A_STAGE ]] || echo "$STOPPED: $(resuming)"
        return
    fi
    if ((status)); then
        outcome="stopped with exit status $status"
        ((DETACH == 0)) || cancel_chain
    elif [[ -n ${PICKABACK_CHAIN:-} ]]; then
        outcome=submitted
        ((DETACH == 0)) || [[ -n $CALLED_BY_A_STAGE ]] || report_chain
    fi
    echo "== ${STAGE%%,*} $outcome after $((SECONDS / 60)) min $((SECONDS % 60)) s"
}

resuming() { # print what the same command would do now
    if [[ $OVERWRITE == 0 ]]; then
        echo "the same command continues from here"
    else
        echo "with OVERWRITE=1, the same command redoes what is finished"
    fi
}

# expand_tasks: set TASK_NAMES to the tasks that TASKS means, and TASK_SPEC to TASKS; refuse the values that a later
# stage would refuse.
expand_tasks() {
    local names
    words "$SPARSITIES"
    names=$("$PYTHON_BIN" -m tools.list_tasks "${FILE_ARGS[@]}" ${SEARCH_ARGS[@]+"${SEARCH_ARGS[@]}"} \
        ${REFUSALS[@]+"${REFUSALS[@]}"} ${LOG_TO_ARGS[@]+"${LOG_TO_ARGS[@]}"} \
        --dataset "$TASKS" --precision "$PRECISION" --epochs "$EPOCHS" \
        --prune_epochs "$PRUNE_EPOCHS" --batch_size "$BATCH_SIZE" --lr "$LR" --allow_acc_loss "$ALLOW_ACC_LOSS" \
        --max_allowed_network_width_multiplier "$MAX_WIDTH" --target_sparsity ${WORDS[@]+"${WORDS[@]}"})
    mapfile -t TASK_NAMES <<<"$names"
    TASK_SPEC=$TASKS
}

fleet_serves() { # WHAT IT REPLACES: whether FLEET provides the backbones; say so
    [[ -n $FLEET ]] || return 1
    echo "-- FLEET=$FLEET provides the backbones: $1"
}

RULES=(farthest nearest random rsa cka leep nce logme hscore parc knn logistic accuracy room race)

backbone_is_a_task() { # BACKBONE names a task, not a rule
    [[ " ${RULES[*]} " != *" $BACKBONE "* ]]
}

leave_out() { # TASK: remove a task, given by name or id, from TASK_NAMES
    local name task
    local -a kept=()
    name=$("$PYTHON_BIN" -m tools.list_tasks --dataset_config "$CONFIG" --data_root "$DATA_ROOT" --dataset "$1")
    for task in "${TASK_NAMES[@]}"; do
        if [[ $task == "$name" ]]; then
            echo "-- $task is the backbone itself: skipped"
        else
            kept+=("$task")
        fi
    done
    ((${#kept[@]})) || die "backbone and target are the same task, $name: choose two different ones"
    ((${#kept[@]} == ${#TASK_NAMES[@]})) || TASK_SPEC=''
    TASK_NAMES=("${kept[@]}")
}

leave_out_backbone() { # a task that serves as the backbone of all is not a target
    if [[ ${PAIR_BACKBONE:-} == all ]]; then
        return 0
    elif [[ -n ${PAIR_BACKBONE:-} ]]; then
        leave_out "$PAIR_BACKBONE"
    elif backbone_is_a_task; then
        leave_out "$BACKBONE"
    fi
}

# settle_candidates: set OWN_NETWORKS to the tasks that stages 1 to 2-2 of this run train. Several tasks are one
# another's candidates, unless CANDIDATES says otherwise; a single one chooses among CANDIDATES, by default all
# tasks of the table, whose networks are made, too.
settle_candidates() {
    OWN_NETWORKS=$TASKS
    [[ -z $FLEET ]] || return 0
    if ((${#TASK_NAMES[@]} > 1)); then
        [[ $CANDIDATES != all ]] || export CANDIDATES=$TASKS
        return
    fi
    local names
    ! backbone_is_a_task || export CANDIDATES=$BACKBONE
    names=$("$PYTHON_BIN" -m tools.list_tasks --dataset_config "$CONFIG" --data_root "$DATA_ROOT" \
        --dataset "$TASKS" --candidates "$CANDIDATES" --with_candidates)
    [[ $names == *$'\n'* ]] || backbone_is_a_task ||
        die "task ${TASK_NAMES[0]} has no candidate for its backbone: add a task to $CONFIG, or correct CANDIDATES"
    OWN_NETWORKS=${names//$'\n'/,}
}

run_stages() { # TASKS SCRIPT…: run these stages in turn
    local script
    for script in "${@:2}"; do
        run_one bash "run_pickaback/$script.sh" "$CONFIG" "$1"
    done
}

targets_with_candidates() { # print the tasks that have a backbone among CANDIDATES, separated by commas
    "$PYTHON_BIN" -m tools.list_tasks --dataset_config "$CONFIG" --data_root "$DATA_ROOT" \
        --dataset "$(joined_tasks)" --candidates "$CANDIDATES" | paste -sd,
}
