"""The raw layouts: one module each, listed here.

To add one, write a module with a function like `cifar100.raw_tables` and list it in `_LAYOUTS`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data.raw_files import RawSplit, RawTable
from data.sources import (
    captioned,
    cifar100,
    digits,
    docstrings,
    folders,
    imagenet32,
    leaf,
    mscoco,
    newsgroups,
    tinyimagenet,
)
from data.tables import BUNDLED, Table, Task
from utils.errors import UserError

# Yields the tables whose cache is to be filled, one after another; it resumes once that is done.
# Arguments: the table, `--source` (None: below the data folder), the data folder.
Layout = Callable[[Table, Path | None, Path], Iterator[RawTable]]

# By the name of the table; all other tables are trees of folders.
_LAYOUTS: dict[str, Layout] = {
    "cifar100": cifar100.raw_tables,
    "cifar_newsgroups": newsgroups.raw_tables,
    "oxford": captioned.raw_tables,
    "cub": captioned.raw_tables,
    "mscoco": mscoco.raw_tables,
    "tinyimagenet": tinyimagenet.raw_tables,
    "imagenet32": imagenet32.raw_tables,
    "fceleba": leaf.fceleba,
    "femnist": leaf.femnist,
}

# By `Table.source`: raw files that loading reads itself, without `python -m data.prepare`.
_FINDERS = {"folders": folders.find, "digits": digits.find, "docstrings": docstrings.find}


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """The raw files of `table`, at `source` or below `data_root`, as the table's layout reads them.

    Raises:
        UserError: if they are missing or incomplete, or if `source` is given for a table that needs none.
    """
    if table.source not in BUNDLED:
        yield from _LAYOUTS.get(table.name, folders.raw_tables)(table, source, data_root)
    elif source is None:
        yield RawTable(table)
    else:
        raise UserError(f"{table.name} comes with Python and scikit-learn: leave out --source")


def raw_split(table: Table, task: Task, split: str, *, data_root: Path) -> RawSplit | None:
    """The raw samples of one split of a task.

    None if only the cache can provide them: the table's folder is missing, or only
    `python -m data.prepare` reads its layout.

    Raises:
        UserError: if the raw files are incomplete.
    """
    find = _FINDERS.get(table.source)
    return None if find is None else find(table, task, split, data_root=data_root)
