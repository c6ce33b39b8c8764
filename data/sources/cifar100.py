"""CIFAR-100: the published PNG tree, or the authors' pickled batches, which are downloaded if necessary."""

import io
import logging
import tarfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import torch

from data import cache, safe_pickle
from data.archives import DAMAGED
from data.raw_files import RawImages, RawTable, reason
from data.sources import folders
from data.tables import Table, Task
from utils.errors import UserError

# The folder, or the archive, of the pickled batches.
FOLDER = "cifar-100-python"

_CLASSES = 100
_AGAIN = "download it again"

# The largest of the files has 154 MB. A compressed archive can hold far more than its own size.
_MAX_BYTES = 1 << 30

# Returns the content of one of the three files, by its name.
_Read = Callable[[str], bytes]


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """The PNG tree, its zip file, or CIFAR-100's own archive or folder.

    Without `source` the tree or its zip file is looked for below `data_root`; failing that, the archive
    is downloaded there.
    """
    tree, archive = data_root / table.root, data_root / f"{table.root}.zip"
    if source is None and (tree.is_dir() or archive.is_file()):
        yield from folders.raw_tables(table, None, data_root)
        return
    if source is None:
        source = _download(data_root)
    if source.is_dir() and (source / FOLDER).is_dir():
        source = source / FOLDER
    is_tar = source.is_file() and source.name.endswith((".tar.gz", ".tgz", ".tar"))
    if is_tar or (source.is_dir() and (source / "meta").is_file()):
        yield _from_batches(table, source)
    else:
        yield from folders.tree_or_zip(table, source)


def _download(data_root: Path) -> Path:
    """CIFAR-100's archive under `data_root`, downloaded by torchvision if it is missing or damaged."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity, download_url

    archive = data_root / CIFAR100.filename
    if check_integrity(str(archive), CIFAR100.tgz_md5):
        return archive
    logging.info("downloading %s", CIFAR100.url)
    try:
        download_url(CIFAR100.url, str(data_root), CIFAR100.filename, CIFAR100.tgz_md5)
    except (urllib.error.URLError, RuntimeError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"{archive} could not be downloaded from {CIFAR100.url} ({error}): "
            f"give the PNG tree, its zip or {FOLDER} with --source"
        ) from error
    return archive


def _from_batches(table: Table, source: Path) -> RawTable:
    """Read the pickled batches, in an extracted folder or in the archive itself."""
    logging.info("reading %s", source)
    with ExitStack() as stack:
        read = _folder_reader(source) if source.is_dir() else _tar_reader(source, stack)
        meta = _content(read, "meta", source)
        batches = {split: _batch(read, split, source) for split in cache.SPLITS}
    class_names = _names(meta, "fine_label_names", where=f"{source}/meta")
    labels_of = {name: label for label, name in enumerate(class_names)}
    if (table.channels, table.size) != (3, 32):
        raise UserError(
            f"{source} holds images of 3×32×32, but table {table.name} needs "
            f"{table.channels}×{table.size}×{table.size}: give the PNG tree as --source"
        )

    def split_of(task: Task, split: str) -> RawImages:
        batch = batches[split]
        fine = numpy.asarray(batch["fine_labels"])
        rows, labels = [], []
        for label, name in enumerate(task.classes):
            of_class = numpy.flatnonzero(fine == labels_of[name]) if name in labels_of else ()
            if not len(of_class):
                raise UserError(f"{source}/{split} has no images of {name}: it is not CIFAR-100's")
            # In the order of the tree's sorted file names.
            rows += sorted(of_class, key=lambda row: batch["filenames"][row])
            labels += [label] * len(of_class)
        pixels = torch.from_numpy(batch["data"][rows]).reshape(-1, 3, 32, 32)
        return RawImages(FOLDER, lambda: (pixels, torch.tensor(labels, dtype=torch.int64)))

    return RawTable(table, split_of)


def _batch(read: _Read, name: str, source: Path) -> dict[str, Any]:
    """The checked pixels uint8 (N, 3072), labels and file names of one split."""
    content = _content(read, name, source)
    data, labels = content.get("data"), content.get("fine_labels")
    where = f"{source}/{name}"
    files = _names(content, "filenames", where=where)
    if isinstance(labels, numpy.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(isinstance(label, int | numpy.integer) for label in labels):
        raise UserError(f"{where} has no list of numbers fine_labels: it is not CIFAR-100's, {_AGAIN}")
    if not all(0 <= label < _CLASSES for label in labels):
        raise UserError(f"{where} has a label outside 0 to {_CLASSES - 1}: {_AGAIN}")
    count = len(labels)
    shape = (data.shape, data.dtype) if isinstance(data, numpy.ndarray) else None
    if shape != ((count, 3072), numpy.uint8) or len(files) != count:
        raise UserError(f"{where} does not hold {count} images of 3×32×32 with their names: {_AGAIN}")
    return {"data": data, "fine_labels": labels, "filenames": files}


def _names(content: dict[str, Any], key: str, *, where: str) -> list[str]:
    values = content.get(key)
    if not isinstance(values, list) or not all(isinstance(value, bytes | str) for value in values):
        raise UserError(f"{where} has no list of names {key}: it is not CIFAR-100's, {_AGAIN}")
    return [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]


def _content(read: _Read, name: str, source: Path) -> dict[str, Any]:
    content = safe_pickle.load(io.BytesIO(read(name)), name=f"{source}/{name}")
    if not isinstance(content, dict):
        raise UserError(f"{source}/{name} holds no dictionary: it is not CIFAR-100's, {_AGAIN}")
    return {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _folder_reader(folder: Path) -> _Read:
    def read(name: str) -> bytes:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} not found: extract {FOLDER}.tar.gz again")
        return (folder / name).read_bytes()

    return read


def _tar_reader(archive: Path, stack: ExitStack) -> _Read:
    remedy = f"delete it and {_AGAIN}"
    try:
        opened = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 - the stack closes it
        members = {Path(member.name).name: member for member in opened if member.isreg()}
    except PermissionError:
        raise
    except (tarfile.TarError, *DAMAGED) as error:
        raise UserError(f"{archive} is truncated or not a tar archive ({reason(error)}): {remedy}") from error

    def read(name: str) -> bytes:
        if name not in members:
            raise UserError(f"{archive}/{FOLDER}/{name} not found: {remedy}")
        if members[name].size > _MAX_BYTES:
            raise UserError(f"{archive}/{FOLDER}/{name} has {members[name].size} bytes: {remedy}")
        try:
            with opened.extractfile(members[name]) as stream:
                return stream.read()
        except (tarfile.TarError, *DAMAGED) as error:
            raise UserError(
                f"{archive}/{FOLDER}/{name} cannot be read ({reason(error)}): {remedy}"
            ) from error

    return read
