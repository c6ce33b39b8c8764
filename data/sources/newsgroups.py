"""20 Newsgroups: posts stripped of what names their group, from either of two editions."""

import hashlib
import logging
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from data import cache
from data.archives import open_zip, zipped_file
from data.raw_files import RawFile, RawTable, RawTexts, Text, encoded, in_test, raw_file
from data.sources import cifar100
from data.tables import Table, Task
from utils.errors import UserError

# Folder or zip file that holds every post as <group>/<number>.
ARCHIVE = "20_newsgroups"

# Increment when the stripped posts or the split change.
_VERSION = 1

_ARCHIVE_EDITION = (
    "20 Newsgroups, the archive of 19997 posts; a fifth, by a hash of <group>/<number>, is for testing"
)
_SKLEARN_EDITION = (
    "20 Newsgroups, scikit-learn's edition with its own split by date: results are not comparable with "
    "those on the archive"
)

# Returns the posts of one split of a task, whose classes are groups.
SplitOf = Callable[[Task, str], RawTexts]

# Group and label → its posts: <group>/<number>, a stamp that changes with the content, the file.
_Posts = Callable[[str, int], list[tuple[str, str, RawFile]]]


def raw_tables(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """CIFAR-100's tasks of `table` unless they are cached, then its own, from 20 Newsgroups.

    Args:
        source: a folder with both archives, or 20 Newsgroups alone.
    """
    yield from _images(table, source, data_root)
    with ExitStack() as stack:
        yield RawTable(table, find(source, data_root, stack))


def _images(table: Table, source: Path | None, data_root: Path) -> Iterator[RawTable]:
    """CIFAR-100, reduced to the tasks that `table` borrows; nothing if they are cached."""
    tasks = [task for task in table.tasks if task.origin is not None]
    origin = tasks[0].origin
    borrowed = replace(origin, tasks=tuple(replace(task, origin=None) for task in tasks))
    names = (origin.root, f"{origin.root}.zip", cifar100.FOLDER, f"{cifar100.FOLDER}.tar.gz")
    found = [source / name for name in names if source is not None and (source / name).exists()]
    paths = [
        cache.path_of(data_root, origin.name, task.name, split) for task in tasks for split in cache.SPLITS
    ]
    if found or not all(path.exists() for path in paths):
        yield from cifar100.raw_tables(borrowed, found[0] if found else None, data_root)


def find(source: Path | None, data_root: Path, stack: ExitStack) -> SplitOf:
    """The available edition: the archive, in `source` or `data_root`, or else scikit-learn's download.

    Args:
        source: a folder that holds the archive (zip or extracted), or the archive itself.
        stack: closes what is opened.

    Raises:
        UserError: if `source` is given, but is not the archive and does not hold it.
    """
    where = source or data_root
    for folder in (where / ARCHIVE, where):
        if folder.is_dir() and folder.name == ARCHIVE:
            logging.info("reading %s", folder)
            return partial(_archive_split, partial(_extracted, folder))
    archive = where / f"{ARCHIVE}.zip" if where.is_dir() else where
    if archive.is_file():
        logging.info("reading %s", archive)
        return partial(_archive_split, _zipped(archive, stack))
    if source is not None:
        raise UserError(
            f"{source} holds neither {ARCHIVE}.zip nor a folder {ARCHIVE}: give the folder that holds one"
        )
    logging.info("%s not found: using scikit-learn's download", archive)
    return partial(_sklearn_split, data_root)


def strip(post: str) -> str:
    """A post without headers, footers and quotes, as scikit-learn's `remove` strips them."""
    from sklearn.datasets import _twenty_newsgroups as newsgroups

    post = newsgroups.strip_newsgroup_header(post)
    post = newsgroups.strip_newsgroup_footer(post)
    return newsgroups.strip_newsgroup_quoting(post)


def _archive_split(posts_of: _Posts, task: Task, split: str) -> RawTexts:
    digest = hashlib.sha256()
    files = []
    for label, group in enumerate(task.classes):
        for name, stamp, file in posts_of(group, label):
            digest.update(encoded(f"{name}\0{stamp}\n"))
            if in_test(name) == (split == "test"):
                files.append(file)
    signature = f"20 newsgroups, version {_VERSION}, {digest.hexdigest()}"
    return RawTexts(signature, partial(_stripped, files), edition=_ARCHIVE_EDITION)


def _stripped(files: Iterable[RawFile]) -> Iterator[Text]:
    for file in files:
        # scikit-learn's encoding, in which every byte is a valid character.
        yield Text(file.name, file.label, strip(file.read().decode("latin-1")))


def _extracted(folder: Path, group: str, label: int) -> list[tuple[str, str, RawFile]]:
    where = folder / group
    if not where.is_dir():
        raise UserError(f"{where} not found: give the complete 20 Newsgroups archive")
    posts = []
    for path in sorted(path for path in where.iterdir() if not path.name.startswith(".")):
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        posts.append((f"{group}/{path.name}", stamp, raw_file(path, label)))
    return posts


def _zipped(archive: Path, stack: ExitStack) -> _Posts:
    opened = stack.enter_context(open_zip(archive))
    groups: dict[str, list] = {}
    for member in sorted(opened.infolist(), key=lambda member: member.filename):
        *_, group, number = ("", *member.filename.split("/"))
        if number and not number.startswith("."):
            groups.setdefault(group, []).append((f"{group}/{number}", f"{member.CRC}", member))

    def posts_of(group: str, label: int) -> list[tuple[str, str, RawFile]]:
        if group not in groups:
            raise UserError(f"{archive}/{ARCHIVE}/{group} not found: give the complete 20 Newsgroups archive")
        return [(name, stamp, zipped_file(opened, member, label)) for name, stamp, member in groups[group]]

    return posts_of


def _sklearn_split(data_root: Path, task: Task, split: str) -> RawTexts:
    signature = f"20 newsgroups of scikit-learn, version {_VERSION}"
    return RawTexts(signature, partial(_fetched, data_root, task, split), edition=_SKLEARN_EDITION)


def _fetched(data_root: Path, task: Task, split: str) -> Iterator[Text]:
    from sklearn.datasets import fetch_20newsgroups

    try:
        bunch = fetch_20newsgroups(
            data_home=str(data_root),
            subset=split,
            categories=list(task.classes),
            shuffle=False,
            remove=("headers", "footers", "quotes"),
        )
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"scikit-learn could not download 20 Newsgroups ({error}): put {ARCHIVE}.zip into "
            f"{data_root}, or give its folder as --source"
        ) from error
    # Its labels index the sorted categories, as a task's index its sorted classes.
    for name, label, post in zip(bunch.filenames, bunch.target, bunch.data, strict=True):
        yield Text(str(name), int(label), post)
