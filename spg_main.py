#!/usr/bin/env python3
"""Learn a sequence of tasks in one network with soft-masked gradients (SPG) or another approach."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import re
import sys
from collections.abc import Sequence

from pipeline import flags, spg, tuning
from pipeline.processes import processes_of


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    stage = tuning if args.tune else spg
    with processes_of(args):
        stage.run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_continual(parser)
    flags.add_processes(parser)
    spg.add_approaches(parser)
    flags.add_trials(parser)
    args = parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    flags.check_trials(parser, args)
    return args


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Accept the published spelling: turn `appr=spg` into `--appr=spg`."""
    return [f"--{word}" if re.match(r"[a-z]\w*=", word) else word for word in argv]


if __name__ == "__main__":
    errors.run(main, by_torchrun=True)
