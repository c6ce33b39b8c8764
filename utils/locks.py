"""Locks on files. The kernel releases them when a process dies, however it dies."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

_POLLING = 0.1  # seconds
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def holding(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is created if missing.

    Args:
        waiting: called once if another process holds the lock.

    Raises:
        UserError: if the file system has no locks.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire(poll_interval=_POLLING)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise UserError(
            f"{path.parent} is on a file system without locks ({os.strerror(error.errno)}): choose "
            "--checkpoints_root and --logs_root on another one"
        ) from error
    try:
        yield
    finally:
        lock.release()
