"""CelebA and FEMNIST of the LEAF benchmark (Caldas et al. 2018). Each user becomes a task."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from data import cache
from data.images import raw_images_at
from data.raw_files import (
    RawImages,
    RawTable,
    printable,
    required_folder,
    signature_of,
    with_tasks,
)
from data.tables import Table, Task
from utils.errors import UserError
from utils.files import read_json

_LEAF = (
    "the output of https://github.com/TalwalkarLab/leaf "
    "(data/{name}; preprocess.sh -s iid --iu 0.01 --sf 1.0 {more}-t sample)"
)
_FCELEBA = _LEAF.format(name="celeba", more="-k 5 ")
_FEMNIST = _LEAF.format(name="femnist", more="-k 0 ")

# As many users of CelebA are prepared as the longest sequence has tasks.
_CELEBA_USERS = 20
# In characters; file systems allow 255 bytes.
_MAX_NAME_LENGTH = 200


def fceleba(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """LEAF's CelebA: file names by user in JSON, images in `raw/img_align_celeba`."""
    root = source or data_root / table.root
    images = required_folder(root / "raw" / "img_align_celeba", root=root, origin=_FCELEBA)
    listings = {
        split: root / "iid" / split / f"all_data_iid_01_0_keep_5_{split}_9.json" for split in cache.SPLITS
    }
    remedy = f"put {_FCELEBA} at {root}"
    contents = {split: _users(path, remedy=remedy) for split, path in listings.items()}
    users = list(contents["train"])[:_CELEBA_USERS]
    for user in users:
        if user not in contents["test"]:
            raise UserError(
                f"{listings['test']} lacks user {_shown(user)}, who is in train: run LEAF's script again"
            )
    width = len(str(_CELEBA_USERS))
    user_of = {f"user_{number:0{width}}": user for number, user in enumerate(users, start=1)}

    def split_of(task: Task, split: str) -> RawImages:
        names, labels = contents[split][user_of[task.name]]
        where = f"{listings[split]}: user {_shown(user_of[task.name])}"
        if not set(labels) <= {0, 1}:
            raise UserError(f"{where} has a label other than 0 and 1: run LEAF's script again")
        if not all(isinstance(name, str) and 0 < len(name) <= _MAX_NAME_LENGTH for name in names):
            raise UserError(f"{where} lists something other than file names: run LEAF's script again")
        paths = [images / name for name in names]
        for path in paths:
            if not path.is_file():
                raise UserError(
                    f"{printable(str(path))} not found, but {where} lists it: "
                    "extract img_align_celeba.zip there"
                )
        return raw_images_at(paths, labels, table=table)

    yield RawTable(with_tasks(table, dict.fromkeys(user_of, ("0", "1"))), split_of)


def femnist(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """LEAF's FEMNIST: one user per JSON file, pixels included. Task i comes from file i."""
    root = source or data_root / table.root
    pattern = re.compile(r"all_data_(\d+)_iid_01_0_keep_0_(train|test)_9\.json")
    folders = {
        split: required_folder(root / "raw" / split, root=root, origin=_FEMNIST) for split in cache.SPLITS
    }
    remedy = f"put {_FEMNIST} at {root}"
    files: dict[str, dict[int, Path]] = {}
    for split, folder in folders.items():
        matches = ((pattern.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
        files[split] = {int(match[1]): path for match, path in matches if match and match[2] == split}
        if not files[split]:
            expected = folder / f"all_data_0_iid_01_0_keep_0_{split}_9.json"
            raise UserError(f"{expected} not found: {remedy}")
    numbers = sorted(files["train"])
    for number in numbers:
        if number not in files["test"]:
            expected = folders["test"] / f"all_data_{number}_iid_01_0_keep_0_test_9.json"
            raise UserError(f"{expected} not found, but {files['train'][number]} is there: {remedy}")
    width = len(str(max(numbers)))
    number_of = {f"user_{number:0{width}}": number for number in numbers}
    classes = tuple(f"{label:02}" for label in range(62))

    def split_of(task: Task, split: str) -> RawImages:
        path = files[split][number_of[task.name]]
        return RawImages(signature_of([path], root), partial(_femnist_images, path, table, remedy=remedy))

    yield RawTable(with_tasks(table, dict.fromkeys(number_of, classes)), split_of)


def _femnist_images(path: Path, table: Table, *, remedy: str) -> tuple[Tensor, Tensor]:
    """The images uint8 (N, 1, S, S) and labels int64 (N,) of the one user in a file."""
    again = "run LEAF's script again"
    users = _users(path, remedy=remedy)
    if len(users) != 1:
        raise UserError(f"{path} has {len(users)} users instead of one: {again}")
    ((user, (rows, labels)),) = users.items()
    user = _shown(user)
    try:
        pixels = numpy.asarray(rows, dtype=numpy.float32)
        answers = numpy.asarray(labels, dtype=numpy.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: user {user} has samples that are not numbers ({error}): {again}") from error
    if pixels.shape != (len(labels), table.size**2):
        raise UserError(f"{path}: user {user} has images that are not {table.size}×{table.size}: {again}")
    if len(answers) and not (0 <= answers.min() <= answers.max() < 62):
        raise UserError(f"{path}: user {user} has a label outside 0 to 61: {again}")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(f"{path}: user {user} has pixels outside 0 to 1: {again}")
    images = torch.from_numpy((pixels * 255).round().astype(numpy.uint8))
    return images.reshape(-1, 1, table.size, table.size), torch.from_numpy(answers)


def _users(path: Path, *, remedy: str) -> dict[str, tuple[list, list]]:
    """User → (samples, labels) in one of LEAF's files.

    Raises:
        UserError: if the file is missing or truncated, or a user has no samples or not one label for each.
    """
    content = read_json(path, remedy=remedy)
    users, data = content.get("users"), content.get("user_data")
    if not isinstance(users, list) or not users or not isinstance(data, dict):
        raise UserError(f"{path} has no users and user_data: {remedy}")
    samples: dict[str, tuple[list, list]] = {}
    for user in users:
        entry: Any = data.get(user) if isinstance(user, str) else None
        x, y = (entry.get("x"), entry.get("y")) if isinstance(entry, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list) or not x or len(x) != len(y):
            raise UserError(
                f"{path}: user {_shown(user)} has no samples, or not a label for each: "
                "run LEAF's script again"
            )
        if not all(_is_whole(label) for label in y):
            raise UserError(
                f"{path}: user {_shown(user)} has a label that is not a whole number: run LEAF's script again"
            )
        samples[user] = (x, [int(label) for label in y])
    return samples


def _is_whole(label: object) -> bool:
    return type(label) is int or (type(label) is float and label.is_integer())


def _shown(user: object) -> str:
    """A user's name for messages; damaged files hold anything instead."""
    return printable(user[:80]) if isinstance(user, str) else f"of type {type(user).__name__}"
