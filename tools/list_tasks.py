"""Print the tasks that a specification such as `4`, `1-20`, `fish,14` or `all` means, one name a line."""

from collections.abc import Sequence
from pathlib import Path

from data.tables import load_table
from utils import arguments, errors
from utils.paths import default_root


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--dataset_config", default="digits", help="Task table: a name, or a TOML file with one table."
    )
    parser.add_argument(
        "--dataset", default="all", help="Tasks: a name, an id, a list (fish,14), a range (1-20) or all."
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        default=default_root("data"),
        help="Folder of data; DATA_ROOT in the environment moves it too.",
    )
    parser.add_argument(
        "--candidates",
        type=arguments.candidates,
        help="Only the tasks for which this leaves a candidate to be their backbone, as in stage 3-1 "
        "(default: also those without one).",
    )
    args = parser.parse_args(argv)

    table = load_table(args.dataset_config, data_root=args.data_root)
    asked = args.candidates
    for task in table.select(args.dataset):
        if asked is None or table.candidates(asked.tasks, target=task, among=asked.among):
            print(task.name)


if __name__ == "__main__":
    errors.run(main)
