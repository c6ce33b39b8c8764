"""One task on several processes: they share the rows of every batch, and all else happens in the first one.

Process 0 runs the program as it would alone: it reads, decides, logs, writes and updates the weights. Where
it passes a batch through a network that `split` returned, it sends every other process (`training.worker`)
its rows and the current weights, collects the outputs, and in the backward pass the gradients. A method thus
sees the whole batch's logits and gradients, and nothing that it does depends on the number of processes.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.exchange import (
    LOCALHOST,
    ROWS,
    Link,
    autocast_state,
    failure_key,
    is_loss,
    pack,
    ready_key,
)
from training.worker import gradients_of, serve
from utils.errors import UserError
from utils.paths import REPOSITORY
from utils.runtime import random_state, resolve_device
from utils.torchrun import local_rank, local_size, rank_in_job, size_of_job

Forward = Callable[[Tensor], Tensor]

_DYING = 3.0  # seconds: connections are lost before a process has ended
_REMEDY = "run the same command again; it continues from the last saved epoch"

_team: "Team | None" = None


def split(module: nn.Module, *, trained: bool = False) -> Forward:
    """`module`, or in a task on several processes a function that shares its forward pass among them.

    The module's mode, its heads and which parameters are trained must not change as long as it is used.

    Args:
        module: maps a batch (B, …) to (B, n).
        trained: whether the parameters change between the batches.
    """
    return module if _team is None else Split(_team, module, trained=trained)


@contextmanager
def processes(
    *, count: int, device: str, threads: int, precision: str, nondeterministic: bool
) -> Iterator[None]:
    """Within this context, `split` shares forward passes among processes.

    Under torchrun these are its processes; all but the first one serve it in here, and end. Otherwise the
    first one starts the others, once it needs them.

    Args:
        count: number of processes, each with a GPU of its own: `device` and those after it; with the device
            cpu, on the CPU.
        device: as in `resolve_device`.
        threads, precision, nondeterministic: as in `set_up_process`.

    Raises:
        UserError: if there are fewer GPUs, or if another number of processes was started.
    """
    global _team
    settings = {"threads": threads, "precision": precision, "nondeterministic": nondeterministic}
    size = size_of_job()
    if size is None and count == 1:
        yield
        return
    if size is not None and count not in (1, size):
        raise UserError(
            f"--gpus_per_task {count}, but torchrun started {size} processes: leave one of them out"
        )
    devices = _devices_of_job(device) if size else _devices(count, device)
    if rank_in_job():
        serve(Link(rank=rank_in_job(), size=size, device=devices[0], store=_store_of_job()))
        sys.exit()
    _team = Team(size=size or count, devices=devices, settings=settings)
    with ExitStack() as held:
        if size:
            held.enter_context(_last_words(size))
        try:
            if size:
                _team.join()
            yield
            _team.dismiss()
        except BaseException:
            _team.abandon()
            raise
        finally:
            _team = None


@contextmanager
def _last_words(size: int) -> Iterator[None]:
    """Let SIGTERM, by which torchrun ends all processes after one, be an error in the first one."""

    def end(*_: object) -> NoReturn:
        raise UserError(_loss(size))

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the error is shown
        raise
    signal.signal(signal.SIGTERM, before)


def _loss(size: int) -> str:
    return f"one of the {size} processes of this task ended: {_REMEDY}"


def _devices(count: int, name: str) -> list[torch.device]:
    """A device for each process of this machine."""
    device = resolve_device(name)
    if device.type == "cpu" and name == "cpu":
        return [device] * count
    first, held = device.index or 0, torch.cuda.device_count()
    if first + count > held:
        raise UserError(
            f"--gpus_per_task {count}: this machine has {max(held - first, 0)} GPUs from cuda:{first} on: "
            "lower it, or choose the device cpu (--device) for as many processes on the CPU"
        )
    return [torch.device("cuda", first + number) for number in range(count)]


def _devices_of_job(name: str) -> list[torch.device]:
    """The device of this process of torchrun's."""
    if name.startswith("cuda:"):
        raise UserError(f"--device {name}: torchrun gives every process a GPU of its own: give --device cuda")
    device = resolve_device(name)
    if device.type == "cuda" and local_size() > torch.cuda.device_count():
        raise UserError(
            f"torchrun started {local_size()} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: lower --nproc_per_node, or give --device cpu"
        )
    return [device if device.type == "cpu" else resolve_device(f"cuda:{local_rank()}")]


def _store_of_job() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://"))
    return store


class Team:
    """The processes of one task, in process 0.

    Args:
        size: number of processes.
        devices: of every process to be started here; under torchrun, of this process alone.
        settings: of every process.

    Attributes:
        forwards: number of forward passes so far.
    """

    def __init__(self, *, size: int, devices: Sequence[torch.device], settings: dict) -> None:
        self.size, self.devices, self.settings = size, devices, settings
        self.forwards = 0
        self._workers: dict[int, subprocess.Popen] = {}
        self._store: dist.Store | None = None
        self._link: Link | None = None

    @property
    def link(self) -> Link:
        """The connection to the other processes, which are started if necessary."""
        if self._link is None:
            self._start()
        return self._link

    def join(self) -> None:
        """Meet the processes that torchrun has started."""
        self._store = _store_of_job()
        self._connect()

    def _start(self) -> None:
        self._store = dist.TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
        command = [sys.executable, "-m", "training.worker", str(self._store.port)]
        for rank, device in enumerate(self.devices[1:], 1):
            self._workers[rank] = subprocess.Popen(
                [*command, str(rank), str(self.size), str(device)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
            )
        # A process that ends before they meet would be missed only after minutes.
        while not self._store.check([ready_key(rank) for rank in self._workers]):
            if any(worker.poll() is not None for worker in self._workers.values()):
                self._report_loss()
            time.sleep(0.05)
        self._connect()

    def _connect(self) -> None:
        with self.watching():
            self._link = Link(rank=0, size=self.size, device=self.devices[0], store=self._store)
            self._link.message({"do": "set_up", **self.settings})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Report the end of another process as such, instead of the lost connection."""
        try:
            yield
        except RuntimeError as error:
            if is_loss(error):
                self._report_loss(error)
            raise

    def _report_loss(self, error: Exception | None = None) -> NoReturn:
        """Say which process has ended, and how.

        Raises:
            UserError: if it was killed.
            RuntimeError: if it failed, with what it left in the store.
        """
        for rank in range(1, self.size):
            if self._store.check([failure_key(rank)]):
                trace = self._store.get(failure_key(rank)).decode()
                raise RuntimeError(f"process {rank + 1} of {self.size} failed:\n{trace}") from error
        end = time.monotonic() + _DYING
        while self._workers and time.monotonic() < end:
            for rank, worker in self._workers.items():
                if (worker.poll() or 0) < 0:
                    how = f"was killed by signal {-worker.returncode}"
                    raise UserError(
                        f"process {rank + 1} of {self.size} of this task {how}: {_REMEDY}"
                    ) from error
            time.sleep(0.05)
        raise UserError(_loss(self.size)) from error

    def dismiss(self) -> None:
        """Let the other processes end: all is done."""
        if self._link is not None:
            self._link.message({"do": "stop"})
            for worker in self._workers.values():
                worker.wait()
            self._link.close()

    def abandon(self) -> None:
        """End what this process has started, after an error."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait()
        if self._link is not None and self._link.device.type == "cpu":  # NCCL would wait for the others
            self._link.close()


class Split:
    """A module whose forward passes the processes share; see `split`."""

    def __init__(self, team: Team, module: nn.Module, *, trained: bool) -> None:
        self.team = team
        self.module = module
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        packed, tensors = pack(module)
        with team.watching():
            team.link.message({"do": "load", "packed": packed})
            team.link.broadcast(tensors)
        self.trained = [number for number, value in enumerate(tensors) if trained and value.requires_grad]
        self.changing = [tensors[number] for number in self.trained]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs of a batch."""
        if len(inputs) < ROWS * self.team.size:
            return self.module(inputs)
        if torch.is_grad_enabled():
            return _Shared.apply(self, inputs, *self.parameters)
        with self.team.watching():
            return self.team.link.gather(self.forward(inputs), len(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Begin a forward pass in all processes; return the outputs of this one."""
        link, total = self.team.link, len(inputs)
        self.team.forwards += 1
        link.message(
            {
                "do": "forward",
                "total": total,
                "shape": inputs.shape[1:],
                "dtype": inputs.dtype,
                "trained": self.trained,
                "gradients": torch.is_grad_enabled(),
                "autocast": autocast_state(link.device),
                "random": random_state(link.device) if self.module.training else None,
            }
        )
        link.broadcast(self.changing)
        rows = link.scatter(inputs)
        with link.rows(total):
            return self.module(rows)


class _Shared(torch.autograd.Function):
    """A forward pass and its backward passes, shared by all processes."""

    @staticmethod
    def forward(ctx, split: Split, inputs: Tensor, *parameters: Tensor) -> Tensor:
        ctx.split, ctx.total = split, len(inputs)
        with split.team.watching(), torch.enable_grad():
            ctx.output = split.forward(inputs)
            ctx.number = split.team.forwards
            return split.team.link.gather(ctx.output.detach(), ctx.total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        team = ctx.split.team
        if ctx.number != team.forwards:
            raise RuntimeError("a backward pass must follow its own forward pass")
        with team.watching():
            team.link.message({"do": "backward", "total": ctx.total})
            rows = team.link.scatter(grad)
            gradients, used = gradients_of(ctx.split.module, ctx.output, rows)
            team.link.reduce(used)
        return None, None, *gradients
