"""Read files that `torch.save` wrote, without running code that they may hold, and verify their checksums.

A file with a checksum ends in the comment of its zip archive: `sha256:` and the hex digest of everything
before the digest. Zip readers, torch among them, skip the comment. The checksum cannot get lost or outdated:
it is written, renamed and copied with its file.
"""

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

# How torch.save's files begin: zip archives today, pickles in its older format.
_ARCHIVE = b"PK"
_BEGINNINGS = (_ARCHIVE, b"\x80")

# An archive ends in this record, whose last two bytes are the length of the comment that follows it.
_END_RECORD = b"PK\x05\x06"
_END_SIZE = 22
_LABEL = b"sha256:"
_DIGEST_SIZE = 64
_COMMENT_SIZE = len(_LABEL) + _DIGEST_SIZE
_BLOCK = 1 << 20


class Damaged(UserError):
    """A file exists but is not what was written: truncated, changed, or with impossible content.

    Args:
        problem: the file, and what is wrong with it.
        remedy: what the user should do; it ends the message.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem


def tensor_bytes(value: object) -> memoryview:
    """Serialise `value` with `torch.save`, and add a checksum that `read_tensors` verifies."""
    import torch  # takes seconds to load; the modules of `data` that import this one also work without it

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(_COMMENT_SIZE.to_bytes(2, "little") + _LABEL)
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content).hexdigest()
    buffer.write(digest.encode())
    return buffer.getbuffer()


def read_tensors(path: Path, *, what: str, remedy: str, mmap: bool = False) -> object:
    """Read a file of tensors, numbers, strings and containers of them onto the CPU.

    Files without a checksum, such as published checkpoints, are accepted.

    Args:
        what: what the file should be, with its article, for the message: "a checkpoint".
        remedy: what the user should do if the file is missing or cannot be read; it ends the message.
        mmap: leave the tensors on the disk, memory-mapped, until they are used.

    Raises:
        UserError: if the file is missing.
        Damaged: if it holds other objects, is truncated, or does not match its checksum.
        OSError: if the system cannot read the file.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found: {remedy}")
    with path.open("rb") as file:
        damage = _damage(file, what=what)
        if damage is not None:
            raise Damaged(f"{path} is {damage}", remedy=remedy)
        file.seek(0)
        try:
            with warnings.catch_warnings(action="ignore"):
                return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # damaged bytes make the reader raise nearly anything
            if isinstance(error, OSError) and error.filename is not None:
                raise
            if isinstance(error, pickle.UnpicklingError) and _begins_as_saved(path):
                raise Damaged(
                    f"{path} holds more than tensors, numbers and strings, and is not opened", remedy=remedy
                ) from error
            raise Damaged(f"{path} is truncated or not {what}", remedy=remedy) from error


def _damage(file: BinaryIO, *, what: str) -> str | None:
    """What is wrong with a file, judged by its end and its checksum; None if nothing is, or if it has none.

    torch.save writes no comment. An archive that ends in neither a record without comment nor a checksum is
    therefore damaged.
    """
    is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    size = file.seek(0, io.SEEK_END)
    file.seek(-min(size, _COMMENT_SIZE), io.SEEK_END)
    tail = file.read()
    if not (len(tail) == _COMMENT_SIZE and tail.startswith(_LABEL)):
        end = tail[-_END_SIZE:]
        complete = end.startswith(_END_RECORD) and end.endswith(b"\0\0")
        return f"truncated or not {what}" if is_archive and not complete else None
    digest, left = hashlib.sha256(), size - _DIGEST_SIZE
    file.seek(0)
    while block := file.read(min(_BLOCK, left)):
        digest.update(block)
        left -= len(block)
    if tail[len(_LABEL) :] != digest.hexdigest().encode():
        return "damaged: its content does not match its checksum"
    return None


def _begins_as_saved(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2).startswith(_BEGINNINGS)
