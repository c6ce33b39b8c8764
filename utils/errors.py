"""Errors that a user can fix, and how a script reports them."""

import errno
import os
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


# What the stages in bash call the flags that messages advise to set.
_VARIABLES = {
    "allow_acc_loss": "ALLOW_ACC_LOSS",
    "arch": "ARCH",
    "batch_size": "BATCH_SIZE",
    "candidates": "CANDIDATES",
    "data_root": "DATA_ROOT",
    "dataset": "TASKS",
    "dataset_config": "CONFIG",
    "device": "DEVICE",
    "epochs": "EPOCHS",
    "fleet": "FLEET",
    "freed": "FREED",
    "lr": "LR",
    "max_allowed_network_width_multiplier": "MAX_WIDTH",
    "max_iterations": "MAX_ITERATIONS",
    "overwrite": "OVERWRITE=1",
    "precision": "PRECISION",
    "probes": "PROBES",
    "protocol": "PROTOCOL",
    "prune_epochs": "PRUNE_EPOCHS",
    "public_probes": "PUBLIC_PROBES",
    "reuse": "REUSE",
    "run": "RUN",
    "seed": "SEED",
    "seq": "SEQ",
    "target_sparsity": "SPARSITIES",
    "text_encoder": "TEXT_ENCODER",
    "train_per_class": "TRAIN_PER_CLASS",
}
# A flag, and the space before its value where one follows: a number, or NAME.
_FLAG = re.compile(
    rf"(?<![\w-])--({'|'.join(sorted(_VARIABLES, key=len, reverse=True))})(?![\w-])"
    r"(?: (?=[A-Z]{2}|\d)(?=[^\s:;,)]))?"
)
_QUOTED = re.compile(r"(`[^`]*`)")


def in_callers_words(message: str) -> str:
    """A message in terms of what the user typed: in a stage, `--overwrite` is called OVERWRITE=1.

    Commands in backquotes stay as they are.
    """
    if os.environ.get("INSIDE_A_STAGE") != "1":
        return message
    parts = _QUOTED.split(message)
    return "".join(part if part.startswith("`") else _FLAG.sub(_variable, part) for part in parts)


def _variable(flag: re.Match[str]) -> str:
    name = _VARIABLES[flag[1]]
    return (
        f"{name}=" if flag[0].endswith(" ") and "=" not in name else name + flag[0][len(flag[0].rstrip()) :]
    )


def as_shown(message: str) -> str:
    """A message as the user sees it: on one line (a path may contain line breaks), in the caller's words."""
    return in_callers_words(message).replace("\n", "\\n").replace("\r", "\\r")


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
        sys.stdout.flush()
    except BrokenPipeError:  # whatever read the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        sys.exit(1)
    except UserError as error:
        sys.exit(as_shown(f"error: {error}"))
    except OSError as error:
        if error.filename is None and error.errno not in _REMEDIES:
            raise
        where = error.filename or "writing output"
        remedy = _REMEDIES.get(error.errno, "check the path and run the same command again")
        sys.exit(as_shown(f"error: {where}: {error.strerror}: {remedy}"))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        sys.exit("error: out of memory: lower the batch sizes or the sizes of the network")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if ending:  # also while the interpreter shuts down
            signal.signal(signal.SIGINT, signal.SIG_DFL)
