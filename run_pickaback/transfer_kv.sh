#!/usr/bin/env bash
# Stage 3-1b: copy each target's own K/V projection into its backbone's network.
#
# usage: bash run_pickaback/transfer_kv.sh [config] [targets]
#        bash run_pickaback/transfer_kv.sh [config] --backbone TASK --target TARGETS
#
#   config             task table: digits_docs (default), cifar_newsgroups or your own .toml file
#   targets            names, ids or ranges: 4  1-20  fish,14  all (default)
#   --backbone TASK    use this backbone (name or id) instead of the one chosen in stage 3-1
#   --target TARGETS   the targets; required with --backbone
#
# CANDIDATES selects among the choices of stage 3-1. The variables in run_pickaback/config.sh can also be
# set in the environment; ARCH defaults to perceiver_io here.
: "${CONFIG:=digits_docs}" "${ARCH:=perceiver_io}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers yes)
parse_pair "$@"
start_stage "stage 3-1b, transfer the targets' K/V projections" ${REST[@]+"${REST[@]}"}
leave_out_backbone
run_light "the transfer" "$PYTHON_BIN" transfer_kv_perceiver_io.py "${WRITING_ARGS[@]}" --candidates "$CANDIDATES" \
    ${FLEET_ARGS[@]+"${FLEET_ARGS[@]}"} --dataset "$(joined_tasks)" --backbone "${PAIR_BACKBONE:-from_csv}"
