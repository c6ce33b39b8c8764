#!/usr/bin/env python3
"""Stage 3-1: choose the backbone of every target by comparing scratch networks (ModelDiff).

Compares image tasks, and tasks of any modality with an architecture that reads several.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from pipeline import flags, search


def main(argv: Sequence[str] | None = None) -> None:
    search.run(parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_common(parser)
    search.add_flags(parser)
    args = parser.parse_args(argv)
    flags.check_search(parser, args)
    return args


if __name__ == "__main__":
    errors.run(main)
