"""Parts of a message as Flower's records, and the bytes that they take."""

import numpy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import Tensor

from federation.parts import Parts, text_of, values_of
from utils.errors import UserError

_BYTES, _JSON = "bytes", "json"


def to_content(parts: Parts) -> RecordDict:
    """The parts as the content of a message."""
    content = RecordDict()
    for name, part in parts.items():
        if isinstance(part, bytes):
            content[name] = ConfigRecord({_BYTES: part})
        elif part and all(isinstance(value, Tensor) for value in part.values()):
            content[name] = ArrayRecord({key: Array(value.cpu().numpy()) for key, value in part.items()})
        else:
            content[name] = ConfigRecord({_JSON: text_of(part)})
    return content


def from_content(content: RecordDict) -> Parts:
    """The parts in the content of a message.

    Raises:
        UserError: if a record is none that `to_content` writes.
    """
    parts: Parts = {}
    for name, record in content.items():
        try:
            if isinstance(record, ArrayRecord):
                parts[name] = {key: torch.from_numpy(_ndarray(array)) for key, array in record.items()}
            elif isinstance(record.get(_BYTES), bytes):
                parts[name] = record[_BYTES]
            else:
                parts[name] = values_of(record.get(_JSON))
        except (ValueError, TypeError, EOFError, RecursionError, AttributeError, MemoryError) as error:
            raise UserError(f"its message holds no valid {name[:100]!r}: {str(error)[:200]}") from error
    return parts


def size_of(content: RecordDict) -> int:
    """Bytes of the content of a message, as Flower transfers it."""
    return sum(len(found.deflate()) for found in get_all_nested_objects(content).values())


def _ndarray(array: Array) -> numpy.ndarray:
    found = array.numpy()
    if found.dtype.kind not in "fiu" or found.dtype.byteorder == ">":
        raise ValueError(f"arrays of {found.dtype}")
    return numpy.array(found)  # writable, as PyTorch wants it
