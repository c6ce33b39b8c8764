"""Images with captions in one listing (Oxford Flowers, CUB-200)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.images import raw_images_at
from data.raw_files import RawSplit, RawTable, RawTexts, Text
from data.tables import Table, Task
from utils.errors import UserError
from utils.files import read_csv

# Seed of the test split, which these collections lack. That of the published tables.
_SPLIT_SEED = 42


@dataclass(frozen=True)
class CaptionedImage:
    """An image file and its captions."""

    path: Path
    captions: tuple[str, ...]


# Split → class → its images, by name.
_Images = Mapping[str, Mapping[str, Sequence[CaptionedImage]]]


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """`images/**` and `image_caption.csv` (columns image, caption, label; one line per caption).

    A fifth of each class's images, with their captions, is for testing: scikit-learn's `train_test_split`
    with seed 42.
    """
    from sklearn.model_selection import train_test_split

    root = source or data_root / table.root
    listing = root / "image_caption.csv"
    remedy = f"put the raw files of {table.name} (images/, image_caption.csv) into {root}, or give --source"
    rows = read_csv(listing, columns=("image", "caption", "label"), remedy=remedy, errors="replace")
    captions: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        captions.setdefault(row["label"], {}).setdefault(row["image"], []).append(row["caption"])

    found: dict[str, dict[str, list[CaptionedImage]]] = {"train": {}, "test": {}}
    for name in sorted({name for task in table.tasks for name in task.classes}):
        images = sorted(captions.get(name, ()))
        if len(images) < 2:
            raise UserError(
                f"{listing} lists {len(images)} images of {name}, at least 2 are needed: {remedy}"
            )
        train, test = train_test_split(images, test_size=0.2, random_state=_SPLIT_SEED)
        for split, chosen in (("train", train), ("test", test)):
            found[split][name] = [
                CaptionedImage(_path_of(root / "images", image, name, listing), tuple(captions[name][image]))
                for image in sorted(chosen)
            ]
    yield RawTable(table, partial(split_of, table, found))


def _path_of(folder: Path, image: str, label: str, listing: Path) -> Path:
    """The file that a line of the listing names, with or without its folder and its suffix."""
    names = (image, f"{image}.jpg", f"{label}/{image}", f"{label}/{image}.jpg")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / image} not found, but {listing} lists it: extract the images again")


def split_of(
    table: Table,
    images: _Images,
    task: Task,
    split: str,
    *,
    prepare: Callable[[Any], Any] | None = None,
) -> RawSplit:
    """The images, or for a text task the captions, of one split of a task.

    Args:
        prepare: applied to every Pillow image before it is resized.

    Raises:
        UserError: for a class without images, or a missing image.
    """
    chosen = []
    for label, name in enumerate(task.classes):
        found = images[split].get(name, ())
        if not found:
            raise UserError(f"{table.name} has no {split} images of {name}: give the complete raw files")
        chosen += [(label, image) for image in found]
    if task.modality == "text":
        content = repr([(label, image.path.name, image.captions) for label, image in chosen])
        return RawTexts(hashlib.sha256(content.encode()).hexdigest(), partial(_captions, chosen))

    labels, paths = [label for label, _ in chosen], [image.path for _, image in chosen]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} not found: extract the images of {table.name} again")
    return raw_images_at(paths, labels, table=table, prepare=prepare)


def _captions(chosen: Sequence[tuple[int, CaptionedImage]]) -> Iterator[Text]:
    for label, image in chosen:
        for caption in image.captions:
            replaced = "\N{REPLACEMENT CHARACTER}" in caption
            yield Text(f"the caption of {image.path}", label, caption, replaced)
