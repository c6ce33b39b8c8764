#!/usr/bin/env bash
# SPG: learn a sequence of tasks in one network, with soft-masked gradients or a reference approach.
#
# usage: bash run_pickaback/spg.sh [seq]
#
#   seq  sequence: digits_5 (default), cifar100_10, cifar100_20, tinyimagenet_10, tinyimagenet_20,
#        imagenet_100, fceleba_10, fceleba_20, femnist_10, femnist_20
#
# Every other variable is in run_pickaback/config.sh and can be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_sequence "$@"
words "$APPR"
for approach in "${WORDS[@]}"; do
    run_one "$PYTHON_BIN" spg_main.py "${SPG_ARGS[@]}" --appr "$approach"
done
