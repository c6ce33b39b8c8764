"""Preparers of pictures with captions (Oxford Flowers, CUB, MS-COCO), from the layouts of their downloads."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.images import RawSplit, decode_files
from data.raw_files import RawFile, signature_of
from data.tables import Table, Task
from data.text import RawTexts, Text
from utils.errors import UserError
from utils.files import read_csv, read_json

# Of the draw of the test pictures where a collection has no split of its own, as in the published tables.
_SPLIT_SEED = 42
# MS-COCO's pictures are made this large first, as in the published preparation.
_COCO_SIZE = 256

# What fills the cache of a table, task by task.
Build = Callable[[Table, Callable[[Task, str], RawSplit | RawTexts]], None]


@dataclass(frozen=True)
class Picture:
    """A picture file and its captions."""

    path: Path
    captions: tuple[str, ...]


# Split, then class → its pictures, by name.
Pictures = Mapping[str, Mapping[str, Sequence[Picture]]]


def captioned(table: Table, root: Path, build: Build) -> None:
    """Cache `images/**` and `image_caption.csv` (columns image, caption, label; a line a caption).

    A fifth of each class's pictures is for testing, with their captions, drawn by scikit-learn's
    `train_test_split` with seed 42.
    """
    from sklearn.model_selection import train_test_split

    listing = root / "image_caption.csv"
    remedy = f"put the raw files of {table.name} (images/, image_caption.csv) into {root}, or give --source"
    rows = read_csv(listing, columns=("image", "caption", "label"), remedy=remedy, errors="replace")
    captions: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        captions.setdefault(row["label"], {}).setdefault(row["image"], []).append(row["caption"])

    pictures: dict[str, dict[str, list[Picture]]] = {"train": {}, "test": {}}
    for name in sorted({name for task in table.tasks for name in task.classes}):
        images = sorted(captions.get(name, ()))
        if len(images) < 2:
            raise UserError(f"{listing} has {len(images)} images of {name}, two are needed: {remedy}")
        for split, chosen in zip(
            ("train", "test"), train_test_split(images, test_size=0.2, random_state=_SPLIT_SEED), strict=True
        ):
            pictures[split][name] = [
                Picture(_picture(root / "images", image, name, listing), tuple(captions[name][image]))
                for image in sorted(chosen)
            ]
    build(table, partial(_split_of, table, pictures))


def _picture(folder: Path, image: str, label: str, listing: Path) -> Path:
    """The file that a line of the listing means: with or without its folder and its suffix."""
    names = (image, f"{image}.jpg", f"{label}/{image}", f"{label}/{image}.jpg")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / image} not found, but {listing} lists it: extract the images again")


def mscoco(table: Table, root: Path, build: Build) -> None:
    """Cache `{train,val}2017/` with `annotations/{instances,captions}_{train,val}2017.json`.

    A picture's class is that of its largest box, its text the first of its captions; val2017 is for testing.
    Pictures are padded with black to squares.
    """
    pictures = {split: _coco_pictures(root, year) for split, year in _COCO_SPLITS.items()}
    build(table, partial(_split_of, table, pictures, prepare=_squared))


_COCO_SPLITS = {"train": "train2017", "test": "val2017"}


def _coco_pictures(root: Path, name: str) -> dict[str, list[Picture]]:
    captions: dict[int, tuple[int, str]] = {}
    with _coco(root / "annotations" / f"captions_{name}.json", "annotations") as content:
        for caption in content["annotations"]:
            candidate = caption["id"], caption["caption"]
            captions[caption["image_id"]] = min(candidate, captions.get(caption["image_id"], candidate))

    instances = root / "annotations" / f"instances_{name}.json"
    pictures: dict[str, list[Picture]] = {}
    with _coco(instances, "images", "annotations", "categories") as content:
        classes = {category["id"]: category["name"] for category in content["categories"]}
        largest: dict[int, tuple[float, int]] = {}
        for box in content["annotations"]:
            _, _, width, height = box["bbox"]
            if width * height > largest.get(box["image_id"], (0.0, 0))[0]:
                largest[box["image_id"]] = width * height, box["category_id"]
        for image in sorted(content["images"], key=lambda image: image["file_name"]):
            if image["id"] in largest and image["id"] in captions:
                picture = Picture(root / name / image["file_name"], (captions[image["id"]][1],))
                pictures.setdefault(classes[largest[image["id"]][1]], []).append(picture)
    return pictures


@contextmanager
def _coco(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The content of an annotation file; what is missing in it is told by the file's name."""
    remedy = "extract MS-COCO 2017 (train2017, val2017, annotations) there, or give its folder as --source"
    content = read_json(path, remedy=remedy)
    lacking = [key for key in keys if not isinstance(content.get(key), list)]
    if lacking:
        raise UserError(f"{path} has no list {lacking[0]}: {remedy}")
    try:
        yield content
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has an entry that is incomplete or malformed ({error!r}): {remedy}"
        ) from error


def _squared(image: Any) -> Any:
    from PIL import Image, ImageOps

    side = max(image.size)
    padded = ImageOps.pad(image, (side, side), color=0)
    return padded.resize((_COCO_SIZE, _COCO_SIZE), Image.Resampling.BICUBIC)


def _split_of(
    table: Table,
    pictures: Pictures,
    task: Task,
    split: str,
    *,
    prepare: Callable[[Any], Any] | None = None,
) -> RawSplit | RawTexts:
    chosen = []
    for label, name in enumerate(task.classes):
        found = pictures[split].get(name, ())
        if not found:
            raise UserError(f"{table.name} has no {split} pictures of {name}: give the complete raw files")
        chosen += [(label, picture) for picture in found]
    if task.modality == "text":
        content = repr([(label, picture.path.name, picture.captions) for label, picture in chosen])
        return RawTexts(hashlib.sha256(content.encode()).hexdigest(), partial(_captions, chosen))

    for _, picture in chosen:
        if not picture.path.is_file():
            raise UserError(f"{picture.path} not found: extract the images of {table.name} again")
    files = [RawFile(str(picture.path), label, picture.path.read_bytes) for label, picture in chosen]
    signature = signature_of([picture.path for _, picture in chosen], None, [label for label, _ in chosen])
    return RawSplit(
        signature, lambda: decode_files(files, size=table.size, channels=table.channels, prepare=prepare)
    )


def _captions(chosen: Sequence[tuple[int, Picture]]) -> Iterator[Text]:
    for label, picture in chosen:
        for caption in picture.captions:
            yield Text(f"{picture.path}, its caption", label, caption, "\N{REPLACEMENT CHARACTER}" in caption)


ARCHIVES = {"oxford": captioned, "cub": captioned, "mscoco": mscoco}
