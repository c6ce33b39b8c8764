#!/usr/bin/env bash
# SPG: learn a sequence of tasks in one network, with soft-masked gradients or a baseline approach.
#
# usage: bash run_pickaback/spg.sh [seq]
#
#   seq  sequence: digits_5 (default), cifar100_10, cifar100_20, tinyimagenet_10, tinyimagenet_20,
#        imagenet_100, fceleba_10, fceleba_20, femnist_10, femnist_20; or a .toml file of your own with a
#        task table or with sequences (FILE.toml:NAME picks one)
#
# APPR lists the approaches. Several approaches or seeds end with a table that compares them. The variables
# of SPG in run_pickaback/config.sh can also be set in the environment.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

compare() { # FLAGS…: print the table of all approaches and seeds
    local -a seeds=(${SEED_LIST[@]+"${SEED_LIST[@]}"}) arch=()
    ((${#seeds[@]})) || mapfile -t seeds < <(seq "$SEED" $((SEED + TRIALS - 1)))
    [[ -z ${FROM_ENVIRONMENT[ARCH]:-} ]] || arch=(--arch "$ARCH")
    run_one "$PYTHON_BIN" -m tools.report_spg --seq "$SEQ" --appr "${APPROACHES[@]}" --seeds "${seeds[@]}" \
        ${arch[@]+"${arch[@]}"} --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" \
        --logs_root "$LOGS_ROOT" "$@"
}

start_sequence "$@"
# What a later approach or seed would refuse is refused before the first one trains.
((${#APPROACHES[@]} * TRIALS + ${#SEED_LIST[@]} == 1)) || compare --check
# `one` is the reference for the others' forward transfer.
for approach in "${APPROACHES[@]}"; do
    [[ $approach != one ]] || run_alone one "$PYTHON_BIN" spg_main.py "${SPG_ARGS[@]}" --appr one
done
for approach in "${APPROACHES[@]}"; do
    [[ $approach == one ]] || run_alone "$approach" "$PYTHON_BIN" spg_main.py "${SPG_ARGS[@]}" --appr "$approach"
done
if [[ -z $RUN && " $EXTRA_SPG_ARGS " != *" --tune "* ]] && ((${#APPROACHES[@]} * TRIALS + ${#SEED_LIST[@]} > 1)); then
    compare
fi
name=${SEQ##*[:/]}
write_report --run "${RUN:-spg/${name%.toml}}" --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT" \
    --logs_root "$LOGS_ROOT"
