"""MS-COCO 2017: images with boxes and captions."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.raw_files import RawTable
from data.sources.captioned import CaptionedImage, split_of
from data.tables import Table
from utils.errors import UserError
from utils.files import read_json

_SPLITS = {"train": "train2017", "test": "val2017"}
# Images are first resized to this, as in the published preparation.
_SIZE = 256


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """`{train,val}2017/` with `annotations/{instances,captions}_{train,val}2017.json`.

    An image's class is that of its largest box, and its text is the first of its captions. The test images
    are those of val2017. Images are padded with black to squares.
    """
    root = source or data_root / table.root
    images = {split: _images(root, name) for split, name in _SPLITS.items()}
    yield RawTable(table, partial(split_of, table, images, prepare=_squared))


def _images(root: Path, name: str) -> dict[str, list[CaptionedImage]]:
    """The images of each class, by file name."""
    captions: dict[int, tuple[int, str]] = {}
    with _annotations(root / "annotations" / f"captions_{name}.json", "annotations") as content:
        for caption in content["annotations"]:
            candidate = caption["id"], caption["caption"]
            if not isinstance(candidate[1], str):
                raise TypeError("a caption is not a string")
            captions[caption["image_id"]] = min(candidate, captions.get(caption["image_id"], candidate))

    instances = root / "annotations" / f"instances_{name}.json"
    found: dict[str, list[CaptionedImage]] = {}
    with _annotations(instances, "images", "annotations", "categories") as content:
        classes = {category["id"]: category["name"] for category in content["categories"]}
        largest: dict[int, tuple[float, int]] = {}
        for box in content["annotations"]:
            _, _, width, height = box["bbox"]
            if width * height > largest.get(box["image_id"], (0.0, 0))[0]:
                largest[box["image_id"]] = width * height, box["category_id"]
        for image in sorted(content["images"], key=lambda image: image["file_name"]):
            if image["id"] in largest and image["id"] in captions:
                captioned = CaptionedImage(root / name / image["file_name"], (captions[image["id"]][1],))
                found.setdefault(classes[largest[image["id"]][1]], []).append(captioned)
    return found


@contextmanager
def _annotations(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The content of an annotation file. Errors in its entries are reported with its name."""
    remedy = "extract MS-COCO 2017 (train2017, val2017, annotations) there, or give its folder as --source"
    content = read_json(path, remedy=remedy)
    lacking = [key for key in keys if not isinstance(content.get(key), list)]
    if lacking:
        raise UserError(f"{path} has no list {lacking[0]}: {remedy}")
    try:
        yield content
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} has an entry that is incomplete or malformed ({error!r}): {remedy}"
        ) from error


def _squared(image: Any) -> Any:
    from PIL import Image, ImageOps

    side = max(image.size)
    padded = ImageOps.pad(image, (side, side), color=0)
    return padded.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
