"""Preparers of the raw downloads that SPG's sequences are made of, in the layouts their authors document."""

import json
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from data import cache, safe_pickle
from data.images import RawSplit, decode_files
from data.raw_files import RawFile, signature_of
from data.tables import Table, Task, subfolders
from utils.errors import UserError
from utils.files import read_json, write_atomically

_TINY_IMAGENET = "the archive http://cs231n.stanford.edu/tiny-imagenet-200.zip, extracted"
_IMAGENET32 = "the downsampled ImageNet (32×32) of https://image-net.org/download-images, extracted"
_LEAF = (
    "https://github.com/TalwalkarLab/leaf "
    "(data/{name}; preprocess.sh -s iid --iu 0.01 --sf 1.0 {more}-t sample)"
)
_FCELEBA = _LEAF.format(name="celeba", more="-k 5 ")
_FEMNIST = _LEAF.format(name="femnist", more="-k 0 ")

# Users of CelebA that are prepared: as many as the longest sequence has tasks.
_CELEBA_USERS = 20

# What fills the cache of a table, task by task.
Build = Callable[[Table, Callable[[Task, str], RawSplit]], None]


# Tiny ImageNet


def tiny_imagenet(table: Table, root: Path, data_root: Path, build: Build) -> None:
    """Cache `train/<wnid>/images/*.JPEG` and `val/images/*.JPEG` with `val/val_annotations.txt`.

    A tree that is already reorganised is accepted too: `<split>/<wnid>/*`, with or without `images/`.
    """
    train, val = (_folder(root / split, _TINY_IMAGENET) for split in ("train", "val"))
    names = subfolders(train)
    if not names:
        raise UserError(f"{train} holds no folders <wnid>/images: it is {_TINY_IMAGENET}")
    files = {"train": {name: _images_in(train / name) for name in names}, "test": _tiny_val(val, names)}

    def raw(task: Task, split: str) -> RawSplit:
        return _raw_files(files[split][task.name], [0] * len(files[split][task.name]), table)

    build(_one_class_a_task(table, names), raw)


def _tiny_val(val: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    """The validation images of each class."""
    listing = val / "val_annotations.txt"
    if not (val / "images").is_dir():
        return {name: _images_in(_folder(val / name, _TINY_IMAGENET)) for name in names}
    if not listing.is_file():
        raise UserError(f"{listing} not found: it is in {_TINY_IMAGENET}")
    found: dict[str, list[Path]] = {name: [] for name in names}
    for number, line in enumerate(listing.read_text().splitlines(), start=1):
        file, wnid, *_ = (*line.split("\t"), "", "")
        if wnid not in found:
            raise UserError(f"{listing} line {number} names the class {wnid!r}, which train/ lacks")
        path = val / "images" / file
        if not path.is_file():
            raise UserError(f"{path} not found, but {listing.name} lists it: extract the archive again")
        found[wnid].append(path)
    lacking = [name for name, paths in found.items() if not paths]
    if lacking:
        raise UserError(f"{listing} lists no image of {lacking[0]}: extract the archive again")
    return found


def _images_in(folder: Path) -> list[Path]:
    inner = folder / "images"
    where = inner if inner.is_dir() else folder
    files = sorted(path for path in where.iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if not files:
        raise UserError(f"{where} holds no images: extract the archive again ({_TINY_IMAGENET})")
    return files


# ImageNet-32


def imagenet32(table: Table, root: Path, data_root: Path, build: Build) -> None:
    """Cache `train/train_data_batch_1…10` and `test/val_data`: one file a class.

    A batch at a time is in memory; its images are appended to a temporary file of each class.
    """
    batches = {
        "train": [root / "train" / f"train_data_batch_{number}" for number in range(1, 11)],
        "test": [root / "test" / "val_data"],
    }
    _folder(root, _IMAGENET32)
    for path in (path for paths in batches.values() for path in paths):
        if not path.is_file():
            raise UserError(f"{path} not found: it is part of {_IMAGENET32}")
    signature = signature_of([path for paths in batches.values() for path in paths], root)
    stamp = cache.folder_of(data_root, table.name) / "prepared.json"
    if stamp.exists() and read_json(stamp, remedy="delete it").get("signature") == signature:
        logging.info("%s is up to date", stamp.parent)
        return
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stamp.parent, prefix=".building-") as folder:
        found = {split: _scatter(paths, Path(folder) / split, table) for split, paths in batches.items()}
        lacking = sorted(found["train"] ^ found["test"])
        if lacking:
            raise UserError(f"{root}: label {lacking[0]} is only in one of train and test: download it again")
        names = {f"class_{label:04}": label for label in sorted(found["train"])}

        def raw(task: Task, split: str) -> RawSplit:
            def decode() -> tuple[Tensor, Tensor]:
                pixels = numpy.fromfile(Path(folder) / split / str(names[task.name]), dtype=numpy.uint8)
                images = torch.from_numpy(pixels).reshape(-1, 3, 32, 32)
                return images, torch.zeros(len(images), dtype=torch.int64)

            return RawSplit(signature, decode)

        build(_one_class_a_task(table, list(names)), raw)
    write_atomically(stamp, json.dumps({"signature": signature}) + "\n")


def _scatter(paths: Sequence[Path], folder: Path, table: Table) -> set[int]:
    """Append the images of pickled batches to a file for each label; returns the labels."""
    folder.mkdir()
    seen: set[int] = set()
    for path in paths:
        logging.info("reading %s", path)
        data, labels = _imagenet_batch(path, table)
        order = numpy.argsort(labels, kind="stable")
        bounds = numpy.flatnonzero(numpy.diff(labels[order])) + 1
        for rows in numpy.split(order, bounds):
            label = int(labels[rows[0]])
            seen.add(label)
            with (folder / str(label)).open("ab") as file:
                file.write(data[rows].tobytes())
    return seen


def _imagenet_batch(path: Path, table: Table) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Pixels uint8 (N, 3072), channels first, and labels (N,), from 1."""
    content = safe_pickle.load(path)
    remedy = f"download it again ({_IMAGENET32})"
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary: {remedy}")
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    data, labels = content.get("data"), content.get("labels")
    width = table.channels * table.size**2
    if not isinstance(data, numpy.ndarray) or data.dtype != numpy.uint8 or data.shape[1:] != (width,):
        found = f"{data.dtype} {data.shape}" if isinstance(data, numpy.ndarray) else type(data).__name__
        raise UserError(f"{path}: data is {found}, not uint8 (N, {width}): {remedy}")
    try:
        labels = numpy.asarray(labels, dtype=numpy.int64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: labels are no whole numbers ({error}): {remedy}") from error
    if not len(data):
        raise UserError(f"{path} holds no images: {remedy}")
    if labels.shape != (len(data),) or not 1 <= labels.min() <= labels.max() <= 1000:
        raise UserError(f"{path}: labels are not {len(data)} numbers from 1 to 1000: {remedy}")
    return data, labels


# The users of LEAF


def fceleba(table: Table, root: Path, data_root: Path, build: Build) -> None:
    """Cache LEAF's CelebA: image names by user in JSON, images in `raw/img_align_celeba`."""
    images = _folder(root / "raw" / "img_align_celeba", _FCELEBA)
    listings = {
        split: root / "iid" / split / f"all_data_iid_01_0_keep_5_{split}_9.json" for split in cache.SPLITS
    }
    contents = {split: _leaf(path, _FCELEBA) for split, path in listings.items()}
    users = list(contents["train"])[:_CELEBA_USERS]
    for user in users:
        if user not in contents["test"]:
            raise UserError(
                f"{listings['test']} lacks the user {user}, whom train has: run LEAF's script again"
            )

    width = len(str(_CELEBA_USERS))
    by_name = {f"user_{number:0{width}}": user for number, user in enumerate(users, start=1)}

    def raw(task: Task, split: str) -> RawSplit:
        names, labels = contents[split][by_name[task.name]]
        where = f"{listings[split]}: user {by_name[task.name]}"
        if not set(labels) <= {0, 1}:
            raise UserError(f"{where} has a label other than 0 and 1: run LEAF's script again")
        files = []
        for name in names:
            path = images / str(name)
            if not path.is_file():
                raise UserError(f"{path} not found, but {where} has it: extract img_align_celeba.zip there")
            files.append(path)
        return _raw_files(files, labels, table)

    build(_with_tasks(table, list(by_name), ("0", "1")), raw)


def femnist(table: Table, root: Path, data_root: Path, build: Build) -> None:
    """Cache LEAF's FEMNIST: a user a file, pixels in JSON. Task i comes from file i."""
    pattern = re.compile(r"all_data_(\d+)_iid_01_0_keep_0_(train|test)_9\.json")
    folders = {split: _folder(root / "raw" / split, _FEMNIST) for split in cache.SPLITS}
    files: dict[str, dict[int, Path]] = {}
    for split, folder in folders.items():
        matches = ((pattern.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
        files[split] = {int(match[1]): path for match, path in matches if match and match[2] == split}
        if not files[split]:
            expected = folder / f"all_data_0_iid_01_0_keep_0_{split}_9.json"
            raise UserError(f"{expected} not found: make it with {_FEMNIST}")
    numbers = sorted(files["train"])
    for number in numbers:
        if number not in files["test"]:
            expected = folders["test"] / f"all_data_{number}_iid_01_0_keep_0_test_9.json"
            raise UserError(f"{expected} not found, but train/ has its like: make it with {_FEMNIST}")
    width = len(str(max(numbers)))
    by_name = {f"user_{number:0{width}}": number for number in numbers}
    classes = tuple(f"{label:02}" for label in range(62))

    def raw(task: Task, split: str) -> RawSplit:
        path = files[split][by_name[task.name]]
        return RawSplit(signature_of([path], root), lambda: _femnist_images(path, table))

    build(_with_tasks(table, list(by_name), classes), raw)


def _femnist_images(path: Path, table: Table) -> tuple[Tensor, Tensor]:
    """The samples of the one user in a file."""
    users = _leaf(path, _FEMNIST)
    if len(users) != 1:
        raise UserError(f"{path} has {len(users)} users, not one: make it with {_FEMNIST}")
    ((user, (rows, labels)),) = users.items()
    try:
        pixels = numpy.asarray(rows, dtype=numpy.float32)
        answers = numpy.asarray(labels, dtype=numpy.int64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: user {user} has samples that are no numbers ({error})") from error
    if pixels.shape != (len(labels), table.size**2):
        raise UserError(f"{path}: user {user} has images that are not {table.size}×{table.size}")
    if len(answers) and not (0 <= answers.min() <= answers.max() < 62):
        raise UserError(f"{path}: user {user} has a label outside 0 to 61")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(f"{path}: user {user} has pixels outside 0 to 1")
    images = torch.from_numpy((pixels * 255).round().astype(numpy.uint8))
    return images.reshape(-1, 1, table.size, table.size), torch.from_numpy(answers)


def _leaf(path: Path, origin: str) -> dict[str, tuple[list, list]]:
    """User → (samples, labels) of a file of LEAF's.

    Raises:
        UserError: if it is missing, cut short, or a user has none or unequal numbers of samples.
    """
    content = read_json(path, remedy=f"make it with {origin}")
    users, data = content.get("users"), content.get("user_data")
    if not isinstance(users, list) or not users or not isinstance(data, dict):
        raise UserError(f"{path} has no users and user_data: make it with {origin}")
    samples: dict[str, tuple[list, list]] = {}
    for user in users:
        entry: Any = data.get(user)
        x, y = (entry.get("x"), entry.get("y")) if isinstance(entry, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list) or not x or len(x) != len(y):
            raise UserError(
                f"{path}: user {user} has no samples, or not a label for each: run LEAF's script again"
            )
        try:
            samples[user] = (x, [int(label) for label in y])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: user {user} has a label that is no number ({error})") from error
    return samples


# What they share


def _folder(path: Path, origin: str) -> Path:
    if not path.is_dir():
        raise UserError(
            f"{path} not found: put there what comes from {origin}, or give its root with --source"
        )
    return path


def _one_class_a_task(table: Table, names: Sequence[str]) -> Table:
    return replace(
        table, tasks=tuple(_task(table, number, name, (name,)) for number, name in enumerate(names, start=1))
    )


def _with_tasks(table: Table, names: Sequence[str], classes: tuple[str, ...]) -> Table:
    return replace(
        table, tasks=tuple(_task(table, number, name, classes) for number, name in enumerate(names, start=1))
    )


def _task(table: Table, number: int, name: str, classes: tuple[str, ...]) -> Task:
    return Task(id=number, name=name, classes=classes, mean=None, std=None, modality="image")


def _raw_files(paths: Sequence[Path], labels: Sequence[int], table: Table) -> RawSplit:
    files = [RawFile(str(path), label, path.read_bytes) for path, label in zip(paths, labels, strict=True)]
    return RawSplit(
        signature_of(paths, None, labels),
        lambda: decode_files(files, size=table.size, channels=table.channels),
    )


ARCHIVES = {
    "tinyimagenet": tiny_imagenet,
    "imagenet32": imagenet32,
    "fceleba": fceleba,
    "femnist": femnist,
}
