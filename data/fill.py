"""Fill the cache of a table from its raw files."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from data import cache, sources, text
from data.raw_files import RawTable
from data.splits import cached_split, load_split
from data.tables import MODALITIES, Table, Task
from data.text_encoders import HASH


def fill_cache(table: Table, *, source: Path | None, data_root: Path, text_encoder: str = HASH) -> None:
    """Cache every task of `table`, skipping what is up to date.

    Logs one line per task, or shows a progress bar on a terminal.

    Args:
        source: the raw files; None looks for them below `data_root`.
        text_encoder: name of the encoder that tokenises texts.

    Raises:
        UserError: for missing or unreadable raw files.
    """
    # A source that waits for its cache to be filled cleans up when it is closed.
    with closing(sources.raw_tables(table, source, data_root)) as raw_tables:
        for raw in raw_tables:
            _fill(raw, data_root=data_root, text_encoder=text_encoder)


def _fill(raw: RawTable, *, data_root: Path, text_encoder: str) -> None:
    table = raw.table
    on_terminal = sys.stderr.isatty()
    samples: Counter[tuple[str, str]] = Counter()
    counted: Counter[str] = Counter()
    for task in _with_bar(table.tasks) if on_terminal else table.tasks:
        records = {
            split: _record(raw, task, split, data_root=data_root, text_encoder=text_encoder)
            for split in cache.SPLITS
        }
        counts = {(split, task.modality): len(record["labels"]) for split, record in records.items()}
        samples.update(counts)
        for record in records.values():
            counted.update(record.get("counts", {}))
        if not on_terminal:
            logging.info(
                "%d/%d %s: %d classes, %s",
                *(task.id, len(table.tasks), task.name, task.num_classes, _amounts(counts)),
            )
    folder = cache.folder_of(data_root, table.name)
    logging.info("%s: %d tasks, %s in %s", table.name, len(table.tasks), _amounts(samples), folder)
    if any(counted.values()):
        listed = ", ".join(f"{counted[kind]} {meaning}" for kind, meaning in text.COUNTED.items())
        logging.info("texts: %s; encoder %s", listed, text_encoder)


def _record(raw: RawTable, task: Task, split: str, *, data_root: Path, text_encoder: str) -> dict[str, Any]:
    # The cache of a borrowed task is that of the table that owns it.
    if raw.split_of is None or task.origin is not None:
        return load_split(raw.table, task, split, data_root=data_root, text_encoder=text_encoder)
    return cached_split(
        *(raw.split_of(task, split), raw.table, task, split), data_root=data_root, text_encoder=text_encoder
    )


def _amounts(counts: Mapping[tuple[str, str], int]) -> str:
    """(split, modality) → count as words: `20 training and 6 test images`."""
    return " and ".join(
        f"{counts['train', modality]} training and {counts['test', modality]} test {modality}s"
        for modality in MODALITIES
        if ("train", modality) in counts
    )


def _with_bar(tasks: Iterable[Task]) -> Iterator[Task]:
    from tqdm import tqdm

    return iter(tqdm(tasks, unit="task", leave=False))
