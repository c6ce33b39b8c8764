#!/usr/bin/env python3
"""Stage 3-1b: copy every target's own K/V projection to its backbone's network."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from pipeline import flags, kv_transfer


def main(argv: Sequence[str] | None = None) -> None:
    kv_transfer.run(parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    flags.add_overwrite(parser)
    flags.add_kv_transfer(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    errors.run(main)
