#!/usr/bin/env bash
# All stages across modalities, from 1 to 3-2, then a table of the gains from the backbones.
#
# usage: bash run_pickaback/run_all_MM.sh [config] [tasks] [--control] [--detach]
#
#   config     task table: digits_docs (default), cifar_newsgroups or your own .toml file
#   tasks      names, ids or ranges: 4  1-20  fish,14  all (default); a single task chooses among all others,
#              whose own networks are trained, too
#   --control  also train each target on the best backbone of its own modality, on the best one of the
#              other modality, and on the latter without the K/V transfer
#   --detach   with LAUNCHER=slurm, submit all stages, each to start after the one before it, and exit
#
# Finished work is skipped, so the same command resumes a stopped run. Where two runs need the same output,
# the second waits for the first, then skips it. The variables in
# run_pickaback/config.sh can also be set in the environment; ARCH defaults to perceiver_io here.
: "${CONFIG:=digits_docs}" "${ARCH:=perceiver_io}"
export ARCH
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REFUSALS=(--transfers yes)
parse_control "$@"
start_stage "all stages across modalities, from scratch baselines to targets on their backbones" \
    ${REST[@]+"${REST[@]}"}
((KV_TRANSFER)) || die "KV_TRANSFER=0 is for w_backbone_MM.sh: unset it, and give --control to compare with it"
if ((CONTROL)); then
    ! backbone_is_a_task || die "--control chooses backbones by their modality: unset BACKBONE=$BACKBONE"
    [[ ! $CANDIDATES =~ (^|,)(same|other)(,|$) ]] || die "--control runs both same and other: remove them from CANDIDATES"
fi
settle_candidates
leave_out_backbone
run_stages "$OWN_NETWORKS" baseline wo_backbone select_pruning_ratio_of_backbone
run_stages "$TASKS" find_backbone transfer_kv w_backbone_MM
POOL=$CANDIDATES # of the table
if ((CONTROL)); then
    for among in same other; do
        export CANDIDATES=$among,$POOL
        targets=$(targets_with_candidates)
        [[ -n $targets ]] || continue
        echo "== controls: the best backbone of the $among modality"
        run_stages "$targets" find_backbone transfer_kv w_backbone_MM
        if [[ $among == other ]]; then
            echo "== controls: the best backbone of the other modality, without the K/V transfer"
            KV_TRANSFER=0 run_one bash run_pickaback/w_backbone_MM.sh "$CONFIG" "$targets"
        fi
    done
fi
report
write_report "${FILE_ARGS[@]}"
