"""The content of a message, whatever carries it: named parts of values, bytes or tensors, checked on arrival.

Whoever receives a message knows its sender only by name. Every accessor therefore raises a `UserError` in one
line for content that does not have the requested form.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data.raw_files import printable
from utils.errors import UserError

# Values are what JSON holds.
Part = Mapping[str, Any] | bytes
Parts = dict[str, Part]

# Kinds of messages, as Flower names them.
HELLO, ANSWER, NETWORK, RANK = "query.hello", "query.answer", "query.network", "query.rank"
LEARN, ALONE = "train.learn", "train.alone"

MAX_TEXT = 1000
MAX_SHOWN = 500
_MAX_JSON = 1 << 20


def shown(text: object) -> str:
    """Another device's text for messages and files: on one line, without control characters, cut."""
    return printable(str(text)[:MAX_SHOWN])


def text_of(values: Mapping[str, Any]) -> str:
    """A part of values as JSON."""
    return json.dumps(values, allow_nan=False)


def values_of(text: object) -> dict[str, Any]:
    """The values in what `text_of` wrote.

    Raises:
        ValueError: for anything else, and for what cannot be sent on: NaN, infinity, half a surrogate pair.
    """
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        raise ValueError("no JSON, or too much")
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
    return values


def values_in(parts: Parts, name: str, *, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The values of a part.

    Args:
        kinds: the entries that it must have, with their types; others are dropped. A float must be finite.

    Raises:
        UserError: if the part or an entry is missing or of another type.
    """
    part = parts.get(name)
    if not isinstance(part, Mapping):
        raise UserError(f"its message lacks {name}")
    for entry, kind in kinds.items():
        value = part.get(entry)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"its message has no {kind.__name__} as {entry} of {name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"its message has {value} as {entry} of {name}")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise UserError(f"its message has more than {MAX_TEXT} characters as {entry} of {name}")
    return {entry: part[entry] for entry in kinds}


def bytes_in(parts: Parts, name: str) -> bytes:
    """The bytes of a part.

    Raises:
        UserError: if there are none.
    """
    part = parts.get(name)
    if not isinstance(part, bytes):
        raise UserError(f"its message lacks {name}")
    return part


def tensors_in(parts: Parts, name: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part.

    Args:
        like: the tensors that it must have; shapes and types must agree.

    Raises:
        UserError: if one is missing, has another shape or type, or a value that is not finite.
    """
    part = parts.get(name)
    if not isinstance(part, Mapping):
        raise UserError(f"its message lacks {name}")
    found = {}
    for entry, expected in like.items():
        tensor = part.get(entry)
        if not isinstance(tensor, Tensor):
            raise UserError(f"its message has no tensor as {entry} of {name}")
        if (tensor.dtype, tensor.shape) != (expected.dtype, expected.shape):
            raise UserError(
                f"{entry} of {name} in its message is {_form(tensor)}, where {_form(expected)} is expected"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{entry} of {name} in its message has values that are not finite")
        found[entry] = tensor
    return found


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"
