#!/usr/bin/env bash
# Stage 3-2: train each target on its backbone; the network grows if it is too small.
#
# usage: bash run_pickaback/w_backbone.sh [config] [targets]
#        bash run_pickaback/w_backbone.sh [config] --backbone TASK --target TARGETS
#
#   config             task table: digits_few (default), digits, cifar100 or your own .toml file
#   targets            names, ids or ranges: 4  1-20  fish,14  all (default)
#   --backbone TASK    use this backbone (name or id) instead of the one chosen in stage 3-1; all: every one of
#                      CANDIDATES in turn
#   --target TARGETS   the targets; required with --backbone
#
# REUSE=copy and REUSE=probe run controls on the backbone. The variables in run_pickaback/config.sh can also be
# set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers no)
parse_pair "$@"
start_stage "stage 3-2, train each target on its backbone" ${REST[@]+"${REST[@]}"}
leave_out_backbone
fan_out "$PYTHON_BIN" CPG_cifar100_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune --reuse "$REUSE" \
    --candidates "$CANDIDATES" --backbone "${PAIR_BACKBONE:-from_csv}" \
    --max_allowed_network_width_multiplier "$MAX_WIDTH" --freed "$FREED" \
    ${FLEET_ARGS[@]+"${FLEET_ARGS[@]}"}
report_alone
