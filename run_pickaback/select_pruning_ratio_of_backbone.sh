#!/usr/bin/env bash
# Stage 2-2: choose the highest pruning ratio that keeps the scratch accuracy, per task.
#
# usage: bash run_pickaback/select_pruning_ratio_of_backbone.sh [config] [tasks]
#
#   config  task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks   names, ids or ranges: 4  1-20  fish,14  all (default)
#
# The variables in run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_stage "stage 2-2, choose the pruning ratio of each task" "$@"
! fleet_serves "there is no ratio to choose" || exit 0
words "$SPARSITIES"
run_light "the choice of the ratios" "$PYTHON_BIN" -m tools.select_pruning_ratio "${WRITING_ARGS[@]}" --dataset "$TASKS" \
    --allow_acc_loss "$ALLOW_ACC_LOSS" --target_sparsity "${WORDS[@]}"
