"""Pickled arrays, as CIFAR and ImageNet-32 are distributed, read without running code that they may hold."""

import _codecs
import builtins
import collections
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from utils.errors import UserError

_NUMPY = {
    # Functions that rebuild arrays and scalars. Their module depends on numpy's version, so ask numpy.
    "_reconstruct": numpy.empty(0).__reduce__()[0],
    "_frombuffer": numpy.empty(1).__reduce_ex__(5)[0],
    "scalar": numpy.float64(0).__reduce__()[0],
}
_CONTAINERS = ("set", "frozenset", "bytearray", "complex")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which protocols 0 to 2 pickle bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds text encoded as {encoding}, which is refused")
    return _codecs.encode(text, encoding)


def _admitted(module: str, name: str) -> Any:
    if module in ("builtins", "__builtin__") and name in _CONTAINERS:
        return getattr(builtins, name)
    if (module, name) == ("collections", "OrderedDict"):
        return collections.OrderedDict
    if (module, name) == ("_codecs", "encode"):
        return _encode
    if module == "numpy" and name in ("ndarray", "dtype"):
        return getattr(numpy, name)
    if module.removeprefix("numpy.").removeprefix("_") in ("core.multiarray", "core.numeric"):
        return _NUMPY.get(name)
    return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _admitted(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return found


def load(file: Path | BinaryIO, *, name: str | None = None) -> Any:
    """Read a pickle of numpy arrays, numbers, strings, bytes and containers.

    Args:
        file: a path, or a binary stream.
        name: identifies it in error messages (default: the path).

    Strings pickled by Python 2 are returned as bytes.

    Raises:
        UserError: if the file is truncated, is not a pickle, or names anything else.
    """
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            return load(stream, name=name or str(file))
    try:
        return _Unpickler(file, encoding="bytes").load()
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
        *(AttributeError, ImportError, MemoryError, OverflowError),
    ) as error:
        raise UserError(
            f"{name or 'stream'} is not a readable pickle of arrays ({error}): download it again"
        ) from error
