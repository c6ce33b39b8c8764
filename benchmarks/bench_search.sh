#!/usr/bin/env bash
# Time the search for one target's backbone among all other tasks, start-up included.
#
# usage: bash benchmarks/bench_search.sh [config] [target]
#
# Needs stage 1 of the same run. The published code: 34.3 s (20 candidates, 100 mutations, 2 cores).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source run_pickaback/lib.sh
CONFIG=${1:-cifar100}
setup_python base
common_args
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for run in 1 2 3 4 5; do
    begun=$(date +%s.%N)
    "$PYTHON_BIN" pickaback_perceiverIO.py "${COMMON_ARGS[@]}" --target_id "${2:-14}" --max_iterations 100 \
        --threads "${THREADS:-1}" --scores chosen --overwrite --csv_path "$scratch/result.csv" 2>"$scratch/log"
    ended=$(date +%s.%N)
    echo "search $run: $(awk "BEGIN { printf \"%.2f\", $ended - $begun }") s," \
        "$(grep -c 'euc-cos' "$scratch/log") candidates; $(grep -o 'Selected.*' "$scratch/log")"
done
