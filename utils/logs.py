"""Logging in the published format, to the terminal and to a file."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.files import write_changed

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

_EPOCH_OF_LINE = re.compile(r" Ep\. #(\d+) ")

# A record with this attribute repeats what a progress bar shows on a terminal.
_EPOCH = "epoch_line"


def _side_by_side() -> bool:
    return os.environ.get("TASKS_SIDE_BY_SIDE") == "1"


def hide_bar() -> bool | None:
    """tqdm's `disable`: no bar where several tasks share the terminal, or where there is none."""
    return _side_by_side() or None


def to_terminal() -> None:
    """Log to standard error.

    Lines of single epochs are left to the log files where a progress bar shows them, and where several
    tasks share the terminal.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in list(root.handlers):
        if getattr(handler, "of_this_project", False):
            root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.of_this_project = True
    handler.setFormatter(logging.Formatter(FORMAT))
    if sys.stderr.isatty() or _side_by_side():
        handler.addFilter(lambda record: not hasattr(record, _EPOCH))
    root.addHandler(handler)


class _FileHandler(logging.FileHandler):
    """Fails where it cannot write, as any other output does; logging itself would print a traceback.

    Attributes:
        shared: other processes may write to the file, too.
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
    """Log to `path` too, appending, while the context lasts.

    Args:
        shared: other processes may log to it, too.

    Raises OSError with `filename` set where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(path)
    handler.shared = shared
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        # Closing would try once more to write what has failed, and hide the error that names the file.
        with suppress(OSError):
            handler.close()


def epoch_line(message: str) -> None:
    """Log one line of one epoch."""
    logging.info(message, extra={_EPOCH: True})


def forget_epochs(*, after: int) -> None:
    """Take the last epochs, those after epoch `after`, out of the log files: they will be repeated.

    A file that other processes write to stays as it is: its last epochs may be theirs.
    """
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, _FileHandler) or handler.shared:
            continue
        path = Path(handler.baseFilename)
        kept = path.read_text().splitlines(keepends=True)
        for index in reversed(range(len(kept))):
            found = _EPOCH_OF_LINE.search(kept[index])
            if found and int(found[1]) <= after:
                break
            if found:
                del kept[index]
        handler.close()  # the next line opens the file anew
        write_changed(path, "".join(kept))


def configuration(arguments: dict) -> None:
    """Log the resolved configuration of a run, one line."""
    logging.info(
        "Configuration: %s", " ".join(f"{name}={value}" for name, value in sorted(arguments.items()))
    )


def protocol(name: str) -> None:
    """Say what the run's decisions look at."""
    looked_at = {
        "published": "the test set decides growth, pruning ratio and selection, as in the published code",
        "heldout": "a tenth of the training samples decides; the test set is only reported",
    }
    logging.info("Protocol %s: %s", name, looked_at[name])
