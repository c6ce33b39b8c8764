#!/usr/bin/env bash
# Stage 3-1b: put every target's own K/V projection into its backbone's network.
#
# usage: bash run_pickaback/transfer_kv.sh [config] [targets]
#        bash run_pickaback/transfer_kv.sh [config] --backbone TASK --target TARGETS
#
#   config             task table: digits_docs (default), cifar_newsgroups or a .toml file of yours
#   targets            names, ids or ranges: 4  1-20  fish,14  all (default)
#   --backbone TASK    this backbone (a name or an id) instead of the one that stage 3-1 chose
#   --target TARGETS   the target, with --backbone
#
# CANDIDATES says which choice of stage 3-1 counts. Every other variable is in run_pickaback/config.sh and
# can be set in the environment; ARCH is perceiver_io here unless set.
: "${CONFIG:=digits_docs}" "${ARCH:=perceiver_io}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers yes)
parse_pair "$@"
start_stage "stage 3-1b, transfer the targets' K/V projections" ${REST[@]+"${REST[@]}"}
leave_out_backbone
run_one "$PYTHON_BIN" transfer_kv_perceiver_io.py "${WRITING_ARGS[@]}" --candidates "$CANDIDATES" \
    --dataset "$(IFS=,; echo "${TASK_NAMES[*]}")" --backbone "${PAIR_BACKBONE:-from_csv}"
