"""Logging in the published format, to the terminal and to a file."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

# A record with this attribute repeats what a progress bar shows on a terminal.
_EPOCH = "epoch_line"


def to_terminal() -> None:
    """Log to standard error. Lines of single epochs are left out where a progress bar is shown."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in list(root.handlers):
        if getattr(handler, "of_this_project", False):
            root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.of_this_project = True
    handler.setFormatter(logging.Formatter(FORMAT))
    if sys.stderr.isatty():
        handler.addFilter(lambda record: not hasattr(record, _EPOCH))
    root.addHandler(handler)


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Log to `path` too, appending, while the context lasts."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def epoch_line(message: str) -> None:
    """Log one line of one epoch."""
    logging.info(message, extra={_EPOCH: True})


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
