"""Turn raw downloads into the cache of images and texts: `python -m data.prepare cifar100 [--source PATH]`.

TABLE is a table's name or the path of a table's .toml file. Without --source the raw files are looked for
under the data folder and, for tables that can be downloaded, fetched; there, too, lies the tree from which a
table that names no tasks or classes takes them. Running it again does only what is missing or out of date.
"""

import argparse
import hashlib
import logging
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from data import cache, captioned, newsgroups, prepare_sequences, safe_pickle, text
from data.archives import open_zip, zipped_file
from data.images import RawSplit, cached, decode_files, folder_split
from data.loading import load_split
from data.tables import MODALITIES, Table, Task, known_tables, load_table
from data.text import RawTexts
from data.text_encoders import HASH, download_encoder, load_encoder
from utils import logs
from utils.errors import UserError, run
from utils.paths import default_root

# A preparer fills the cache of a table from `source` (None: where it finds the raw files itself).
Preparer = Callable[[Table, Path | None, "Filler"], None]
PREPARERS: dict[str, Preparer] = {}


def preparer(name: str) -> Callable[[Preparer], Preparer]:
    """Register the preparer of the table `name`; tables without one use `prepare_folders`."""

    def register(function: Preparer) -> Preparer:
        PREPARERS[name] = function
        return function

    return register


@dataclass(frozen=True)
class Filler:
    """Fills the cache of a table, with a line a task, or a bar on a terminal.

    Args:
        text_encoder: name of the encoder that tokenises texts.
    """

    data_root: Path
    text_encoder: str = HASH

    def from_folders(self, table: Table) -> None:
        """From where `loading.load_split` finds the raw files."""
        self._fill(table, partial(self._load, table))

    def from_raw(self, table: Table, split_of: Callable[[Task, str], RawSplit | RawTexts]) -> None:
        """From what `split_of` yields for a task and split; a task of another table is that table's."""

        def load(task: Task, split: str) -> dict[str, Any]:
            if task.origin is not None:
                return self._load(table, task, split)
            raw = split_of(task, split)
            if isinstance(raw, RawSplit):
                return cached(raw, table, task, split, data_root=self.data_root)
            encoder = load_encoder(self.text_encoder)
            return text.cached(raw, table, task, split, data_root=self.data_root, encoder=encoder)

        self._fill(table, load)

    def _load(self, table: Table, task: Task, split: str) -> dict[str, Any]:
        return load_split(table, task, split, data_root=self.data_root, text_encoder=self.text_encoder)

    def _fill(self, table: Table, load: Callable[[Task, str], dict[str, Any]]) -> None:
        on_terminal = sys.stderr.isatty()
        samples: Counter[tuple[str, str]] = Counter()
        counted: Counter[str] = Counter()
        for task in _with_bar(table.tasks) if on_terminal else table.tasks:
            records = {split: load(task, split) for split in cache.SPLITS}
            counts = {(split, task.modality): len(record["labels"]) for split, record in records.items()}
            samples.update(counts)
            for record in records.values():
                counted.update(record.get("counts", {}))
            if not on_terminal:
                logging.info(
                    "%d/%d %s: %d classes, %s",
                    *(task.id, len(table.tasks), task.name, task.num_classes, _amounts(counts)),
                )
        folder = cache.folder_of(self.data_root, table.name)
        logging.info("%s: %d tasks, %s in %s", table.name, len(table.tasks), _amounts(samples), folder)
        if any(counted.values()):
            listed = ", ".join(f"{counted[kind]} {meaning}" for kind, meaning in text.COUNTED.items())
            logging.info("texts: %s; encoder %s", listed, self.text_encoder)


def _amounts(counts: Mapping[tuple[str, str], int]) -> str:
    """(split, modality) → count as words: `20 training and 6 test images`."""
    return " and ".join(
        f"{counts['train', modality]} training and {counts['test', modality]} test {modality}s"
        for modality in MODALITIES
        if ("train", modality) in counts
    )


def prepare_folders(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from the trees `<split>/<task>/<class>/*`, in a folder or a zip file."""
    if source is not None:
        _from_tree_or_zip(table, source, fill)
        return
    tree = fill.data_root / table.root
    archive = tree.with_name(f"{tree.name}.zip")
    if tree.is_dir() or not archive.is_file():
        # Reports the missing folder by name if there is no tree either; a cache alone is fine too.
        fill.from_folders(table)
    else:
        _from_zip(table, archive, fill)


@preparer("digits")
@preparer("digits_docs")
def prepare_bundled(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from scikit-learn's digits and from the standard library's docstrings."""
    if source is not None:
        raise UserError(f"{table.name} comes with Python and scikit-learn: leave --source out")
    fill.from_folders(table)


@preparer("cifar100")
def prepare_cifar100(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from the PNG tree, its zip, CIFAR-100's own archive or folder, or a download."""
    tree, archive = fill.data_root / table.root, fill.data_root / f"{table.root}.zip"
    if source is None and (tree.is_dir() or archive.is_file()):
        prepare_folders(table, None, fill)
        return
    if source is None:
        source = _download_cifar100(fill.data_root)
    if source.is_dir() and (source / "cifar-100-python").is_dir():
        source = source / "cifar-100-python"
    is_tar = source.is_file() and source.name.endswith((".tar.gz", ".tgz", ".tar"))
    if is_tar or (source.is_dir() and (source / "meta").is_file()):
        _from_cifar_python(table, source, fill)
    else:
        _from_tree_or_zip(table, source, fill)


@preparer("cifar_newsgroups")
def prepare_cifar_newsgroups(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from CIFAR-100 and 20 Newsgroups: `source` holds both archives, or the latter."""
    _prepare_cifar_images(table, source, fill)
    with ExitStack() as stack:
        fill.from_raw(table, newsgroups.find(source, fill.data_root, stack))


def _prepare_cifar_images(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill CIFAR-100's cache for those of its tasks that `table` has, unless they are there."""
    tasks = [task for task in table.tasks if task.origin is not None]
    origin = tasks[0].origin
    part = replace(origin, tasks=tuple(replace(task, origin=None) for task in tasks))
    forms = (origin.root, f"{origin.root}.zip", "cifar-100-python", "cifar-100-python.tar.gz")
    found = [source / form for form in forms if source is not None and (source / form).exists()]
    paths = [
        cache.path_of(fill.data_root, origin.name, task.name, split)
        for task in tasks
        for split in cache.SPLITS
    ]
    if found or not all(path.exists() for path in paths):
        prepare_cifar100(part, found[0] if found else None, fill)


def _prepare_archive(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from a raw layout of its own (`data/prepare_sequences.py`)."""
    prepare = prepare_sequences.ARCHIVES[table.name]
    prepare(table, source or fill.data_root / table.root, fill.data_root, fill.from_raw)


for _name in prepare_sequences.ARCHIVES:
    preparer(_name)(_prepare_archive)


def _prepare_captioned(table: Table, source: Path | None, fill: Filler) -> None:
    """Fill the cache from pictures and their captions (`data/captioned.py`)."""
    captioned.ARCHIVES[table.name](table, source or fill.data_root / table.root, fill.from_raw)


for _name in captioned.ARCHIVES:
    preparer(_name)(_prepare_captioned)


def _from_tree_or_zip(table: Table, source: Path, fill: Filler) -> None:
    if not source.exists():
        raise UserError(f"{source} not found: give the tree's folder or zip file as --source")
    if not source.is_dir():
        _from_zip(table, source, fill)
        return

    modalities = {task.modality for task in table.tasks}
    roots = {"image": table.root, "text": table.text_root}
    names = {modality: Path(roots[modality]).name for modality in modalities}

    def below(modality: str) -> Path:
        name = names[modality]
        if name and (source / name).is_dir():
            return source / name
        beside = next(
            (other for other in names.values() if other != name and (source / other).is_dir()), None
        )
        if beside is not None:
            raise UserError(
                f"{source / name} not found, but {source / beside} is there: put the {modality}s beside it"
            )
        return source

    logging.info("reading the tree %s", source)

    def split_of(task: Task, split: str) -> RawSplit | RawTexts:
        if task.modality == "image":
            return folder_split(below("image"), table, task, split)
        return text.folder_split(below("text"), table, task, split)

    fill.from_raw(table, split_of)


def _from_zip(table: Table, archive: Path, fill: Filler) -> None:
    """Decode straight from the zip, whose files need not be extracted."""
    logging.info("reading %s", archive)
    with open_zip(archive) as opened:
        members: dict[tuple[bool, str, str, str], list[zipfile.ZipInfo]] = {}
        for member in opened.infolist():
            *_, split, task, class_name, name = ("", "", "", *member.filename.split("/"))
            if name and not name.startswith(".") and not member.filename.startswith("__MACOSX/"):
                is_text = name.endswith(".txt")
                members.setdefault((is_text, split, task, class_name), []).append(member)

        def split_of(task: Task, split: str) -> RawSplit | RawTexts:
            digest = hashlib.sha256()
            files = []
            for label, class_name in enumerate(task.classes):
                found = members.get((task.modality == "text", split, task.folder, class_name))
                if not found:
                    root = table.root if task.modality == "image" else table.text_root
                    where = f"{archive}/{root}/{split}/{task.folder}/{class_name}"
                    raise UserError(f"{where} not found: give a complete archive of {table.name}")
                for member in sorted(found, key=lambda member: member.filename):
                    digest.update(f"{member.filename}\0{member.file_size}\0{member.CRC}\n".encode())
                    files.append(zipped_file(opened, member, label))
            if task.modality == "text":
                return RawTexts(digest.hexdigest(), partial(text.texts_of, files))
            return RawSplit(
                digest.hexdigest(), lambda: decode_files(files, size=table.size, channels=table.channels)
            )

        fill.from_raw(table, split_of)


def _download_cifar100(data_root: Path) -> Path:
    """CIFAR-100's archive under `data_root`, fetched and checked by torchvision if it is not there."""
    import urllib.error

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
            "give the PNG tree, its zip or cifar-100-python with --source"
        ) from error
    return archive


def _from_cifar_python(table: Table, source: Path, fill: Filler) -> None:
    """Read CIFAR-100's pickled batches, in an extracted folder or in the archive itself."""
    logging.info("reading %s", source)
    with ExitStack() as stack:
        open_file = _folder_opener(source) if source.is_dir() else _tar_opener(source, stack)
        class_names = _cifar_batch(open_file, "meta", ["fine_label_names"])["fine_label_names"]
        batches = {
            split: _cifar_batch(open_file, split, ["data", "fine_labels", "filenames"])
            for split in cache.SPLITS
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
            f"{source} holds images of 3×32×32, but the table asks for another size: give the tree"
        )

    def split_of(task: Task, split: str) -> RawSplit:
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
        return RawSplit("cifar-100-python", lambda: (pixels, torch.tensor(labels, dtype=torch.int64)))

    fill.from_raw(table, split_of)


def _cifar_batch(open_file: Callable[[str], BinaryIO], name: str, keys: Sequence[str]) -> dict[str, Any]:
    with closing(open_file(name)) as stream:
        where = getattr(stream, "name", name)
        content = safe_pickle.load(stream, name=where)
    if not isinstance(content, dict) or not all(key.encode() in content for key in keys):
        raise UserError(f"{where} lacks {', '.join(keys)}: it is not CIFAR-100's, download it again")
    return {key: content[key.encode()] for key in keys}


def _folder_opener(folder: Path) -> Callable[[str], BinaryIO]:
    def open_file(name: str) -> BinaryIO:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} not found: extract cifar-100-python.tar.gz again")
        return (folder / name).open("rb")

    return open_file


def _tar_opener(archive: Path, stack: ExitStack) -> Callable[[str], BinaryIO]:
    remedy = "delete it and download it again"
    try:
        opened = stack.enter_context(tarfile.open(archive))  # noqa: SIM115 - the stack closes it
        members = {Path(member.name).name: member for member in opened if member.isfile()}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or no tar archive ({error}): {remedy}") from error

    def open_file(name: str) -> BinaryIO:
        stream = opened.extractfile(members[name]) if name in members else None
        if stream is None:
            raise UserError(f"{archive}/cifar-100-python/{name} not found: {remedy}")
        return stream

    return open_file


def _with_bar(tasks: Iterable[Task]) -> Iterator[Task]:
    from tqdm import tqdm

    return iter(tqdm(tasks, unit="task", leave=False))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description=__doc__,
        epilog=f"Tables: {', '.join(known_tables())}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", help="a table's name or .toml file")
    parser.add_argument(
        "--source", type=Path, help="where the raw files are (default: under the data folder)"
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        default=default_root("data"),
        help="data folder; DATA_ROOT in the environment moves it too (default: %(default)s)",
    )
    parser.add_argument(
        "--text_encoder",
        default=HASH,
        help="encoder that texts are tokenised for: hash, a model such as bert-base-uncased, or a local "
        "folder in the Hugging Face format (default: %(default)s)",
    )
    parser.add_argument(
        "--download_encoder",
        action="store_true",
        help="fetch the model that --text_encoder names from huggingface.co, once (default: no download)",
    )
    args = parser.parse_args(argv)
    logs.to_terminal()
    if args.download_encoder:
        download_encoder(args.text_encoder)

    table = load_table(args.table, data_root=args.data_root)
    prepare = PREPARERS.get(table.name, prepare_folders)
    prepare(table, args.source, Filler(args.data_root, args.text_encoder))


if __name__ == "__main__":
    run(main)
