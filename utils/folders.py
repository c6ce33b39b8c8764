"""Locks on output folders, and checks that no output replaces an input or another kind of file."""

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.locks import holding
from utils.paths import LOCK_NAME

_LOG_LINE = re.compile(rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - ", re.MULTILINE)
_BEGINNING = 1 << 16
_LOCKS = Path("/proc/locks")


@contextmanager
def alone_in(folder: Path, *, part: str = "") -> Iterator[None]:
    """Work in `folder` alone: a second process waits until the first has left it.

    So two stages that need the same output make it once: the second finds it finished. The kernel
    releases the lock when a process dies, however it dies.

    Args:
        part: work alone on this part of the folder only, which is a part of a file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{f'.{part}' if part else ''}{LOCK_NAME}"
    with holding(
        path,
        waiting=lambda: logging.info("Waiting for %s, which works in %s", _holder(path), folder),
    ):
        yield


def is_held(folder: Path) -> bool:
    """Whether a process works in `folder`."""
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that several viewers do not see one another. It is released at once.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(lock)
    return False


def _holder(lock: Path) -> str:
    """The process that holds a lock, if the kernel lists it (Linux)."""
    try:
        status = lock.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in _LOCKS.read_text().splitlines():
            fields = line.split()
            if device in fields and "->" not in fields:
                return f"process {fields[fields.index(device) - 1]}"
    except OSError:
        pass
    return "another process"


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def require_different(files: Mapping[str, Path | None]) -> None:
    """Reject two flags that name one file: writing the one would destroy the other.

    Args:
        files: flag → the file that it names; None if it is not given.

    Raises:
        UserError: naming both flags and the file.
    """
    given = [(flag, path) for flag, path in files.items() if path is not None]
    for number, (flag, path) in enumerate(given):
        for other, earlier in given[:number]:
            if same_file(path, earlier):
                raise UserError(f"{flag} {path} is also {other}: name another file")


def require_kind(path: Path | None, *, flag: str, what: str, fits: Callable[[bytes], bool]) -> None:
    """Reject an output that exists already and is another kind of file.

    Args:
        path: None or a path without a file is accepted.
        flag: names it.
        what: the kind of file, with its article.
        fits: whether the beginning of a file (64 KiB) is of that kind.

    Raises:
        UserError: naming the flag and the file.
    """
    if path is None or not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
        if not beginning or fits(beginning):
            return
    raise UserError(f"{flag} {path} exists and is not {what}: name another file")


def is_log(beginning: bytes) -> bool:
    """Whether a file that begins so is a log of this project. A line may be damaged."""
    return _LOG_LINE.search(beginning) is not None


def is_json_with(*names: str) -> Callable[[bytes], bool]:
    """A test for a JSON object that mentions all of `names` as keys near its beginning."""
    keys = [f'"{name}":'.encode() for name in names]
    return lambda beginning: beginning.lstrip().startswith(b"{") and all(key in beginning for key in keys)
