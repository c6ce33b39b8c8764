"""What a raw layout in `data/sources` hands over to be decoded or tokenised, then cached."""

import hashlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.tables import Table, Task
from utils.errors import UserError

# Size limit of one image or text. A larger file is something else and could fill the memory.
MAX_BYTES = 1 << 28

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RawFile:
    """One raw file, in a folder or an archive. `name` identifies it in error messages."""

    name: str
    label: int
    read: Callable[[], bytes]


def raw_file(path: Path, label: int) -> RawFile:
    """The raw file at `path`. Reading it raises a `UserError` if it is a FIFO, a device or too large."""
    return RawFile(printable(str(path)), label, partial(_read, path))


def _read(path: Path) -> bytes:
    name = printable(str(path))
    # Opening a FIFO would wait forever, and a device may have no end.
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name} is not a regular file: remove it")
    check_size(status.st_size, name=name)
    return path.read_bytes()


def check_size(size: int, *, name: str) -> None:
    """Refuse a raw file of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size} bytes, at most {MAX_BYTES} are read: replace or delete it")


def printable(name: str) -> str:
    """A file's name for messages, with control characters and bytes that are not UTF-8 escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def reason(error: BaseException) -> str:
    """The beginning of an error's first line, printable; its type if it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:120]).rstrip(":") if lines else type(error).__name__


def encoded(name: str) -> bytes:
    """A file's name for hashes. It may stand for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Text:
    """One text with its label.

    Args:
        name: identifies it in messages.
        replaced: whether bytes that are not UTF-8 were replaced.
    """

    name: str
    label: int
    content: str
    replaced: bool = False


@dataclass(frozen=True)
class RawImages:
    """The raw images of one split of a task.

    Args:
        signature: changes whenever the raw files do.
        decode: returns images uint8 (N, C, S, S) and labels int64 (N,).
    """

    signature: str
    decode: "Callable[[], tuple[Tensor, Tensor]]"


@dataclass(frozen=True)
class RawTexts:
    """The raw texts of one split of a task.

    Args:
        signature: changes whenever the raw files do.
        read: yields the texts.
        edition: which edition of the collection this is, if there are several.
    """

    signature: str
    read: Callable[[], Iterable[Text]]
    edition: str = ""


RawSplit = RawImages | RawTexts


@dataclass(frozen=True)
class RawTable:
    """A table whose cache is to be filled.

    Args:
        split_of: returns the raw samples of a task and split. None: loading finds the raw files, as it
            does in a run (`data.splits.load_split`).
    """

    table: Table
    split_of: Callable[[Task, str], RawSplit] | None = None


def with_tasks(table: Table, classes: Mapping[str, Sequence[str]]) -> Table:
    """The table with one image task for each entry of `classes`, task name → class names."""
    tasks = (
        Task(number, name, tuple(names), mean=None, std=None, modality="image")
        for number, (name, names) in enumerate(classes.items(), start=1)
    )
    return replace(table, tasks=tuple(tasks))


def required_folder(path: Path, *, root: Path, origin: str) -> Path:
    """`path`, a folder of the raw files at `root`.

    Raises:
        UserError: if it does not exist. The message says that `origin` belongs at `root`.
    """
    if not path.is_dir():
        raise UserError(f"{path} not found: put {origin} at {root}, or give its folder as --source")
    return path


def signature_of(paths: Sequence[Path], root: Path | None, labels: Sequence[int] = ()) -> str:
    """A hash of the labels and of the files' names (below `root`, if given), sizes and times."""
    digest = hashlib.sha256(repr(list(labels)).encode())
    for path in paths:
        status = path.stat()
        name = path.name if root is None else path.relative_to(root)
        digest.update(encoded(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def in_test(name: str) -> bool:
    """Whether a sample of a collection without a split of its own is in the test fifth.

    Depends on the name alone, so it is the same on every machine.
    """
    return int.from_bytes(hashlib.sha256(encoded(name)).digest()[:8], "big") % 5 == 0
