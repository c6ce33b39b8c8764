#!/usr/bin/env python3
"""Stages 2-1 and 3-2: train and gradually prune a task's own network, or train it on a backbone.

With --total_num_tasks, instead: learn all tasks in sequence in one network.
"""

import argparse
from collections.abc import Sequence

from models import ARCHITECTURES
from tools import cpg_run, cpg_sequence
from tools.task_run import run_tasks
from utils import errors


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    work = run_tasks if args.total_num_tasks is None else cpg_sequence.learn_sequence
    work(args, script=cpg_run.CPGRun, registry=ARCHITECTURES, layers=cpg_run.LAYERS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cpg_run.parser(__doc__)
    cpg_sequence.add_flags(parser)
    args = cpg_run.parse(parser, argv)
    cpg_sequence.check(parser, args)
    return args


if __name__ == "__main__":
    errors.run(main)
