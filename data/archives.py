"""Raw files inside zip archives, read without extracting them."""

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from data.raw_files import RawFile, check_size, printable, reason
from utils.errors import UserError

# What reading a damaged archive raises: its structure, then the streams of its compression methods. The
# bz2 module raises plain OSErrors.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(ValueError, OverflowError, RuntimeError, NotImplementedError, MemoryError),
)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        UserError: if it is missing, truncated or not a zip file.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a zip file")
    try:
        return zipfile.ZipFile(path)
    except PermissionError:
        raise
    except DAMAGED as error:
        raise UserError(
            f"{path} is truncated or not a zip file ({reason(error)}): download it again"
        ) from error


def zipped_file(archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: int) -> RawFile:
    """A member of an open archive. Reading it raises a `UserError` with its name if it is damaged."""
    name = printable(f"{archive.filename}/{member.filename}")

    def read() -> bytes:
        check_size(member.file_size, name=name)
        try:
            return archive.read(member)
        except DAMAGED as error:
            raise UserError(f"{name} cannot be read ({reason(error)}): download the archive again") from error

    return RawFile(name, label, read)
