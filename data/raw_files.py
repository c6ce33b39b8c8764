"""What a raw layout in `data/sources` hands over to be decoded or tokenised, then cached."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.tables import Table, Task
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RawFile:
    """One raw file, in a folder or an archive. `name` identifies it in error messages."""

    name: str
    label: int
    read: Callable[[], bytes]


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
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def in_test(name: str) -> bool:
    """Whether a sample of a collection without a split of its own is in the test fifth.

    Depends on the name alone, so it is the same on every machine.
    """
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 5 == 0
