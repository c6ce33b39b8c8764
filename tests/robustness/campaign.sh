#!/usr/bin/env bash
# Try for hours what may go wrong: kills, hostile inputs, fuzzed and damaged files, odd surroundings.
#
# usage: bash tests/robustness/campaign.sh HOURS [folder] [arguments of the campaign]
#
#   HOURS   time for all parts; damaged files and odd surroundings are tried to the end regardless
#   folder  where results and working copies go (default: /tmp/campaign); the same folder continues
#
# The results are a line of JSON per attempt, in results.jsonl; the table that sums them up is printed at the
# end. `--part kills --count 100 --seed 2` runs one part, `--table` prints the table only. PYTHON=… uses
# another interpreter than .venv's.
if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$0"
    exit $(($# == 0 ? 2 : 0))
fi
hours=$1 folder=$(realpath -m "${2:-/tmp/campaign}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
# A fork copies a process of one thread only.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
exec "${PYTHON:-.venv/bin/python}" -m tests.robustness.campaign "$folder" --hours "$hours" "${@:3}"
