#!/usr/bin/env bash
# Stage 3-1: choose the task whose network becomes the backbone, per target.
#
# usage: bash run_pickaback/find_backbone.sh [config] [targets]
#
#   config   task table: digits_few (default), digits, cifar100 or your own .toml file
#   targets  names, ids or ranges: 4  1-20  fish,14  all (default)
#
# BACKBONE is a rule (farthest, nearest, random, or one of those in docs/rules.md) or a task. The variables in
# run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_stage "stage 3-1, choose a backbone for each target" "$@"
choice=(--select "$BACKBONE")
if backbone_is_a_task; then
    choice=(--backbone "$BACKBONE")
    leave_out "$BACKBONE"
elif [[ $BACKBONE == race ]]; then
    choice+=(--batch_size "$BATCH_SIZE" --lr "$LR" --freed "$FREED")
fi
words "$EXTRA_SEARCH_ARGS"
fan_out "$PYTHON_BIN" pickaback_perceiverIO.py "${COMMON_ARGS[@]}" "${choice[@]}" --candidates "$CANDIDATES" \
    ${FLEET_ARGS[@]+"${FLEET_ARGS[@]}"} \
    ${SEARCH_ARGS[@]+"${SEARCH_ARGS[@]}"} ${WORDS[@]+"${WORDS[@]}"}
