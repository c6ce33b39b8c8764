"""Errors that a user can fix, and how a script reports them."""

import errno
import re
import signal
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A problem outside the program. The message says what, where, and what to do."""


# PyTorch raises a RuntimeError for memory, on the CPU and on CUDA.
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again; nothing finished is lost",
    errno.EDQUOT: "free some space and run the same command again; nothing finished is lost",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run the same command again",
    errno.EACCES: "make it readable and writable, or choose another folder",
    errno.EPERM: "make it readable and writable, or choose another folder",
    errno.EEXIST: "a part of this path is a file: move it away or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of this path is a file: move it away or choose another folder",
}


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, without a traceback, unless it is ignored.

    Called before a script imports PyTorch, which takes seconds. In `run`, Ctrl-C raises KeyboardInterrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def one_line(message: str) -> str:
    """A message without its line breaks: a path may contain some."""
    return message.replace("\n", "\\n").replace("\r", "\\r")


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script's `main` and end the process.

    The exit status is 0 on success, 1 with one line on standard error after a `UserError`, a failed file
    operation or a lack of memory, and 130 after Ctrl-C. (argparse exits with 2 on a usage error.)
    """
    ending = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # see end_on_interrupt
    try:
        if ending:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(None)
    except UserError as error:
        sys.exit(one_line(f"error: {error}"))
    except OSError as error:
        if error.filename is None and error.errno not in _REMEDIES:
            raise
        where = error.filename or "writing output"
        remedy = _REMEDIES.get(error.errno, "check the path and run the same command again")
        sys.exit(one_line(f"error: {where}: {error.strerror}: {remedy}"))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        sys.exit("error: out of memory: lower the batch sizes or the sizes of the network")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if ending:  # also while the interpreter shuts down
            signal.signal(signal.SIGINT, signal.SIG_DFL)
