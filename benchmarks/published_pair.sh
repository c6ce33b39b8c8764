#!/usr/bin/env bash
# Target 14 (non-insect_invertebrates) on the published pruned network of task 4 (food_containers,
# sparsity 0.8), at every width, for seeds 1 to 3.
#
# usage: bash benchmarks/published_pair.sh FOLDER [SEED…]
#
#   FOLDER  holds the published checkpoint-20.pth.tar: …/food_containers/gradual_prune/0.8
#
# The published run (one seed) reached 0.716, 0.740 and 0.756 at width multipliers 1.0, 1.5 and 2.0.
set -euo pipefail
(($#)) || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(realpath "$1")
shift
(($#)) || set -- 1 2 3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PRESET=published
for seed in "$@"; do
    export SEED=$seed RUN=published-pair/seed$seed
    bash run_pickaback/baseline.sh cifar100 14
    EXTRA_ARGS="--load_folder $folder" bash run_pickaback/w_backbone.sh cifar100 --backbone 4 --target 14
done
