"""Texts from raw files: tokenised once, then read from the cache as token ids."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import cache
from data.raw_files import RawFile, class_files, incomplete_remedy
from data.tables import Table, Task
from data.text_encoders import MAX_TOKENS, TextEncoder
from utils.errors import UserError

# What is counted while texts are tokenised, in the order of a report, and how a report calls it.
COUNTED = {
    "empty": "empty and left out",
    "decoded": "not in UTF-8, decoded with replacement",
    "cut": f"cut to {MAX_TOKENS} tokens",
}


@dataclass(frozen=True)
class Text:
    """One text with its label. `name` is what a message calls it; `replaced`: not all of it was UTF-8."""

    name: str
    label: int
    content: str
    replaced: bool = False


@dataclass(frozen=True)
class RawTexts:
    """What the cache of one split of a text task is made from.

    Args:
        signature: changes whenever the raw files do.
        read: yields the texts.
        edition: which edition of the collection this is, where there are several that differ.
    """

    signature: str
    read: Callable[[], Iterable[Text]]
    edition: str = ""


def load_split(
    table: Table, task: Task, split: str, *, data_root: Path, encoder: TextEncoder
) -> dict[str, Any]:
    """One split of a text task from the cache, which is made or renewed first where raw files ask for it.

    Returns:
        A dict: `tokens` int32 (N, MAX_TOKENS) memory-mapped, 0 where padded, `labels` int64 (N,),
        `classes`, `signature`, `encoder`, `counts` (see `COUNTED`), `edition` (of the collection, or empty),
        `fingerprint` (sha256 of the content).

    Raises:
        UserError: naming the file or folder that is missing or empty, and the remedy.
    """
    table = task.origin or table
    raw = raw_texts(table, task, split, data_root=data_root)
    if raw is not None:
        return cached(raw, table, task, split, data_root=data_root, encoder=encoder)

    path = _path(table, task, split, data_root=data_root, encoder=encoder)
    if not path.exists():
        raise UserError(_missing(table, task, split, data_root=data_root, path=path))
    remedy = _remedy(table, data_root=data_root)
    record = cache.read(path, kind="text", remedy=remedy)
    if not _fits(record, task, encoder):
        raise UserError(
            f"{path} was made for other classes or by another text encoder: delete it and {remedy}"
        )
    return record


def raw_texts(table: Table, task: Task, split: str, *, data_root: Path) -> RawTexts | None:
    """The raw texts of a split; None if the cache alone can tell (see `images.raw_split`)."""
    if table.source == "docstrings":
        from data import docstrings

        return docstrings.raw_texts(task, split)
    root = Path(data_root) / table.text_root
    if table.source != "folders" or not root.is_dir():
        return None
    folder = root / split / task.folder
    if not folder.is_dir():
        raise UserError(_missing(table, task, split, data_root=data_root, path=folder))
    return folder_split(root, table, task, split)


def folder_split(root: Path, table: Table, task: Task, split: str) -> RawTexts:
    """The raw files of a split in the tree `<root>/<split>/<task>/<class>/*.txt`.

    Raises:
        UserError: if the split, the task or one of its classes is missing or holds no texts.
    """
    signature, files = class_files(root, table, task, split, what="texts", suffix=".txt")
    return RawTexts(signature, partial(texts_of, files))


def texts_of(files: Iterable[RawFile]) -> Iterable[Text]:
    """Read and decode files one by one."""
    for file in files:
        content, replaced = decode(file.read())
        yield Text(file.name, file.label, content, replaced)


def decode(content: bytes) -> tuple[str, bool]:
    """Bytes as UTF-8 (a byte-order mark is dropped), and whether anything had to be replaced."""
    try:
        return content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return content.decode("utf-8-sig", errors="replace"), True


def cached(
    raw: RawTexts, table: Table, task: Task, split: str, *, data_root: Path, encoder: TextEncoder
) -> dict[str, Any]:
    """The cache of `raw`, made first if it is absent, damaged or out of date. See `load_split`."""
    path = _path(table, task, split, data_root=data_root, encoder=encoder)

    def fits(record: dict[str, Any]) -> bool:
        return record["signature"] == raw.signature and _fits(record, task, encoder)

    def make() -> None:
        tokens, labels, counts = tokenise(raw.read(), encoder=encoder, where=f"{task.name}, {split}")
        for label, name in enumerate(task.classes):
            if not (labels == label).any():
                raise UserError(
                    f"task {task.name}, {split}: class {name} has no text that is not empty: add some"
                )
        cache.write_texts(
            path,
            tokens=tokens,
            labels=labels,
            classes=task.classes,
            signature=raw.signature,
            encoder=encoder.identity,
            counts=counts,
            edition=raw.edition,
        )

    return cache.made(path, kind="text", fits=fits, make=make)


def tokenise(
    texts: Iterable[Text], *, encoder: TextEncoder, where: str
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Tokenise texts in order; those without any token are left out.

    Args:
        where: what the report calls them.

    Returns:
        Tokens int32 (N, MAX_TOKENS), 0 where padded; labels int64 (N,); what was counted on the way,
        which is also logged.
    """
    rows, labels = [], []
    found: dict[str, list[str]] = {kind: [] for kind in COUNTED}
    for text in texts:
        ids, cut = encoder.tokenise(text.content) if text.content.strip() else ([], False)
        if text.replaced:
            found["decoded"].append(text.name)
        if not ids:
            found["empty"].append(text.name)
            continue
        if cut:
            found["cut"].append(text.name)
        rows.append(torch.tensor(ids, dtype=torch.int32))
        labels.append(text.label)
    tokens = torch.zeros(len(rows), MAX_TOKENS, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    for kind in ("empty", "decoded"):
        if found[kind]:
            logging.warning(
                "%s: %d of %d texts %s (the first: %s)",
                *(where, len(found[kind]), len(rows) + len(found["empty"]), COUNTED[kind], found[kind][0]),
            )
    counts = {kind: len(names) for kind, names in found.items()}
    return tokens, torch.tensor(labels, dtype=torch.int64), counts


def _path(table: Table, task: Task, split: str, *, data_root: Path, encoder: TextEncoder) -> Path:
    return cache.path_of(data_root, table.name, task.name, split, encoder=encoder.cache_name)


def _fits(record: dict[str, Any], task: Task, encoder: TextEncoder) -> bool:
    shape = (len(record["labels"]), MAX_TOKENS)
    same = record["encoder"] == encoder.identity and record["classes"] == list(task.classes)
    return same and tuple(record["tokens"].shape) == shape


def _missing(table: Table, task: Task, split: str, *, data_root: Path, path: Path) -> str:
    """What to say where the texts are neither in the tree nor, at `path`, in the cache."""
    if table.source == "archive":
        return f"{path} not found: {_remedy(table, data_root=data_root)}"
    folder = Path(data_root) / table.text_root / split / task.folder
    images = Path(data_root) / table.root / split / task.folder
    beside = f", but its images are there ({images})" if table.root and images.is_dir() else ""
    return f"{folder} not found{beside}: {_remedy(table, data_root=data_root)}"


def _remedy(table: Table, *, data_root: Path) -> str:
    if table.source == "archive":
        return f"run `python -m data.prepare {table.name}` (with the same --text_encoder, if one is given)"
    return incomplete_remedy(table, Path(data_root) / table.text_root, what="texts", suffix=".txt")
