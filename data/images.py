"""Images from raw files: decoded once, then read from the cache as uint8 tensors."""

import hashlib
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from data import cache
from data.tables import Table, Task
from utils.errors import UserError
from utils.files import locked


@dataclass(frozen=True)
class RawFile:
    """One image file, in a folder or an archive. `name` is what an error message calls it."""

    name: str
    label: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class RawSplit:
    """What the cache of one split is made from.

    Args:
        signature: changes whenever the raw files do.
        decode: returns images uint8 (N, C, S, S) and labels int64 (N,).
    """

    signature: str
    decode: Callable[[], tuple[Tensor, Tensor]]


def load_split(table: Table, task: Task, split: str, *, data_root: Path) -> dict[str, Any]:
    """One split of a task from the cache, which is made or renewed first where raw files ask for it.

    Returns:
        A dict: `images` uint8 (N, C, S, S) memory-mapped, `labels` int64 (N,), `classes`, `signature`,
        `fingerprint` (sha256 of the content), `mean` and `std` of each channel in [0, 1].

    Raises:
        UserError: naming the file or folder that is missing, empty or unreadable, and the remedy.
    """
    raw = raw_split(table, task, split, data_root=data_root)
    if raw is not None:
        return cached(raw, table, task, split, data_root=data_root)

    path = cache.path_of(data_root, table.name, task.name, split)
    if not path.exists():
        raise UserError(f"{Path(data_root) / table.root / split / task.name} not found: {_remedy(table)}")
    record = cache.read(path, remedy=_remedy(table))
    if not _fits(record, table, task):
        raise UserError(f"{path} was made for other classes or another size: delete it and {_remedy(table)}")
    return record


def raw_split(table: Table, task: Task, split: str, *, data_root: Path) -> RawSplit | None:
    """The raw files of a split below `data_root`; None if the cache alone can tell.

    That is so where the table's folder is not there at all, or has a layout of its own.
    """
    if table.source == "digits":
        from data import digits

        return digits.raw_split(table, task, split)
    if table.source == "archive":
        return None
    root = Path(data_root) / table.root
    return folder_split(root, table, task, split) if root.is_dir() else None


def cached(raw: RawSplit, table: Table, task: Task, split: str, *, data_root: Path) -> dict[str, Any]:
    """The cache of `raw`, made first if it is absent, damaged or out of date. See `load_split`."""
    path = cache.path_of(data_root, table.name, task.name, split)
    record = _current(path, raw, table, task)
    if record is not None:
        return record
    with locked(path):
        # Another process may have made it while this one waited for the lock.
        record = _current(path, raw, table, task)
        if record is not None:
            return record
        images, labels = raw.decode()
        cache.write(path, images=images, labels=labels, classes=task.classes, signature=raw.signature)
    return cache.read(path, remedy="run the same command again")


def folder_split(root: Path, table: Table, task: Task, split: str) -> RawSplit:
    """The raw files of a split in the tree `<root>/<split>/<task>/<class>/*`.

    Raises:
        UserError: if the split, the task or one of its classes is missing or holds no files.
    """
    folder = root / split / task.name
    for needed in (root / split, folder, *(folder / name for name in task.classes)):
        if not needed.is_dir():
            raise UserError(f"{needed} not found: {incomplete_remedy(table, root)}")

    digest = hashlib.sha256()
    files = []
    for label, name in enumerate(task.classes):
        with os.scandir(folder / name) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        if not found:
            raise UserError(f"{folder / name} holds no images: {incomplete_remedy(table, root)}")
        for entry in found:
            status = entry.stat()
            digest.update(f"{name}/{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            files.append(RawFile(entry.path, label, Path(entry.path).read_bytes))
    return RawSplit(digest.hexdigest(), lambda: decode_files(files, size=table.size, channels=table.channels))


def incomplete_remedy(table: Table, root: Path) -> str:
    """What to do about a tree that is there but lacks something."""
    if table.download:
        return f"complete the tree, or move {root} away and run `python -m data.prepare {table.name}`"
    return f"put the images there (the tree is {root}/<split>/<task>/<class>/*)"


def decode_files(files: Sequence[RawFile], *, size: int, channels: int) -> tuple[Tensor, Tensor]:
    """Decode `files`, in order, with a few threads.

    Returns:
        Images uint8 (N, channels, size, size) and labels int64 (N,).

    Raises:
        UserError: naming the first file that is no whole image.
    """
    pixels = numpy.empty((len(files), size, size, channels), dtype=numpy.uint8)

    def decode_some(start: int) -> None:
        for index in range(start, min(start + 64, len(files))):
            content = files[index].read()
            pixels[index] = decode_image(content, name=files[index].name, size=size, channels=channels)

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        # `list` brings a thread's exception here, the earliest file's first.
        list(pool.map(decode_some, range(0, len(files), 64)))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([file.label for file in files], dtype=torch.int64)


def decode_image(content: bytes, *, name: str, size: int, channels: int) -> numpy.ndarray:
    """Decode one image file and bring it to uint8 (size, size, channels).

    Grey, palette and RGBA images are converted; another size is resized bicubically.

    Raises:
        UserError: if `content` is no image or a truncated one; `name` is in the message.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            image = _eight_bit(image).convert("RGB" if channels == 3 else "L")
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(f"{name} is no readable image ({error}): replace or delete it") from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return numpy.asarray(image).reshape(size, size, channels)


def _eight_bit(image: Any) -> Any:
    """16-bit grey as 8-bit grey; Pillow's own conversion would clip every bright pixel to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((numpy.asarray(image).astype(numpy.int64) // 256).clip(0, 255).astype(numpy.uint8))


def _current(path: Path, raw: RawSplit, table: Table, task: Task) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = cache.read(path, remedy="run the same command again")
    except UserError as error:
        logging.warning("%s; making it anew", error)
        return None
    up_to_date = record["signature"] == raw.signature and _fits(record, table, task)
    return record if up_to_date else None


def _fits(record: dict[str, Any], table: Table, task: Task) -> bool:
    shape = (table.channels, table.size, table.size)
    return tuple(record["images"].shape[1:]) == shape and record["classes"] == list(task.classes)


def _remedy(table: Table) -> str:
    if table.download or table.source == "archive":
        return f"run `python -m data.prepare {table.name}`"
    return f"put the images there (the tree is {table.root}/<split>/<task>/<class>/*)"
