#!/usr/bin/env bash
# Stage 1: train a scratch network for every task and record its accuracy.
#
# usage: bash run_pickaback/baseline.sh [config] [tasks]
#
#   config  task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks   names, ids or ranges: 4  1-20  fish,14  all (default)
#
# The variables in run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_stage "stage 1, scratch baseline of every task" "$@"
fan_out "$PYTHON_BIN" packnet_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune
