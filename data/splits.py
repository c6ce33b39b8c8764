"""One split of a task: read from its cache, which is first built from the raw files if necessary."""

from pathlib import Path
from typing import Any

from data import cache, sources, text
from data.encoder_base import MAX_TOKENS, TextEncoder
from data.raw_files import RawImages, RawSplit, RawTexts
from data.sources import folders
from data.tables import Table, Task
from data.text_encoders import HASH, load_encoder
from utils.errors import UserError


def load_split(
    table: Table, task: Task, split: str, *, data_root: Path, text_encoder: str = HASH
) -> dict[str, Any]:
    """Load one split of a task from its cache, which is built first if it is missing or out of date.

    Args:
        text_encoder: name of the encoder of text tasks (`text_encoders.load_encoder`).

    Returns:
        A dict with `labels` int64 (N,), `classes`, `signature`, `fingerprint` (sha256 of the content) and,
        memory-mapped, the samples. Images: `images` uint8 (N, C, S, S), `mean` and `std` per channel in
        [0, 1]. Texts: `tokens` int32 (N, MAX_TOKENS), 0 where padded, `encoder`, `counts`
        (`text.COUNTED`), `edition` (of the collection, or empty).

    Raises:
        UserError: naming the file or folder that is missing, empty or unreadable, and the remedy.
    """
    table = task.origin or table
    raw = sources.raw_split(table, task, split, data_root=data_root)
    if raw is not None:
        return cached_split(raw, table, task, split, data_root=data_root, text_encoder=text_encoder)

    encoder = _encoder(task, text_encoder)
    path = _path(table, task, split, data_root=data_root, encoder=encoder)
    remedy = _remedy(table, task, data_root=data_root)
    if not path.exists():
        raise UserError(f"{_expected(table, task, split, data_root=data_root, path=path)}: {remedy}")
    record = cache.read(path, kind=task.modality, remedy=remedy)
    if not _fits(record, table, task, encoder):
        other = "another size" if encoder is None else "by another text encoder"
        raise UserError(f"{path} was made for other classes or {other}: delete it and {remedy}")
    return record


def cached_split(
    raw: RawSplit, table: Table, task: Task, split: str, *, data_root: Path, text_encoder: str = HASH
) -> dict[str, Any]:
    """The cache of `raw`, built first if it is missing, damaged or out of date. See `load_split`."""
    encoder = _encoder(task, text_encoder)
    path = _path(table, task, split, data_root=data_root, encoder=encoder)

    def fits(record: dict[str, Any]) -> bool:
        return record["signature"] == raw.signature and _fits(record, table, task, encoder)

    def build() -> None:
        if isinstance(raw, RawImages):
            _build_images(path, raw, task)
        else:
            _build_texts(path, raw, task, split, encoder=encoder)

    return cache.read_or_build(path, kind=task.modality, fits=fits, build=build)


def _build_images(path: Path, raw: RawImages, task: Task) -> None:
    images, labels = raw.decode()
    cache.write(path, images=images, labels=labels, classes=task.classes, signature=raw.signature)


def _build_texts(path: Path, raw: RawTexts, task: Task, split: str, *, encoder: TextEncoder) -> None:
    tokens, labels, counts = text.tokenise(raw.read(), encoder=encoder, where=f"{task.name}, {split}")
    for label, name in enumerate(task.classes):
        if not (labels == label).any():
            raise UserError(f"task {task.name}, {split}: all texts of class {name} are empty: add some")
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


def _encoder(task: Task, name: str) -> TextEncoder | None:
    return load_encoder(name) if task.modality == "text" else None


def _path(table: Table, task: Task, split: str, *, data_root: Path, encoder: TextEncoder | None) -> Path:
    suffix = "" if encoder is None else encoder.cache_name
    return cache.path_of(data_root, table.name, task.name, split, encoder=suffix)


def _fits(record: dict[str, Any], table: Table, task: Task, encoder: TextEncoder | None) -> bool:
    if record["classes"] != list(task.classes):
        return False
    if encoder is None:
        return tuple(record["images"].shape[1:]) == (table.channels, table.size, table.size)
    shape = (len(record["labels"]), MAX_TOKENS)
    return record["encoder"] == encoder.identity and tuple(record["tokens"].shape) == shape


def _expected(table: Table, task: Task, split: str, *, data_root: Path, path: Path) -> str:
    """What is missing if there are neither raw files nor the cache at `path`."""
    if table.source == "folders":
        return folders.missing(table, task, split, data_root=data_root)
    return f"{path} not found"


def _remedy(table: Table, task: Task, *, data_root: Path) -> str:
    if table.download or table.source == "archive":
        same = " (with the same --text_encoder, if one is given)" if task.modality == "text" else ""
        return f"run `python -m data.prepare {table.name}`{same}"
    return folders.put_there(table, task.modality, folders.root_of(table, task.modality, data_root))
