"""The tree `<root>/<split>/<task>/<class>/*`, in a folder or a zip file."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data.archives import open_zip, zipped_file
from data.images import raw_images
from data.raw_files import RawFile, RawSplit, RawTable, encoded, raw_file
from data.tables import ELSEWHERE, Table, Task, tree_in
from data.text import raw_texts
from utils.errors import UserError

# Other files in a class's folder are ignored.
_SUFFIXES = {"image": "", "text": ".txt"}

# The files of a zip, by (whether it is a text, split, task's folder, class).
_Members = dict[tuple[bool, str, str, str], list[zipfile.ZipInfo]]


def find(table: Table, task: Task, split: str, *, data_root: Path) -> RawSplit | None:
    """The raw files of a split below `data_root`; None if the table's folder does not exist.

    Raises:
        UserError: if the folder lacks the split, the task or one of its classes.
    """
    root = root_of(table, task.modality, data_root)
    if not root.is_dir():
        return None
    if task.modality == "text" and not (root / split / task.folder).is_dir():
        absent = missing(table, task, split, data_root=data_root)
        raise UserError(f"{absent}: {_remedy(table, task.modality, root)}")
    return from_tree(root, table, task, split)


def root_of(table: Table, modality: str, data_root: Path) -> Path:
    """The folder of a table's raw images or raw texts."""
    return Path(data_root) / (table.root if modality == "image" else table.text_root)


def missing(table: Table, task: Task, split: str, *, data_root: Path) -> str:
    """Say that a task's folder is missing, and whether its images are there while its texts are not."""
    folder = root_of(table, task.modality, data_root) / split / task.folder
    images = root_of(table, "image", data_root) / split / task.folder
    if task.modality == "text" and table.root and images.is_dir():
        return f"{folder} not found, but its images are there ({images})"
    return f"{folder} not found"


def put_there(table: Table, modality: str, root: Path) -> str:
    """Tell the user where the raw files of a table belong."""
    tree = f"{root}/<split>/<task>/<class>/*{_SUFFIXES[modality]}"
    return f"put the {modality}s there (the tree is {tree}), or {ELSEWHERE}"


def from_tree(root: Path, table: Table, task: Task, split: str, *, remedy: str | None = None) -> RawSplit:
    """The raw files of a split in the tree at `root`, by sorted class and file name.

    Args:
        remedy: what to do about an incomplete tree; None: what applies to the table's own folder.

    Raises:
        UserError: if the split, the task or one of its classes is missing or holds no files.
    """
    remedy = remedy or _remedy(table, task.modality, root)
    folder = root / split / task.folder
    for needed in (root / split, folder, *(folder / name for name in task.classes)):
        if not needed.is_dir():
            raise UserError(f"{needed} not found: {remedy}")

    suffix = _SUFFIXES[task.modality]
    digest = hashlib.sha256()
    files = []
    for label, name in enumerate(task.classes):
        with os.scandir(folder / name) as entries:
            found = [e for e in entries if not e.name.startswith(".") and e.name.endswith(suffix)]
        if not found:
            raise UserError(f"{folder / name} holds no {task.modality}s: {remedy}")
        for entry in sorted(found, key=lambda entry: entry.name):
            status = entry.stat()
            digest.update(encoded(f"{name}/{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
            files.append(raw_file(Path(entry.path), label))
    return _raw_split(files, table, task, signature=digest.hexdigest())


def _raw_split(files: list[RawFile], table: Table, task: Task, *, signature: str) -> RawSplit:
    if task.modality == "text":
        return raw_texts(files, signature=signature)
    return raw_images(files, table=table, signature=signature)


def _remedy(table: Table, modality: str, root: Path) -> str:
    """What to do about a tree that exists but is incomplete."""
    if table.download:
        return f"complete the tree, or move {root} away and run `python -m data.prepare {table.name}`"
    return put_there(table, modality, root)


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """The trees or the zip file at `source`, or below `data_root` where the table expects them.

    Raises:
        UserError: if `source` is missing or incomplete.
    """
    if source is not None:
        yield from tree_or_zip(table, source)
        return
    tree = data_root / table.root
    archive = tree.with_name(f"{tree.name}.zip")
    if tree.is_dir() or not archive.is_file():
        # Without a tree, loading uses the cache or reports the missing folder.
        yield RawTable(table)
    else:
        yield from _from_zip(table, archive)


def tree_or_zip(table: Table, source: Path) -> Iterator[RawTable]:
    """The trees in the folder `source`, or the tree in the zip file `source`."""
    if not source.exists():
        raise UserError(f"{source} not found: give the tree's folder or zip file as --source")
    if not source.is_dir():
        yield from _from_zip(table, source)
        return
    logging.info("reading the tree %s", source)
    modalities = {task.modality for task in table.tasks}
    names = {modality: root_of(table, modality, Path()).name for modality in modalities}

    def split_of(task: Task, split: str) -> RawSplit:
        tree = _tree_below(source, task.modality, names)
        remedy = "complete the tree, or give another folder as --source"
        return from_tree(tree, table, task, split, remedy=remedy)

    yield RawTable(table, split_of)


def _tree_below(source: Path, modality: str, names: dict[str, str]) -> Path:
    """The tree of one modality: a folder in `source` with the name that the table gives it, or `source`."""
    name = names[modality]
    tree = tree_in(source, name)
    if tree != source:
        return tree
    beside = next((other for other in names.values() if other != name and (source / other).is_dir()), None)
    if beside is not None:
        raise UserError(
            f"{source / name} not found, but {source / beside} is there: put the {modality}s beside it"
        )
    return source


def _from_zip(table: Table, archive: Path) -> Iterator[RawTable]:
    """Decode straight from the zip file, without extracting it."""
    logging.info("reading %s", archive)
    with open_zip(archive) as opened:
        members: _Members = {}
        for member in opened.infolist():
            *_, split, task, class_name, name = ("", "", "", *member.filename.split("/"))
            if name and not name.startswith(".") and not member.filename.startswith("__MACOSX/"):
                is_text = name.endswith(".txt")
                members.setdefault((is_text, split, task, class_name), []).append(member)
        yield RawTable(table, partial(_split_of_zip, opened, members, table))


def _split_of_zip(
    archive: zipfile.ZipFile, members: _Members, table: Table, task: Task, split: str
) -> RawSplit:
    digest = hashlib.sha256()
    files = []
    for label, class_name in enumerate(task.classes):
        found = members.get((task.modality == "text", split, task.folder, class_name))
        if not found:
            where = root_of(table, task.modality, Path(archive.filename)) / split / task.folder / class_name
            raise UserError(f"{where} not found: give a complete archive of {table.name}")
        for member in sorted(found, key=lambda member: member.filename):
            digest.update(encoded(f"{member.filename}\0{member.file_size}\0{member.CRC}\n"))
            files.append(zipped_file(archive, member, label))
    return _raw_split(files, table, task, signature=digest.hexdigest())
