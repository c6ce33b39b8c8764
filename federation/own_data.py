"""Give each device on this machine its own data: a copy of its task's cache and of the public probes'."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import shutil
from collections.abc import Sequence
from pathlib import Path

from data import cache
from data.splits import load_split
from data.tables import Table, Task, load_table
from pipeline import flags
from utils import logs


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_tasks(parser)
    parser.add_argument("--to", type=Path, required=True, help="Folder with one data folder per task.")
    parser.add_argument("--public_probes", help="The pool that all devices have (default: none).")
    args = parser.parse_args(argv)
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    pool = None if args.public_probes is None else table.public_pool(args.public_probes)
    for task in table.select(args.dataset):
        for copied in (task, *([pool] if isinstance(pool, Task) else [])):
            copy_cache(copied, table=table, source=args.data_root, to=args.to / task.name)


def copy_cache(task: Task, *, table: Table, source: Path, to: Path) -> None:
    """Copy a task's cache from one data folder to another; it is built first if necessary."""
    owner = (task.origin or table).name
    for split in cache.SPLITS:
        load_split(table, task, split, data_root=source)
        copy = cache.path_of(to, owner, task.name, split)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.path_of(source, owner, task.name, split), copy)


if __name__ == "__main__":
    errors.run(main)
