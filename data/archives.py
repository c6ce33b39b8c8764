"""Raw files inside zip archives, read without extracting them."""

import zipfile
import zlib
from pathlib import Path

from data.raw_files import RawFile
from utils.errors import UserError


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        UserError: if it is truncated or not a zip file.
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is truncated or not a zip file ({error}): download it again") from error


def zipped_file(archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: int) -> RawFile:
    """A member of an open archive. Reading it raises a `UserError` with its name if it is damaged."""
    name = f"{archive.filename}/{member.filename}"

    def read() -> bytes:
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{name} cannot be read ({error}): download the archive again") from error

    return RawFile(name, label, read)
