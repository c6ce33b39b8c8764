#!/usr/bin/env python3
"""Stage 1: train every task's scratch network, with PackNet's layers and masks."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from pipeline import flags, scratch
from pipeline.processes import processes_of


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with processes_of(args):
        scratch.run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_common(parser)
    flags.add_training(parser)
    flags.add_processes(parser)
    flags.add_report(parser)
    flags.add_packnet(parser)
    args = parser.parse_args(argv)
    flags.check_packnet(parser, args)
    return args


if __name__ == "__main__":
    errors.run(main, by_torchrun=True)
