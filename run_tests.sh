#!/usr/bin/env bash
# Lint and test the project; arguments go to pytest (bash run_tests.sh -k ownership).
#
# usage: bash run_tests.sh [pytest arguments]
#
# Creates .venv when missing; PYTHON=… uses that interpreter instead.
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/run_pickaback/python.sh"
source run_pickaback/jobs.sh
source run_pickaback/config.sh

setup_python dev
if [[ -n $PYTHON ]] && ! "$PYTHON_BIN" -m ruff --version >/dev/null 2>&1; then
    echo "PYTHON=$PYTHON has no ruff: the style checks are skipped"
else
    "$PYTHON_BIN" -m ruff check .
    "$PYTHON_BIN" -m ruff format --check .
fi
# One process per core, except for a debugger, which needs the terminal.
workers=()
if [[ " $* " != *" --pdb"* && " $* " != *" -n"* ]] && "$PYTHON_BIN" -c 'import xdist' 2>/dev/null; then
    workers=(-n "$(getconf _NPROCESSORS_ONLN)" --dist loadfile)
fi
"$PYTHON_BIN" -m pytest ${workers[@]+"${workers[@]}"} "$@"
