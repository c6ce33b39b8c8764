#!/usr/bin/env bash
# Stage 3-2 across modalities: train each target, with its own K/V projection, on its backbone.
#
# usage: bash run_pickaback/w_backbone_MM.sh [config] [targets]
#        bash run_pickaback/w_backbone_MM.sh [config] --backbone TASK --target TARGETS
#
#   config             task table: digits_docs (default), cifar_newsgroups or your own .toml file
#   targets            names, ids or ranges: 4  1-20  fish,14  all (default)
#   --backbone TASK    use this backbone (name or id) instead of the one chosen in stage 3-1; all: every one of
#                      CANDIDATES in turn
#   --target TARGETS   the targets; required with --backbone
#
# CANDIDATES selects among the choices of stage 3-1; KV_TRANSFER=0 skips the transfer (a control). The
# variables in run_pickaback/config.sh can also be set in the environment; ARCH defaults to perceiver_io
# here.
: "${CONFIG:=digits_docs}" "${ARCH:=perceiver_io}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers yes)
parse_pair "$@"
start_stage "stage 3-2, train each target on its backbone across modalities" ${REST[@]+"${REST[@]}"}
leave_out_backbone
transfer=()
((KV_TRANSFER)) || transfer+=(--no_kv_transfer)
fan_out "$PYTHON_BIN" CPG_MM_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune --candidates "$CANDIDATES" \
    --backbone "${PAIR_BACKBONE:-from_csv}" --max_allowed_network_width_multiplier "$MAX_WIDTH" --freed "$FREED" \
    ${FLEET_ARGS[@]+"${FLEET_ARGS[@]}"} \
    ${transfer[@]+"${transfer[@]}"}
report_alone
