"""What the processes of one task exchange: modules, batches, gradients and messages."""

import io
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.rows import Rows
from utils.errors import UserError

# A batch is shared only if every process gets this many rows: tensors with one row may also be shared by all.
ROWS = 2

LOCALHOST = "127.0.0.1"

_CONNECTING = timedelta(minutes=10)
# The first process may wait for a lock, or compute alone.
_IDLE = timedelta(days=365)
_BUCKET = 1 << 26  # bytes
_LOST = re.compile("gloo|nccl|connection|socket|broken pipe", re.IGNORECASE)


class Link:
    """One process's connection to the others of its task. Process 0 leads: it sends messages and batches.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        device: what this process computes on.
        store: where the processes meet.
    """

    def __init__(self, *, rank: int, size: int, device: torch.device, store: dist.Store) -> None:
        self.rank, self.size, self.device, self.store = rank, size, device, store
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_CONNECTING)
        self._control = dist.new_group(backend="gloo", timeout=_IDLE)

    def close(self) -> None:
        """Disconnect."""
        dist.destroy_process_group()

    def message(self, content: dict | None = None) -> dict:
        """Send a message to all other processes, or wait for one."""
        box = [content]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def bounds(self, total: int) -> list[tuple[int, int]]:
        """First and last row (exclusive) of every process's part of a batch of `total` rows."""
        edges = [total * rank // self.size for rank in range(self.size + 1)]
        return list(pairwise(edges))

    def rows(self, total: int) -> Rows:
        """The context of this process's part of a forward pass over a batch of `total` rows."""
        return Rows(*self.bounds(total)[self.rank], total, all_reduce=dist.all_reduce)

    def scatter(self, batch: Tensor) -> Tensor:
        """Send every other process its rows of a batch; return one's own."""
        first, *others = [batch[start:stop].contiguous() for start, stop in self.bounds(len(batch))]
        self._exchange([dist.P2POp(dist.isend, part, rank) for rank, part in enumerate(others, 1)])
        return first

    def receive_rows(self, total: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Receive one's rows of a batch that process 0 scatters.

        Args:
            shape: of one row.
        """
        start, stop = self.bounds(total)[self.rank]
        rows = torch.empty((stop - start, *shape), dtype=dtype, device=self.device)
        self._exchange([dist.P2POp(dist.irecv, rows, 0)])
        return rows

    def gather(self, own: Tensor, total: int) -> Tensor:
        """The whole batch in process 0, of which every process has its rows."""
        if self.rank:
            self._exchange([dist.P2POp(dist.isend, own.contiguous(), 0)])
            return own
        batch = own.new_empty((total, *own.shape[1:]))
        batch[: len(own)] = own
        others = [batch[start:stop] for start, stop in self.bounds(total)[1:]]
        self._exchange([dist.P2POp(dist.irecv, part, rank) for rank, part in enumerate(others, 1)])
        return batch

    def _exchange(self, operations: list[dist.P2POp]) -> None:
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of process 0."""
        for bucket in _buckets(tensors):
            flat = torch.cat([value.to(self.device).flatten() for value in bucket])
            dist.broadcast(flat.view(torch.uint8), src=0)
            if self.rank:
                _put_back(flat, bucket)

    @torch.no_grad()
    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors in process 0 by their sums over the processes."""
        for bucket in _buckets(tensors):
            flat = torch.cat([value.flatten() for value in bucket])
            dist.reduce(flat, dst=0)
            if self.rank == 0:
                _put_back(flat, bucket)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one type and a limited size."""
    bucket: list[Tensor] = []
    for value in sorted(tensors, key=lambda value: str(value.dtype)):
        if bucket and (value.dtype != bucket[0].dtype or sum(item.nbytes for item in bucket) > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket


def _put_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for value, part in zip(tensors, flat.split([value.numel() for value in tensors]), strict=True):
        value.copy_(part.view(value.shape))


@dataclass(frozen=True)
class PackedModule:
    """A module without the content of its tensors.

    Attributes:
        pickled: the module, with numbers in place of tensors.
        tensors: shape, strides and type of each, whether it is a parameter, and whether it requires grad.
        files: Python files that define classes of the module and cannot be imported, by module name.
    """

    pickled: bytes
    tensors: Sequence[tuple[torch.Size, Sequence[int], torch.dtype, bool, bool]]
    files: dict[str, str]

    def unpack(self, device: torch.device) -> tuple[nn.Module, list[Tensor]]:
        """The module and its tensors, whose content is undefined, on `device`."""
        for name, file in self.files.items():
            module = ModuleType(name)
            module.__file__ = file
            sys.modules[name] = module
            exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
        tensors: list[Tensor] = []
        for shape, strides, dtype, parameter, trained in self.tensors:
            value = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            tensors.append(nn.Parameter(value, requires_grad=trained) if parameter else value)
        unpickler = pickle.Unpickler(io.BytesIO(self.pickled))
        unpickler.persistent_load = tensors.__getitem__
        return unpickler.load(), tensors


def pack(module: nn.Module) -> tuple[PackedModule, list[Tensor]]:
    """A module without the content of its tensors, and these tensors.

    Raises:
        UserError: if a class of the module cannot be found by its name.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    tensors: dict[int, tuple[int, Tensor]] = {}

    def number_of(value: object) -> int | None:
        return tensors.setdefault(id(value), (len(tensors), value))[0] if isinstance(value, Tensor) else None

    pickler.persistent_id = number_of
    try:
        pickler.dump(module)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"several processes cannot train this architecture ({error}): define its classes and functions "
            "at the top level of their file"
        ) from error
    found = [value for _, value in tensors.values()]
    described = [
        (value.shape, _strides(value), value.dtype, isinstance(value, nn.Parameter), value.requires_grad)
        for value in found
    ]
    names = {type(part).__module__ for part in module.modules()}
    by_hand = {name: sys.modules[name] for name in names if sys.modules[name].__spec__ is None}
    files = {name: str(defined.__file__) for name, defined in by_hand.items() if name != "__main__"}
    return PackedModule(file.getvalue(), described, files), found


def _strides(value: Tensor) -> Sequence[int]:
    dense = torch.ops.aten.is_non_overlapping_and_dense(value)
    return value.stride() if dense else value.contiguous().stride()


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, RuntimeError | OSError) and _LOST.search(str(error)) is not None


def ready_key(rank: int) -> str:
    """Key in the store that a process sets before it connects."""
    return f"ready/{rank}"


def failure_key(rank: int) -> str:
    """Key in the store of why a process failed."""
    return f"failed/{rank}"


def autocast_state(device: torch.device) -> dict[str, Any]:
    """Arguments of `torch.autocast` for the context of the caller."""
    kind = device.type
    return {
        "device_type": kind,
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
    }
