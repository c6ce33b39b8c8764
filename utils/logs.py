"""Logging in the published format, to the terminal and to files."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import as_shown
from utils.files import write_changed

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

# In bytes: a log may hold some that are not UTF-8.
_EPOCH_OF_LINE = re.compile(rb" Ep\. #(\d{1,9}) ")

# Begins the last line of a log whose run ended with an error.
STOPPED = "Stopped: "

# Marks records that repeat what a progress bar shows on a terminal.
_EPOCH = "epoch_line"


class _Formatter(logging.Formatter):
    """A record is one line, whatever its message names, in the words of the caller."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        return as_shown(super().format(record))


def _side_by_side() -> bool:
    return os.environ.get("TASKS_SIDE_BY_SIDE") == "1"


def hide_bar() -> bool | None:
    """tqdm's `disable`: True hides the bar where tasks share a terminal; None hides it only without one."""
    return _side_by_side() or None


def to_terminal() -> None:
    """Log to standard error.

    Lines about a single epoch are left out (log files still get them) if a progress bar shows the same, or
    if several tasks share the terminal.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in list(root.handlers):
        if getattr(handler, "of_this_project", False):
            root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.of_this_project = True
    handler.setFormatter(_Formatter())
    if sys.stderr.isatty() or _side_by_side():
        handler.addFilter(lambda record: not hasattr(record, _EPOCH))
    root.addHandler(handler)


class _FileHandler(logging.FileHandler):
    """A file handler that raises an error if it cannot write; logging's own prints a traceback.

    Attributes:
        shared: whether other processes write to the file, too.
    """

    shared = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        raise OSError(error.errno, error.strerror, self.baseFilename) from error


@contextmanager
def to_file(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Also append the log to `path` within the context, and the error that ends it.

    Args:
        shared: whether other processes log to it, too.

    Raises:
        OSError: if the file cannot be written, with its `filename`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(path)
    handler.shared = shared
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        # To the file alone: the script's last line says it on the terminal.
        with suppress(OSError):
            handler.handle(_error_record(error))
        raise
    finally:
        root.removeHandler(handler)
        # Closing retries a failed write, and would hide the error that names the file.
        with suppress(OSError):
            handler.close()


def _error_record(error: Exception) -> logging.LogRecord:
    message = " ".join(str(error).split()) or type(error).__name__
    return logging.getLogger().makeRecord("root", logging.ERROR, "", 0, STOPPED + "%s", (message,), None)


def epoch_line(message: str) -> None:
    """Log a line about a single epoch."""
    logging.info(message, extra={_EPOCH: True})


def forget_epochs(*, after: int) -> None:
    """Remove the lines of epochs later than `after` from the end of the log files: they will be repeated.

    Files that other processes write to are left alone: their last epochs may belong to another process.
    """
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, _FileHandler) or handler.shared:
            continue
        path = Path(handler.baseFilename)
        kept = path.read_bytes().splitlines(keepends=True)
        for index in reversed(range(len(kept))):
            found = _EPOCH_OF_LINE.search(kept[index])
            if found and int(found[1]) <= after:
                break
            if found:
                del kept[index]
        handler.close()  # the next record reopens the file
        write_changed(path, b"".join(kept))


def configuration(changed: dict) -> None:
    """Log in one line which arguments of a run differ from their defaults."""
    listed = " ".join(f"{name}={value}" for name, value in sorted(changed.items()))
    logging.info("Configuration: %s", f"{listed} (the others are the defaults)" if listed else "the defaults")


def protocol(name: str) -> None:
    """Log which samples the run's decisions are based on."""
    basis = {
        "published": "the test set decides growth, pruning ratio and selection, as in the published code",
        "heldout": "a tenth of the training samples decides; the test set is only reported",
    }
    logging.info("Protocol %s: %s", name, basis[name])
