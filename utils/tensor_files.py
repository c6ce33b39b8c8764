"""Read files that `torch.save` wrote, without running code that they may hold."""

import pickle
import warnings
from pathlib import Path

from utils.errors import UserError

# How torch.save's files begin: zip archives today, pickles in its older format.
_BEGINNINGS = (b"PK", b"\x80")


def read_tensors(path: Path, *, what: str, remedy: str, mmap: bool = False) -> object:
    """Read a file of tensors, numbers, strings and containers of them onto the CPU.

    Args:
        what: what the file should be, with its article, for the message: "a checkpoint".
        remedy: what the user should do if the file is missing or cannot be read; it ends the message.
        mmap: leave the tensors on the disk, memory-mapped, until they are used.

    Raises:
        UserError: if the file is missing, holds other objects, or is damaged.
        OSError: if the system cannot read the file.
    """
    import torch  # takes seconds to load; the modules of `data` that import this one also work without it

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found: {remedy}")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if isinstance(error, pickle.UnpicklingError) and _begins_as_saved(path):
            raise UserError(
                f"{path} holds more than tensors, numbers and strings, and is not opened: {remedy}"
            ) from error
        raise UserError(f"{path} is truncated or not {what}: {remedy}") from error


def _begins_as_saved(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2).startswith(_BEGINNINGS)
