#!/usr/bin/env bash
# Lint and test the project; arguments go to pytest (bash run_tests.sh -k ownership).
#
# usage: bash run_tests.sh [pytest arguments]
#
# Makes .venv when missing; PYTHON=… uses that interpreter as it is.
source "$(dirname "${BASH_SOURCE[0]}")/run_pickaback/lib.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage; exit 0; }
setup_python dev
if [[ -n $PYTHON ]] && ! "$PYTHON_BIN" -m ruff --version >/dev/null 2>&1; then
    echo "PYTHON=$PYTHON has no ruff: the style checks are left out"
else
    "$PYTHON_BIN" -m ruff check .
    "$PYTHON_BIN" -m ruff format --check .
fi
# In the foreground, so that a debugger has the terminal.
"$PYTHON_BIN" -m pytest "$@"
