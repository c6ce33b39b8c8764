"""Print the tasks that a specification such as `4`, `1-20`, `fish,14` or `all` selects, one name per line.

Stages run this before they start a job per task. So it also rejects what a later stage would reject: an
architecture, or the value of a variable such as EPOCHS or LR.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
from collections.abc import Sequence

from data.tables import Table, load_table
from pipeline import architectures, flags
from training.trackers import require_trackers
from utils.architecture_names import digest_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.usage = "python -m tools.list_tasks [flags]"  # all of them would bury an error in a stage
    flags.add_files(parser)
    flags.add_stage_values(parser)
    parser.add_argument(
        "--candidates",
        type=flags.candidates,
        help="Candidate backbones, as in stage 3-1: print only the tasks that have one "
        "(default: print all tasks).",
    )
    parser.add_argument(
        "--with_candidates",
        action="store_true",
        help="With --candidates: print these tasks, and their candidates (default: only the tasks).",
    )
    flags.add_mutations(parser)
    flags.add_probes(parser)
    parser.add_argument(
        "--transfers",
        choices=("yes", "no"),
        help="yes: reject an architecture without K/V projections to transfer, as multimodal stage 3-2 does; "
        "no: reject one that has them, as unimodal stage 3-2 does (default: accept both).",
    )
    args = parser.parse_args(argv)
    flags.check_sparsities(parser, args)
    flags.check_probes(parser, args)
    if args.with_candidates and args.candidates is None:
        parser.error("--with_candidates requires --candidates")
    require_trackers(args.log_to)

    table = load_table(args.dataset_config, data_root=args.data_root)
    if args.public_probes is not None:
        table.public_pool(args.public_probes)
    # The default architecture needs no check, which would load PyTorch and take seconds.
    usual = args.arch == parser.get_default("arch") and digest_of(args.arch) is None
    if not usual or flags.given_sizes(args) or args.transfers == "yes":
        check_architecture(args, table=table)
    wanted = args.candidates
    printed: list[str] = []
    for task in table.select(args.dataset):
        found = [] if wanted is None else table.candidates(wanted.tasks, target=task, among=wanted.among)
        if wanted is None or found:
            printed += [task.name, *(other.name for other in found if args.with_candidates)]
    for name in dict.fromkeys(printed):
        print(name)


def check_architecture(args: argparse.Namespace, *, table: Table) -> None:
    """Reject an architecture or size that is unknown, or that a later stage would reject."""
    build = architectures.requested_architecture(
        args, layers=architectures.SHARABLE, in_channels=table.channels, size=table.size
    )
    architectures.resolved_mutations(args.max_iterations, build=build)
    if args.transfers is not None:
        architectures.check_transfers(build, transfers=args.transfers == "yes")


if __name__ == "__main__":
    errors.run(main)
