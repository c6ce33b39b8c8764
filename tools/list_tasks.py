"""Print the tasks that a specification such as `4`, `1-20`, `fish,14` or `all` means, one name a line.

An architecture that is unknown is refused here, too: a stage asks before it starts a job for each task.
"""

from collections.abc import Sequence

from data.tables import load_table
from utils import arguments, errors


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    arguments.add_tasks(parser)
    parser.add_argument(
        "--candidates",
        type=arguments.candidates,
        help="Only the tasks for which this leaves a candidate to be their backbone, as in stage 3-1 "
        "(default: also those without one).",
    )
    args = parser.parse_args(argv)

    if args.arch != parser.get_default("arch"):  # which is known to be there without loading PyTorch
        check_architecture(args.arch)
    table = load_table(args.dataset_config, data_root=args.data_root)
    asked = args.candidates
    for task in table.select(args.dataset):
        if asked is None or table.candidates(asked.tasks, target=task, among=asked.among):
            print(task.name)


def check_architecture(name: str) -> None:
    """Refuse an unknown architecture, once and before any job, with a list of the known ones."""
    from models import ARCHITECTURES

    arguments.resolved_sizes(ARCHITECTURES, name, {})


if __name__ == "__main__":
    errors.run(main)
