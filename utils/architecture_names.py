"""Names of architectures that a file of the user's defines."""

import hashlib
from pathlib import Path
from typing import Self

from utils.errors import UserError


class FileArchitecture(str):
    """An architecture in a file of the user's. As a string it is the architecture's name, the function's.

    Recipes and checkpoints record `str(name)` and `digest`.

    Attributes:
        file: the Python file.
        digest: `sha256:` and the first 16 digits of the file's SHA-256.
    """

    file: Path
    digest: str

    @property
    def flag(self) -> str:
        """The value of `--arch` that names it."""
        return f"{self.file}:{self}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The architecture that `path/to/file.py:function` names.

        Raises:
            UserError: if the function's name or the file is missing.
        """
        path, _, function = text.rpartition(":")
        if not path.endswith(".py") or not function.isidentifier():
            raise UserError(f"--arch {text}: add the function that builds the network, {_example(text)}")
        file = Path(path).absolute()
        if not file.is_file():
            raise UserError(f"--arch {text}: {file} not found: correct the path")
        name = cls(function)
        name.file = file
        name.digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        return name


def architecture_name(text: str) -> str:
    """The name that `--arch` gives: as it is, or that of a function in a file.

    Raises:
        UserError: for a file that does not exist, or without a function.
    """
    is_file = text.endswith(".py") or ".py:" in text
    return FileArchitecture.parse(text) if is_file else text


def digest_of(name: str) -> str | None:
    """The digest of the file that defines an architecture; None for one of this project's."""
    return name.digest if isinstance(name, FileArchitecture) else None


def _example(text: str) -> str:
    path = text[: text.index(".py") + 3]
    return f"for example {path}:{Path(path).stem}"
