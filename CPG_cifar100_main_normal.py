#!/usr/bin/env python3
"""Stages 2-1 and 3-2: train and gradually prune a task's own network, or train it on a backbone.

With --total_num_tasks, learn all tasks in sequence in one network instead.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from pipeline import controls, cpg, cpg_sequence, flags
from pipeline.processes import processes_of


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with processes_of(args):
        if args.total_num_tasks is not None:
            cpg_sequence.run(args)
        elif args.reuse in controls.STAGES:
            controls.run(args)
        else:
            cpg.run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_common(parser)
    flags.add_training(parser)
    flags.add_processes(parser)
    flags.add_report(parser)
    flags.add_cpg(parser)
    flags.add_in_sequence(parser)
    args = parser.parse_args(argv)
    flags.check_cpg(parser, args)
    flags.check_in_sequence(parser, args)
    return args


if __name__ == "__main__":
    errors.run(main, by_torchrun=True)
