#!/usr/bin/env bash
# Stage 2-1: train each task's own network, then prune it gradually to every ratio in SPARSITIES.
#
# usage: bash run_pickaback/wo_backbone.sh [config] [tasks]
#
#   config  task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks   names, ids or ranges: 4  1-20  fish,14  all (default)
#
# The variables in run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_stage "stage 2-1, train and gradually prune each task's own network" "$@"
if fleet_serves "own networks are not pruned"; then
    fan_out "$PYTHON_BIN" CPG_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune
    exit
fi
words "$SPARSITIES"
fan_out "$PYTHON_BIN" CPG_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune prune \
    --prune_epochs "$PRUNE_EPOCHS" --target_sparsity "${WORDS[@]}"
