#!/usr/bin/env bash
# CPG: learn all tasks in sequence in one network (train, prune, choose, next), then evaluate every task.
#
# usage: bash run_pickaback/cpg_sequence.sh [config] [tasks]
#
#   config  task table: digits (default), cifar100 or a .toml file of yours
#   tasks   names, ids or ranges, in the order of learning: 4  1-20  fish,14  all (default)
#
# Scratch baselines that are missing are trained first, as baseline.sh does. Finished tasks are skipped.
# Every other variable is in run_pickaback/config.sh and can be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

asked_jobs=$JOBS JOBS=1 # one process, so that it gets all cores unless THREADS says otherwise
start_stage "CPG sequence, all tasks in one network" "$@"
JOBS=$asked_jobs run_one bash run_pickaback/baseline.sh "$CONFIG" "$TASKS"
words "$SPARSITIES"
sparsities=("${WORDS[@]}")
words "$EXTRA_SEQUENCE_ARGS"
in_one_process "$PYTHON_BIN" CPG_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune prune \
    --prune_epochs "$PRUNE_EPOCHS" --target_sparsity "${sparsities[@]}" --allow_acc_loss "$ALLOW_ACC_LOSS" \
    --max_allowed_network_width_multiplier "$MAX_WIDTH" --total_num_tasks "${#TASK_NAMES[@]}" \
    ${WORDS[@]+"${WORDS[@]}"}
