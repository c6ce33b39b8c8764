#!/usr/bin/env python3
"""Stages 2-1 and 3-2: train and gradually prune a task's own network, or train it on a backbone."""

import argparse
from collections.abc import Sequence

from models import ARCHITECTURES
from tools import cpg_run
from tools.task_run import run_tasks
from utils import errors


def main(argv: Sequence[str] | None = None) -> None:
    run_tasks(parse(argv), script=cpg_run.CPGRun, registry=ARCHITECTURES, layers=cpg_run.LAYERS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    return cpg_run.parse(cpg_run.parser(__doc__), argv)


if __name__ == "__main__":
    errors.run(main)
