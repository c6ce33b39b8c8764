"""Tiny ImageNet, as its archive is laid out or reorganised by class. Each class becomes a task."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.images import raw_images_at
from data.raw_files import RawImages, RawTable, required_folder, with_tasks
from data.tables import Table, Task, subfolders
from utils.errors import UserError

_ORIGIN = "the extracted archive http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """`train/<wnid>/images/*.JPEG` and `val/images/*.JPEG` with `val/val_annotations.txt`.

    A reorganised tree is accepted, too: `<split>/<wnid>/*`, with or without `images/`.
    """
    root = source or data_root / table.root
    train, val = (required_folder(root / split, root=root, origin=_ORIGIN) for split in ("train", "val"))
    names = subfolders(train)
    if not names:
        raise UserError(f"{train} holds no folders <wnid>/images: put {_ORIGIN} at {root}")
    files = {
        "train": {name: _images_in(train / name) for name in names},
        "test": _validation_images(val, names, root=root),
    }

    def split_of(task: Task, split: str) -> RawImages:
        paths = files[split][task.name]
        return raw_images_at(paths, [0] * len(paths), table=table)

    yield RawTable(with_tasks(table, {name: (name,) for name in names}), split_of)


def _validation_images(val: Path, names: Sequence[str], *, root: Path) -> dict[str, list[Path]]:
    """The validation images of each class."""
    listing = val / "val_annotations.txt"
    if not (val / "images").is_dir():
        folders = {name: required_folder(val / name, root=root, origin=_ORIGIN) for name in names}
        return {name: _images_in(folder) for name, folder in folders.items()}
    if not listing.is_file():
        raise UserError(f"{listing} not found: put {_ORIGIN} at {root}")
    found: dict[str, list[Path]] = {name: [] for name in names}
    for number, line in enumerate(listing.read_text(errors="replace").splitlines(), start=1):
        file, wnid, *_ = (*line.split("\t"), "", "")
        if wnid not in found:
            raise UserError(
                f"{listing} line {number} names the class {wnid!r}, which train/ lacks: "
                "extract the archive again"
            )
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
        raise UserError(f"{where} holds no images: extract the archive again ({_ORIGIN})")
    return files
