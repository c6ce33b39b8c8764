"""Raw files as folders hold them: the tree `<root>/<split>/<task>/<class>/*`."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.tables import Table, Task
from utils.errors import UserError


@dataclass(frozen=True)
class RawFile:
    """One raw file, in a folder or an archive. `name` is what an error message calls it."""

    name: str
    label: int
    read: Callable[[], bytes]


def class_files(
    root: Path, table: Table, task: Task, split: str, *, what: str, suffix: str = ""
) -> tuple[str, list[RawFile]]:
    """The files of a split, by sorted class and file name, and a signature that changes when they do.

    Args:
        what: what an error message calls the files: "images" or "texts".
        suffix: which files count; the others are passed over.

    Raises:
        UserError: if the split, the task or one of its classes is missing or holds no files.
    """
    folder = root / split / task.folder
    for needed in (root / split, folder, *(folder / name for name in task.classes)):
        if not needed.is_dir():
            raise UserError(f"{needed} not found: {incomplete_remedy(table, root, what=what, suffix=suffix)}")

    digest = hashlib.sha256()
    files = []
    for label, name in enumerate(task.classes):
        with os.scandir(folder / name) as entries:
            found = [e for e in entries if not e.name.startswith(".") and e.name.endswith(suffix)]
        if not found:
            raise UserError(
                f"{folder / name} holds no {what}: {incomplete_remedy(table, root, what=what, suffix=suffix)}"
            )
        for entry in sorted(found, key=lambda entry: entry.name):
            status = entry.stat()
            digest.update(f"{name}/{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            files.append(RawFile(entry.path, label, Path(entry.path).read_bytes))
    return digest.hexdigest(), files


def incomplete_remedy(table: Table, root: Path, *, what: str = "images", suffix: str = "") -> str:
    """What to do about a tree that is there but lacks something."""
    if table.download:
        return f"complete the tree, or move {root} away and run `python -m data.prepare {table.name}`"
    return f"put the {what} there (the tree is {root}/<split>/<task>/<class>/*{suffix})"


def signature_of(paths: Sequence[Path], root: Path | None, labels: Sequence[int] = ()) -> str:
    """A text that changes whenever one of the files does (its size or time), or its name below `root`."""
    digest = hashlib.sha256(repr(list(labels)).encode())
    for path in paths:
        status = path.stat()
        name = path.name if root is None else path.relative_to(root)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
