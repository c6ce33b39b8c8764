"""Give each device on this machine its own data: a copy of its task's cache, and of nothing else."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import shutil
from collections.abc import Sequence
from pathlib import Path

from data import cache
from data.splits import load_split
from data.tables import load_table
from pipeline import flags
from utils import logs


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_tasks(parser)
    parser.add_argument("--to", type=Path, required=True, help="Folder with one data folder per task.")
    args = parser.parse_args(argv)
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    for task in table.select(args.dataset):
        owner = (task.origin or table).name
        for split in cache.SPLITS:
            load_split(table, task, split, data_root=args.data_root)  # decodes it first if necessary
            copy = cache.path_of(args.to / task.name, owner, task.name, split)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache.path_of(args.data_root, owner, task.name, split), copy)


if __name__ == "__main__":
    errors.run(main)
