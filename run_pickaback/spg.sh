#!/usr/bin/env bash
# SPG: learn a sequence of tasks in one network, with soft-masked gradients or a baseline approach.
#
# usage: bash run_pickaback/spg.sh [seq]
#
#   seq  sequence: digits_5 (default), cifar100_10, cifar100_20, tinyimagenet_10, tinyimagenet_20,
#        imagenet_100, fceleba_10, fceleba_20, femnist_10, femnist_20
#
# APPR lists the approaches. The variables of SPG in run_pickaback/config.sh can also be set in the
# environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_sequence "$@"
for approach in "${APPROACHES[@]}"; do
    run_one "$PYTHON_BIN" spg_main.py "${SPG_ARGS[@]}" --appr "$approach"
done
