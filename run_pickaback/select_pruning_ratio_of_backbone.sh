#!/usr/bin/env bash
# Stage 2-2: choose for every task the highest pruning ratio that keeps its scratch accuracy.
#
# usage: bash run_pickaback/select_pruning_ratio_of_backbone.sh [config] [tasks]
#
#   config  task table: digits (default), cifar100 or a .toml file of yours
#   tasks   names, ids or ranges: 4  1-20  fish,14  all (default)
#
# Every other variable is in run_pickaback/config.sh and can be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_stage "stage 2-2, choose the pruning ratio of every task" "$@"
words "$SPARSITIES"
run_one "$PYTHON_BIN" -m tools.select_pruning_ratio "${WRITING_ARGS[@]}" --dataset "$TASKS" \
    --allow_acc_loss "$ALLOW_ACC_LOSS" --target_sparsity "${WORDS[@]}"
