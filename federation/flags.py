"""The flags of the server, which no stage has."""

import argparse
from collections.abc import Sequence

from pipeline import flags
from pipeline.flags import Real, Whole

SECONDS = Real(0.1, 1e7)
BYTES = Whole(1000, 1 << 40)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Which devices to expect, and how long to wait for them."""
    group = parser.add_argument_group("federation")
    group.add_argument(
        "--devices", default="all", help="Tasks whose devices are expected: names, ids, ranges or all."
    )
    group.add_argument(
        "--wait", type=SECONDS, default=600.0, help="Seconds until the devices that are there must do."
    )
    group.add_argument(
        "--deadline", type=SECONDS, default=120.0, help="Seconds within which a device must answer."
    )
    group.add_argument(
        "--choice_deadline",
        type=SECONDS,
        default=3600.0,
        help="Seconds within which a target must choose; a race trains on every candidate.",
    )
    group.add_argument(
        "--training_deadline",
        type=SECONDS,
        help="Seconds within which a target must be trained (default: as long as its device is connected).",
    )
    group.add_argument(
        "--max_bytes", type=BYTES, default=1 << 28, help="Bytes of a message that are accepted."
    )


def parse_server(argv: Sequence[str]) -> argparse.Namespace:
    """The server's flags."""
    parser = flags.parser("The server of a federation.")
    flags.add_files(parser)
    flags.add_overwrite(parser)
    add_server(parser)
    return parser.parse_args(argv)
