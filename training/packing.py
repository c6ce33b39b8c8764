"""Write the tensors of a checkpoint in as few bytes as hold them, bit for bit.

Owners take as few bits as the number of tasks needs. Of a tensor that tasks own in parts, only the values at
owned weights are written, and once the value that all others have (0 of a weight that pruning freed). If
those others differ, as in some published checkpoints, all values are written. Equal tensors are written once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from torch import Tensor

from utils.errors import UserError

# The types of tensors in checkpoints, as `training.schema` allows them.
DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
OWNERS, INFORMATION, STATE, ARRIVALS = "masks", "shared_layer_info", "model_state_dict", "arrivals"
PIGGYMASKS = "piggymask"


@dataclass(frozen=True)
class Part:
    """How one tensor is written.

    Attributes:
        dtype: One of `DTYPES`.
        shape: Its shape.
        mask: Number of the part that holds the owners of these values; None: all values are written.
        newest: With `mask`, values of owners 1 to this one are written, the others are one value. Without,
            the values are owners, 0 to this one, and written in bits; None: they are none.
    """

    dtype: str
    shape: tuple[int, ...]
    mask: int | None = None
    newest: int | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.count * numpy.dtype(self.dtype).itemsize

    @property
    def holds_owners(self) -> bool:
        """Whether the values are owners, written in bits."""
        return self.mask is None and self.newest is not None

    def written(self, owner: numpy.ndarray) -> numpy.ndarray:
        """Which values are written, bool, where `owner` are the owners of all values."""
        return (owner > 0) & (owner <= self.newest)


@dataclass(frozen=True)
class Laid:
    """The tensors of a checkpoint as they are written.

    Attributes:
        parts: How each distinct tensor is written.
        chunks: Its bytes.
        payload: The checkpoint, with the number of the part in place of every tensor.
    """

    parts: list[Part]
    chunks: list[bytes]
    payload: dict[str, Any]


def bytes_of(payload: Mapping[str, Any]) -> int:
    """Bytes in which the tensors of a checkpoint are written."""
    return sum(map(len, lay_out(payload).chunks))


def lay_out(payload: Mapping[str, Any]) -> Laid:
    """Encode the tensors of a checkpoint that passes `training.schema.check_payload`.

    Raises:
        UserError: An owner is none of the checkpoint's tasks.
    """
    tasks = list(payload["dataset_history"])
    known: dict[tuple[Part, bytes], int] = {}
    owners: dict[str, tuple[int, numpy.ndarray]] = {}

    def number_of(part: Part, chunk: bytes) -> int:
        return known.setdefault((part, chunk), len(known))

    for layer, mask in payload[OWNERS].items():
        array = _array(mask)
        owner = array.astype(numpy.uint8)
        if (owner != array).any() or (owner > len(tasks)).any():
            raise UserError(
                f"the network has weights of {layer} that belong to none of its {len(tasks)} tasks: use "
                "another copy or train it again"
            )
        part = Part(str(array.dtype), array.shape, newest=len(tasks))
        owners[layer] = number_of(part, _owner_bytes(owner, tasks=len(tasks))), owner

    def number(path: tuple[str, ...], tensor: Tensor) -> int:
        array = _array(tensor)
        whole = Part(str(array.dtype), array.shape)
        layer, newest = _owned(path, tasks)
        if path[0] == OWNERS:
            return owners[layer][0]
        if layer in owners and owners[layer][1].shape == array.shape:
            mask, owner = owners[layer]
            part = Part(whole.dtype, whole.shape, mask=mask, newest=newest)
            written = part.written(owner)
            others = array[~written]
            if len(others) and _all_equal(others):
                return number_of(part, _value_bytes(others[:1]) + _value_bytes(array[written]))
        return number_of(whole, _value_bytes(array))

    replaced = with_tensors(payload, number)
    return Laid([part for part, _ in known], [chunk for _, chunk in known], replaced)


def decode(part: Part, take: Callable[[int], memoryview], owner: numpy.ndarray | None) -> numpy.ndarray:
    """The values of a part.

    Args:
        take: Returns the next bytes of the body, exactly as many as it is asked for.
        owner: The owners of these values, if the part has a `mask`.
    """
    dtype = numpy.dtype(part.dtype)
    if part.holds_owners:
        bits = part.newest.bit_length()
        packed = numpy.frombuffer(take(_bytes_of_bits(bits * part.count)), dtype=numpy.uint8)
        values = numpy.zeros(part.count, dtype=numpy.uint8)
        planes = numpy.unpackbits(packed, count=bits * part.count, bitorder="little")
        for bit, plane in enumerate(planes.reshape(bits, part.count)):
            values |= plane << bit
        return values.reshape(part.shape).astype(dtype)
    if owner is None:
        return _values(take, dtype, part.count).reshape(part.shape)
    others = _values(take, dtype, 1)
    values = numpy.full(part.shape, others[0], dtype=dtype)
    written = part.written(owner)
    values[written] = _values(take, dtype, int(numpy.count_nonzero(written)))
    return values


def with_tensors(payload: Mapping[str, Any], change: Callable[[tuple[str, ...], Any], Any]) -> dict:
    """A checkpoint in which every tensor is replaced by `change(path, tensor)`.

    The path begins with the section, such as ("model_state_dict", "features.0.weight").
    """
    changed = dict(payload)
    for section in (OWNERS, STATE):
        changed[section] = _each((section,), payload[section], change)
    changed[INFORMATION] = {
        task: {
            group: _each((INFORMATION, task, group), entry, change) if isinstance(entry, Mapping) else entry
            for group, entry in information.items()
        }
        for task, information in payload[INFORMATION].items()
    }
    if ARRIVALS in payload:
        changed[ARRIVALS] = {
            task: _each((ARRIVALS, task), tensors, change) for task, tensors in payload[ARRIVALS].items()
        }
    return changed


def _each(path: tuple[str, ...], tensors: Mapping, change: Callable[[tuple[str, ...], Any], Any]) -> dict:
    return {name: change((*path, name), value) for name, value in tensors.items()}


def _owned(path: tuple[str, ...], tasks: list[str]) -> tuple[str, int]:
    """The layer whose owners a tensor may follow, and the newest owner whose values it has."""
    section, name = path[0], path[-1]
    if section == STATE:
        layer, _, kind = name.rpartition(".")
        newest = {"weight": len(tasks), "piggymask": len(tasks) - 1}
        return (layer, newest[kind]) if kind in newest else ("", 0)
    if section == INFORMATION and path[2] == PIGGYMASKS and path[1] in tasks:
        return name, tasks.index(path[1])
    return (name, 0) if section == OWNERS else ("", 0)


def _array(tensor: Tensor) -> numpy.ndarray:
    return tensor.detach().cpu().contiguous().numpy()


def _all_equal(values: numpy.ndarray) -> bool:
    """Whether all values have the same bits: 0.0 and -0.0 differ."""
    bits = values.view(f"u{values.dtype.itemsize}")
    return bool((bits == bits[0]).all())


def _owner_bytes(owner: numpy.ndarray, *, tasks: int) -> bytes:
    """Bit 0 of all owners, then bit 1 of all owners, and so on, as many as `tasks` needs."""
    planes = [(owner.reshape(-1) >> bit) & 1 for bit in range(tasks.bit_length())]
    return numpy.packbits(numpy.concatenate(planes), bitorder="little").tobytes()


def _value_bytes(values: numpy.ndarray) -> bytes:
    if values.dtype.kind == "b":
        return numpy.packbits(values.reshape(-1), bitorder="little").tobytes()
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _values(take: Callable[[int], memoryview], dtype: numpy.dtype, count: int) -> numpy.ndarray:
    if dtype.kind == "b":
        packed = numpy.frombuffer(take(_bytes_of_bits(count)), dtype=numpy.uint8)
        return numpy.unpackbits(packed, count=count, bitorder="little").astype(bool)
    return numpy.frombuffer(take(count * dtype.itemsize), dtype=dtype.newbyteorder("<")).astype(dtype)


def _bytes_of_bits(count: int) -> int:
    return -(-count // 8)
