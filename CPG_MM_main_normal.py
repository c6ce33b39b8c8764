#!/usr/bin/env python3
"""Stage 3-2 across modalities: train the target on a backbone that holds the target's own K/V projection."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from pipeline import flags, multimodal
from pipeline.processes import processes_of


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with processes_of(args):
        multimodal.run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_common(parser)
    flags.add_training(parser)
    flags.add_processes(parser)
    flags.add_report(parser)
    flags.add_cpg(parser)
    multimodal.add_flags(parser)
    args = parser.parse_args(argv)
    flags.check_multimodal(parser, args)
    return args


if __name__ == "__main__":
    errors.run(main, by_torchrun=True)
