"""Errors that a user can fix, and how a script reports them."""

import errno
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A problem outside the program. The message says what, where, and what to do."""


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


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script's `main` and end the process.

    The exit status is 0 on success, 1 with one line on standard error after a `UserError` or a failed file
    operation, and 130 after Ctrl-C. (argparse exits with 2 on a usage error.)
    """
    try:
        main(None)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None and error.errno not in _REMEDIES:
            raise
        where = error.filename or "writing output"
        remedy = _REMEDIES.get(error.errno, "check the path and run the same command again")
        sys.exit(f"error: {where}: {error.strerror}: {remedy}")
    except KeyboardInterrupt:
        sys.exit(130)
