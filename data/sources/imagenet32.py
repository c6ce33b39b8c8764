"""ImageNet-32 (Chrabaszcz et al. 2017), in the pickled batches of its authors. Each class becomes a task."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from data import cache, safe_pickle
from data.raw_files import RawImages, RawTable, required_folder, signature_of, with_tasks
from data.tables import Table, Task, subfolders
from utils.errors import UserError
from utils.files import read_json, write_atomically

_ORIGIN = (
    "the extracted downsampled ImageNet (32×32, train/ and test/) of https://image-net.org/download-images"
)
# A place below the data folder that is accepted beside the table's root.
_OTHER_ROOT = "imagenet32"
_NUMBERS = (int, float, numpy.integer, numpy.floating)
_BATCHES = {
    "train": tuple(f"train/train_data_batch_{number}" for number in range(1, 11)),
    "test": ("test/val_data",),
}


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """`train/train_data_batch_1…10` and `test/val_data`, images of all classes mixed.

    Without `source` they are looked for in the folder that SPG's authors use, `<data_root>/imagenet`, then
    in `<data_root>/imagenet32`. One batch at a time is in memory; its images are appended to a temporary
    file per class. Yields nothing if the cache is up to date.
    """
    root = source or _find_root(table, data_root)
    batches = {split: [root / name for name in names] for split, names in _BATCHES.items()}
    paths = [path for split in cache.SPLITS for path in batches[split]]
    required_folder(root, root=root, origin=_ORIGIN)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} not found: put {_ORIGIN} at {root}, or give its folder as --source")
    signature = signature_of(paths, root)
    stamp = cache.folder_of(data_root, table.name) / "prepared.json"
    if _is_current(stamp, signature):
        logging.info("%s is up to date", stamp.parent)
        return
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stamp.parent, prefix=".building-") as folder:
        found = {split: _scatter(batches[split], Path(folder) / split, table) for split in cache.SPLITS}
        lacking = sorted(found["train"] ^ found["test"])
        if lacking:
            raise UserError(f"{root}: label {lacking[0]} is only in one of train and test: download it again")
        labels = {f"class_{label:04}": label for label in sorted(found["train"])}

        def split_of(task: Task, split: str) -> RawImages:
            return RawImages(signature, partial(_read, Path(folder) / split / str(labels[task.name])))

        yield RawTable(with_tasks(table, {name: (name,) for name in labels}), split_of)
    write_atomically(stamp, json.dumps({"signature": signature}) + "\n")


def _is_current(stamp: Path, signature: str) -> bool:
    """Whether the cache beside `stamp` was made from these raw files and is complete and undamaged."""
    if not stamp.exists() or read_json(stamp, remedy="delete it").get("signature") != signature:
        return False
    return all(
        cache.is_intact(stamp.parent / name / f"{split}.pt")
        for name in subfolders(stamp.parent)
        for split in cache.SPLITS
    )


def _find_root(table: Table, data_root: Path) -> Path:
    """The first of the two places that holds a batch, or else exists; the table's root if neither does."""
    places = (data_root / table.root, data_root / _OTHER_ROOT)
    holding = [place for place in places if any(place.glob("train/train_data_batch_*"))]
    existing = [place for place in places if place.is_dir()]
    return (*holding, *existing, *places)[0]


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """The images uint8 (N, 3, 32, 32) of one class and their labels, all 0."""
    images = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint8)).reshape(-1, 3, 32, 32)
    return images, torch.zeros(len(images), dtype=torch.int64)


def _scatter(paths: Sequence[Path], folder: Path, table: Table) -> set[int]:
    """Append the images of pickled batches to one file per label; returns the labels."""
    folder.mkdir()
    seen: set[int] = set()
    for path in paths:
        logging.info("reading %s", path)
        data, labels = _batch(path, table)
        order = numpy.argsort(labels, kind="stable")
        bounds = numpy.flatnonzero(numpy.diff(labels[order])) + 1
        for rows in numpy.split(order, bounds):
            label = int(labels[rows[0]])
            seen.add(label)
            with (folder / str(label)).open("ab") as file:
                file.write(data[rows].tobytes())
    return seen


def _batch(path: Path, table: Table) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Pixels uint8 (N, 3072), channels first, and labels (N,), from 1."""
    content = safe_pickle.load(path)
    remedy = f"download it again ({_ORIGIN})"
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary: {remedy}")
    content = {
        key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()
    }
    data, labels = content.get("data"), content.get("labels")
    width = table.channels * table.size**2
    if not isinstance(data, numpy.ndarray) or data.dtype != numpy.uint8 or data.shape[1:] != (width,):
        found = f"{data.dtype} {data.shape}" if isinstance(data, numpy.ndarray) else type(data).__name__
        raise UserError(f"{path}: data is {found}, not uint8 (N, {width}): {remedy}")
    if not len(data):
        raise UserError(f"{path} holds no images: {remedy}")
    labels = _whole_numbers(labels)
    if labels is None or labels.shape != (len(data),) or not 1 <= labels.min() <= labels.max() <= 1000:
        raise UserError(f"{path}: labels are not {len(data)} whole numbers from 1 to 1000: {remedy}")
    return data, labels.astype(numpy.int64)


def _whole_numbers(labels: Any) -> numpy.ndarray | None:
    """Labels as an array of whole numbers of any type; None if they are something else."""
    if isinstance(labels, list) and all(isinstance(label, _NUMBERS) for label in labels):
        labels = numpy.asarray(labels)
    if not isinstance(labels, numpy.ndarray) or labels.dtype.kind not in "iuf":
        return None
    return labels if (labels == numpy.floor(labels)).all() else None
