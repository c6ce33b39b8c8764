"""Docstrings of the Python standard library, text tasks that need no download."""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from data.raw_files import RawTexts, Text, in_test
from data.tables import Table, Task
from utils.errors import UserError

# Increment when the texts built here change.
_VERSION = 1
# Shorter docstrings ("See base class.") say nothing about the package.
_MIN_WORDS = 5


def find(table: Table, task: Task, split: str, *, data_root: Path) -> RawTexts:
    """One split of a task whose classes are packages or modules of the standard library."""
    python = ".".join(map(str, sys.version_info[:3]))
    return RawTexts(f"docstrings of Python {python}, version {_VERSION}", partial(_read, task, split))


def _read(task: Task, split: str) -> Iterator[Text]:
    """The docstrings of one split: four fifths are for training, by a hash of the text."""
    for label, package in enumerate(task.classes):
        for text, name in docstrings_of(package).items():
            if in_test(text) == (split == "test"):
                yield Text(name, label, text)


@cache
def docstrings_of(package: str) -> dict[str, str]:
    """The docstrings in a package's source files: text → where it is.

    Files are parsed, not imported, in sorted order. Tests are left out, and so are repeated texts.

    Raises:
        UserError: if this Python's standard library lacks the package's source files.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    module = library / f"{package}.py"
    files = [module] if module.is_file() else sorted((library / package).rglob("*.py"))
    if not files:
        raise UserError(
            f"{library / package} not found: this Python lacks the sources of its standard library, which "
            "are the texts: use a Python that includes them"
        )
    found: dict[str, str] = {}
    for path in files:
        if {"test", "tests"} & set(path.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            if len(re.findall(r"\w+", text)) >= _MIN_WORDS:
                found.setdefault(text, f"{path}:{getattr(node, 'name', package)}")
    return found
