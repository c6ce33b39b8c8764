"""Print the tasks that a specification such as `4`, `1-20`, `fish,14` or `all` means, one name a line.

An architecture that is unknown, or that a later stage would refuse, is refused here, too: a stage asks
before it starts a job for each task.
"""

import argparse
from collections.abc import Sequence

from data.tables import Table, load_table
from utils import arguments, errors


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    arguments.add_files(parser)
    parser.add_argument(
        "--candidates",
        type=arguments.candidates,
        help="Only the tasks for which this leaves a candidate to be their backbone, as in stage 3-1 "
        "(default: also those without one).",
    )
    arguments.add_mutations(parser)
    parser.add_argument(
        "--transfers",
        choices=("yes", "no"),
        help="Refuse an architecture without K/V projections to transfer, as stage 3-2 across modalities "
        "does (yes), or one that has them, as the other stage 3-2 does (no) (default: refuse neither).",
    )
    args = parser.parse_args(argv)

    table = load_table(args.dataset_config, data_root=args.data_root)
    # The default is known to be there without loading PyTorch, which takes seconds.
    if args.arch != parser.get_default("arch") or arguments.given_sizes(args) or args.transfers == "yes":
        check_architecture(args, table=table)
    asked = args.candidates
    for task in table.select(args.dataset):
        if asked is None or table.candidates(asked.tasks, target=task, among=asked.among):
            print(task.name)


def check_architecture(args: argparse.Namespace, *, table: Table) -> None:
    """Refuse an unknown architecture or size, and what the later stages refuse of it, before any job."""
    from models import ARCHITECTURES

    build = arguments.asked_architecture(ARCHITECTURES, args, in_channels=table.channels, size=table.size)
    arguments.mutations(args.max_iterations, build=build)
    if args.transfers is not None:
        arguments.check_transfers(build, transfers=args.transfers == "yes")


if __name__ == "__main__":
    errors.run(main)
