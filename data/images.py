"""Images from raw files: decoded once, then read from the cache as uint8 tensors."""

import io
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
from data.raw_files import RawFile, class_files
from data.tables import Table, Task
from utils.errors import UserError


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
    table = task.origin or table
    raw = raw_split(table, task, split, data_root=data_root)
    if raw is not None:
        return cached(raw, table, task, split, data_root=data_root)

    path = cache.path_of(data_root, table.name, task.name, split)
    if not path.exists():
        raise UserError(f"{Path(data_root) / table.root / split / task.folder} not found: {_remedy(table)}")
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

    def fits(record: dict[str, Any]) -> bool:
        return record["signature"] == raw.signature and _fits(record, table, task)

    def make() -> None:
        images, labels = raw.decode()
        cache.write(path, images=images, labels=labels, classes=task.classes, signature=raw.signature)

    return cache.made(path, kind="image", fits=fits, make=make)


def folder_split(root: Path, table: Table, task: Task, split: str) -> RawSplit:
    """The raw files of a split in the tree `<root>/<split>/<task>/<class>/*`.

    Raises:
        UserError: if the split, the task or one of its classes is missing or holds no files.
    """
    signature, files = class_files(root, table, task, split, what="images")
    return RawSplit(signature, lambda: decode_files(files, size=table.size, channels=table.channels))


def decode_files(
    files: Sequence[RawFile], *, size: int, channels: int, prepare: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Decode `files`, in order, with a few threads.

    Args:
        prepare: applied to every Pillow image before it is resized.

    Returns:
        Images uint8 (N, channels, size, size) and labels int64 (N,).

    Raises:
        UserError: naming the first file that is no whole image.
    """
    pixels = numpy.empty((len(files), size, size, channels), dtype=numpy.uint8)

    def decode_some(start: int) -> None:
        for index in range(start, min(start + 64, len(files))):
            file = files[index]
            pixels[index] = decode_image(
                file.read(), name=file.name, size=size, channels=channels, prepare=prepare
            )

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        # `list` brings a thread's exception here, the earliest file's first.
        list(pool.map(decode_some, range(0, len(files), 64)))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([file.label for file in files], dtype=torch.int64)


def decode_image(
    content: bytes,
    *,
    name: str,
    size: int,
    channels: int,
    prepare: Callable[[Any], Any] | None = None,
) -> numpy.ndarray:
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
    if prepare is not None:
        image = prepare(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return numpy.asarray(image).reshape(size, size, channels)


def _eight_bit(image: Any) -> Any:
    """16-bit grey as 8-bit grey; Pillow's own conversion would clip every bright pixel to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((numpy.asarray(image).astype(numpy.int64) // 256).clip(0, 255).astype(numpy.uint8))


def _fits(record: dict[str, Any], table: Table, task: Task) -> bool:
    shape = (table.channels, table.size, table.size)
    return tuple(record["images"].shape[1:]) == shape and record["classes"] == list(task.classes)


def _remedy(table: Table) -> str:
    if table.download or table.source == "archive":
        return f"run `python -m data.prepare {table.name}`"
    return f"put the images there (the tree is {table.root}/<split>/<task>/<class>/*)"
