"""Raw files inside zip archives, which need not be extracted."""

import zipfile
import zlib
from pathlib import Path

from data.raw_files import RawFile
from utils.errors import UserError


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        UserError: if it is truncated or no zip file.
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is truncated or no zip file ({error}): download it again") from error


def zipped_file(archive: zipfile.ZipFile, member: zipfile.ZipInfo, label: int) -> RawFile:
    """A member of an open archive; reading it raises a `UserError` that names it if it is damaged."""
    name = f"{archive.filename}/{member.filename}"

    def read() -> bytes:
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{name} cannot be read ({error}): download the archive again") from error

    return RawFile(name, label, read)
