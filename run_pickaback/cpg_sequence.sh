#!/usr/bin/env bash
# CPG: learn all tasks in sequence in one network (train, prune, choose the ratio), then evaluate each.
#
# usage: bash run_pickaback/cpg_sequence.sh [config] [tasks]
#
#   config  task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks   names, ids or ranges, learned in this order: 4  1-20  fish,14  all (default)
#
# Missing scratch baselines are trained first, as by baseline.sh. Finished tasks are skipped. The variables
# in run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

baseline_jobs=$JOBS JOBS=1 # the sequence is one process: by default it gets all cores
start_stage "CPG sequence, all tasks in one network" "$@"
JOBS=$baseline_jobs run_one bash run_pickaback/baseline.sh "$CONFIG" "$TASKS"
words "$SPARSITIES"
sparsities=("${WORDS[@]}")
words "$EXTRA_SEQUENCE_ARGS"
in_one_process "$PYTHON_BIN" CPG_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune prune \
    --prune_epochs "$PRUNE_EPOCHS" --target_sparsity "${sparsities[@]}" --allow_acc_loss "$ALLOW_ACC_LOSS" \
    --freed "$FREED" --max_allowed_network_width_multiplier "$MAX_WIDTH" --total_num_tasks "${#TASK_NAMES[@]}" \
    ${WORDS[@]+"${WORDS[@]}"}
