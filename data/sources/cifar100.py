"""CIFAR-100: the published PNG tree, or the authors' pickled batches, which are downloaded if necessary."""

import logging
import tarfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from data import cache, safe_pickle
from data.raw_files import RawImages, RawTable
from data.sources import folders
from data.tables import Table, Task
from utils.errors import UserError

# The folder, or the archive, of the pickled batches.
FOLDER = "cifar-100-python"


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
        open_file = _folder_opener(source) if source.is_dir() else _tar_opener(source, stack)
        class_names = _batch(open_file, "meta", ["fine_label_names"])["fine_label_names"]
        batches = {
            split: _batch(open_file, split, ["data", "fine_labels", "filenames"]) for split in cache.SPLITS
        }
    labels_of = {name.decode(): label for label, name in enumerate(class_names)}
    for split, batch in batches.items():
        count = len(batch["fine_labels"])
        data = batch["data"]
        shape = getattr(data, "shape", None)
        if shape != (count, 3072) or data.dtype != numpy.uint8 or len(batch["filenames"]) != count:
            raise UserError(f"{source}/{split} does not hold {count} images of 3×32×32: download it again")
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


def _batch(open_file: Callable[[str], BinaryIO], name: str, keys: Sequence[str]) -> dict[str, Any]:
    with closing(open_file(name)) as stream:
        where = getattr(stream, "name", name)
        content = safe_pickle.load(stream, name=where)
    if not isinstance(content, dict) or not all(key.encode() in content for key in keys):
        raise UserError(f"{where} lacks {', '.join(keys)}: it is not CIFAR-100's, download it again")
    return {key: content[key.encode()] for key in keys}


def _folder_opener(folder: Path) -> Callable[[str], BinaryIO]:
    def open_file(name: str) -> BinaryIO:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} not found: extract {FOLDER}.tar.gz again")
        return (folder / name).open("rb")

    return open_file


def _tar_opener(archive: Path, stack: ExitStack) -> Callable[[str], BinaryIO]:
    remedy = "delete it and download it again"
    try:
        opened = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 - the stack closes it
        members = {Path(member.name).name: member for member in opened if member.isfile()}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or not a tar archive ({error}): {remedy}") from error

    def open_file(name: str) -> BinaryIO:
        stream = opened.extractfile(members[name]) if name in members else None
        if stream is None:
            raise UserError(f"{archive}/{FOLDER}/{name} not found: {remedy}")
        return stream

    return open_file
