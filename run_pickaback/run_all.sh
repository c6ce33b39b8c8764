#!/usr/bin/env bash
# All stages from 1 to 3-2, then a table of the gains from the backbones.
#
# usage: bash run_pickaback/run_all.sh [config] [tasks] [--control] [--detach]
#
#   config     task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks      names, ids or ranges: 4  1-20  fish,14  all (default); a single task chooses among all others,
#              whose own networks are trained, too
#   --control  also train each target without a backbone, at its final width, as a fine-tuned copy of its
#              backbone's network, and as a linear probe of it (as CONTROL=1 does, the default of digits_few)
#   --detach   with LAUNCHER=slurm, submit all stages, each to start after the one before it, and exit
#
# Finished work is skipped, so the same command resumes a stopped run. Where two runs need the same output,
# the second waits for the first, then skips it. The variables in
# run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers no)
parse_control "$@"
start_stage "all stages, from scratch baselines to targets on their backbones" ${REST[@]+"${REST[@]}"}
settle_candidates
leave_out_backbone
run_stages "$OWN_NETWORKS" baseline wo_backbone select_pruning_ratio_of_backbone
run_stages "$TASKS" find_backbone w_backbone
if ((CONTROL)); then
    echo "== controls: each target without a backbone, at its final width"
    for script in packnet_cifar100_main_normal.py CPG_cifar100_main_normal.py; do
        fan_out "$PYTHON_BIN" "$script" "${TRAINING_ARGS[@]}" --mode finetune --network_width_multiplier from_target \
            --candidates "$CANDIDATES"
    done
    for reuse in copy probe; do
        echo "== controls: $reuse of each backbone's unpruned network"
        REUSE=$reuse run_one bash run_pickaback/w_backbone.sh "$CONFIG" "$TASKS"
    done
fi
report
write_report "${FILE_ARGS[@]}"
