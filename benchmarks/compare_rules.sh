#!/usr/bin/env bash
# Compare the rules for choosing a backbone: each target at width 1.0 on the backbone that each rule picks.
#
# usage: bash benchmarks/compare_rules.sh [config] [targets]
#
# Needs stages 1 to 2-2 of the same run. Ends with a table: mean and standard error over targets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=${1:-cifar100} targets=${2:-all}
folder=$(realpath -m "${LOGS_ROOT:-logs}")/compare_rules/$config-seed${SEED:-1}
files=()
for rule in farthest nearest random; do
    file=$folder/$rule.csv
    files+=("$rule=$file")
    BACKBONE=$rule EXTRA_SEARCH_ARGS="--csv_path $file" bash run_pickaback/find_backbone.sh "$config" "$targets"
    MAX_WIDTH=1.0 EXTRA_ARGS="--csv_path $file" bash run_pickaback/w_backbone.sh "$config" "$targets"
done
source run_pickaback/lib.sh
setup_python base
TASKS=$targets CONFIG=$config
common_args
"$PYTHON_BIN" -m benchmarks.compare_rules "${FILE_ARGS[@]}" --dataset "$targets" --picks "${files[@]}"
