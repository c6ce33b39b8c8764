#!/usr/bin/env bash
# Stage 3-2 across modalities: train every target, with its own K/V projection, on its backbone.
#
# usage: bash run_pickaback/w_backbone_MM.sh [config] [targets]
#        bash run_pickaback/w_backbone_MM.sh [config] --backbone TASK --target TARGETS
#
#   config             task table: digits_docs (default), cifar_newsgroups or a .toml file of yours
#   targets            names, ids or ranges: 4  1-20  fish,14  all (default)
#   --backbone TASK    this backbone (a name or an id) instead of the one that stage 3-1 chose
#   --target TARGETS   the target, with --backbone
#
# CANDIDATES says which choice of stage 3-1 counts; KV_TRANSFER=0 leaves the transfer out. Every other
# variable is in run_pickaback/config.sh and can be set in the environment; ARCH is perceiver_io here
# unless set.
: "${CONFIG:=digits_docs}" "${ARCH:=perceiver_io}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers yes)
parse_pair "$@"
start_stage "stage 3-2, train every target on its backbone across modalities" ${REST[@]+"${REST[@]}"}
leave_out_backbone
transfer=()
((KV_TRANSFER)) || transfer+=(--no_kv_transfer)
fan_out "$PYTHON_BIN" CPG_MM_main_normal.py "${TRAINING_ARGS[@]}" --mode finetune --candidates "$CANDIDATES" \
    --backbone "${PAIR_BACKBONE:-from_csv}" --max_allowed_network_width_multiplier "$MAX_WIDTH" \
    ${transfer[@]+"${transfer[@]}"}
