#!/usr/bin/env bash
# Watch what is running under the roots: task, epoch, accuracy, time left, and what stopped. Ctrl-C ends it.
#
# usage: bash run_pickaback/watch.sh [--run RUN] [--interval SECONDS] [--once]
#
# The view is live if Rich is installed and the output is a terminal; else it is plain lines.
# CHECKPOINTS_ROOT, LOGS_ROOT and PYTHON are those of the stages.
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
# shellcheck source=run_pickaback/jobs.sh
source run_pickaback/jobs.sh
absolute CHECKPOINTS_ROOT LOGS_ROOT
# shellcheck source=run_pickaback/config.sh
source run_pickaback/config.sh

setup_python base
exec "$PYTHON_BIN" -m tools.watch --checkpoints_root "$CHECKPOINTS_ROOT" --logs_root "$LOGS_ROOT" "$@"
