"""A pruned network as bytes that travel from one device to another (`docs/packed_network.md`).

Nothing is unpickled, and `unpack` is safe with bytes from anybody: it checks every length before it
allocates, and its result passes the checks of a checkpoint.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy
import torch

from methods.ownership import MAX_TASKS
from training.checkpoints import check_content
from training.packing import (
    ARRIVALS,
    DTYPES,
    INFORMATION,
    OWNERS,
    STATE,
    Part,
    decode,
    lay_out,
    with_tensors,
)
from training.schema import MAX_COUNT
from utils.errors import UserError
from utils.tensor_files import Damaged

VERSION = 1
MAX_BYTES = 1 << 30

_MAGIC = b"\x89PICKABK"
# Magic, version, bytes of the compressed header and of the body.
_BEGINNING = struct.Struct("<8sHIQ")
_DIGEST_SIZE = hashlib.sha256().digest_size
# JSON takes up to about 30 times its size once it is parsed.
_HEADER_SHARE = 32
_HEADER_LIMITS = 1 << 16, 1 << 24
_MAX_DIMENSIONS = 8
# Bytes of a tensor besides its values.
_OVERHEAD = 512
_WHERE = "the packed network"
_REMEDY = "have it packed and sent again"

# The sections of a checkpoint that travel. What only the training of the network needs stays behind.
_TRAVELS = (
    *("format_version", "architecture", "arguments", "task_table", "epoch", "metrics", "selection"),
    *("kv_transfer", "arrived_from", "dataset_history", "dataset2num_classes"),
    *(STATE, OWNERS, INFORMATION, ARRIVALS),
)


def pack(payload: Mapping[str, Any]) -> bytes:
    """Pack the checkpoint of a pruned network.

    Everything that a target on it reads survives, every tensor bit for bit.

    Raises:
        UserError: It is no checkpoint of a network with owners, or its metadata are not JSON.
    """
    where = "the network to pack"
    check_content(payload, where=where, remedy="use another copy or train it again")
    if not payload[OWNERS]:
        raise UserError(f"{where} has no owners of weights: pack a network of stage 2 or 3")
    laid = lay_out({name: payload[name] for name in _TRAVELS if name in payload})
    header = {"parts": [_entry(part) for part in laid.parts], "payload": laid.payload}
    try:
        text = json.dumps(header, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has metadata that JSON cannot hold: {error}") from error
    compressed = zlib.compress(text, level=9)
    beginning = _BEGINNING.pack(_MAGIC, VERSION, len(compressed), sum(map(len, laid.chunks)))
    content = b"".join((beginning, compressed, *laid.chunks))
    return content + hashlib.sha256(content).digest()


def unpack(packed: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The payload of the checkpoint that was packed.

    Args:
        max_bytes: Limit of the packed size, and of the bytes of all tensors together.

    Raises:
        UserError: It is larger than the limit, or in a newer format.
        Damaged: It is anything else than what `pack` returns.
    """
    header, body = _open(memoryview(packed), max_bytes=max_bytes)
    parts, tree = _parts(header["parts"]), header["payload"]
    uses = _uses(tree, count=len(parts))
    # A part that is used twice is copied, so that no two tensors share memory.
    needed = sum((part.nbytes + _OVERHEAD) * max(1, number) for part, number in zip(parts, uses, strict=True))
    _check_limit(needed, max_bytes, what="bytes of tensors")
    tensors = _tensors(parts, body)
    given: set[int] = set()

    def tensor_of(_: tuple[str, ...], number: int) -> torch.Tensor:
        if number in given:
            return tensors[number].clone()
        given.add(number)
        return tensors[number]

    payload = with_tensors(tree, tensor_of)
    check_content(payload, where=_WHERE, remedy=_REMEDY)
    return payload


def _refuse(problem: str) -> NoReturn:
    raise Damaged(f"{_WHERE} {problem}", remedy=_REMEDY)


def _check_limit(size: int, limit: int, *, what: str) -> None:
    if size > limit:
        raise UserError(
            f"{_WHERE} has {size:,} {what}, more than the limit of {limit:,}: do without it, or raise the "
            "limit"
        )


def _entry(part: Part) -> list:
    """A part as the header holds it."""
    entry: list = [part.dtype, list(part.shape)]
    return entry if part.newest is None else [*entry, part.mask, part.newest]


def _open(packed: memoryview, *, max_bytes: int) -> tuple[dict, memoryview]:
    """The header and the body, after all checks that need neither."""
    _check_limit(len(packed), max_bytes, what="bytes")
    if len(packed) < _BEGINNING.size + _DIGEST_SIZE:
        _refuse("is truncated")
    magic, version, header_size, body_size = _BEGINNING.unpack_from(packed)
    if magic != _MAGIC:
        _refuse("is something else: it does not begin as one")
    if version != VERSION:
        raise UserError(f"{_WHERE} has format {version}; this version reads format {VERSION}: update")
    expected = _BEGINNING.size + header_size + body_size + _DIGEST_SIZE
    if len(packed) != expected:
        _refuse(f"has {len(packed):,} bytes, its beginning says {expected:,}")
    content, digest = packed[:-_DIGEST_SIZE], packed[-_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        _refuse("is damaged: its content does not match its checksum")
    compressed = content[_BEGINNING.size : _BEGINNING.size + header_size]
    least, most = _HEADER_LIMITS
    header = _header(compressed, limit=min(most, max(least, max_bytes // _HEADER_SHARE)))
    return header, content[_BEGINNING.size + header_size :]


def _header(compressed: memoryview, *, limit: int) -> dict:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(compressed, limit)
    except zlib.error as error:
        raise Damaged(f"{_WHERE} has a header that is not compressed data", remedy=_REMEDY) from error
    if not decompressor.eof or decompressor.unused_data:
        _refuse(f"has a header that is truncated, or larger than {limit:,} bytes")
    try:
        header = json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{_WHERE} has a header that is not JSON", remedy=_REMEDY) from error
    if not isinstance(header, dict) or header.keys() != {"parts", "payload"}:
        _refuse("has a header with other entries than parts and payload")
    return header


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parts(entries: object) -> list[Part]:
    """The parts that a header lists."""
    if not isinstance(entries, list):
        _refuse("has no list of parts")
    parts: list[Part] = []
    for entry in entries:
        if not _is_part(entry, parts):
            _refuse(f"has an impossible part {len(parts)}")
        dtype, shape, *owned = entry
        parts.append(Part(dtype, tuple(shape), *owned))
    return parts


def _is_part(entry: object, before: list[Part]) -> bool:
    """Whether an entry describes a part whose owners, if it needs any, are among those before it."""
    if not isinstance(entry, list) or len(entry) not in (2, 4):
        return False
    dtype, shape, *owned = entry
    if dtype not in DTYPES or not isinstance(shape, list) or not all(map(_is_count, shape)):
        return False
    # Also of tensors without values, of which no size may overflow.
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > MAX_COUNT:
        return False
    if not owned:
        return True
    mask, newest = owned
    if not _is_count(newest) or newest > MAX_TASKS:
        return False
    if mask is None:
        return True
    if not _is_count(mask) or mask >= len(before):
        return False
    return before[mask].holds_owners and before[mask].shape == tuple(shape)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _uses(tree: object, *, count: int) -> list[int]:
    """How many tensors of the payload each of `count` parts is.

    Raises:
        Damaged: The payload is not one in which a part's number stands for every tensor.
    """
    if not isinstance(tree, dict) or tree.keys() - {*_TRAVELS}:
        _refuse("has sections that no checkpoint of a network has")
    if not all(isinstance(tree.get(section), dict) for section in (OWNERS, STATE, INFORMATION)):
        _refuse("lacks a section of its tensors")
    by_task = [tree[INFORMATION], tree.get(ARRIVALS, {})]
    if not all(isinstance(tasks, dict) and all(map(_is_dict, tasks.values())) for tasks in by_task):
        _refuse("has a task without tensors of its own")
    uses = [0] * count

    def use(_: tuple[str, ...], number: object) -> None:
        if not _is_count(number) or number >= count:
            _refuse("names a tensor that it does not hold")
        uses[number] += 1

    with_tensors(tree, use)
    return uses


def _tensors(parts: list[Part], body: memoryview) -> list[torch.Tensor]:
    """The tensors in the body, one per part."""
    position = 0

    def take(size: int) -> memoryview:
        nonlocal position
        if size > len(body) - position:
            _refuse("holds fewer values than its shapes say")
        position += size
        return body[position - size : position]

    arrays: list[numpy.ndarray] = []
    for part in parts:
        owner = None if part.mask is None else arrays[part.mask]
        array = decode(part, take, owner)
        if part.holds_owners and (array > part.newest).any():
            _refuse(f"has weights of another owner than its {part.newest} tasks")
        arrays.append(array)
    if position != len(body):
        _refuse("holds more values than its shapes say")
    return [torch.from_numpy(array) for array in arrays]
