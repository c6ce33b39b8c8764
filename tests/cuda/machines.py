"""The machines that a check runs on: a CPU, a GPU that need not exist, and a real one.

Under FakeTensorMode, tensors exist on a GPU without one. There, operations on tensors of different devices
raise, and so does every read by the host: `.item()`, `nonzero`, a branch on a value. (Copies between devices
are refused on top of that.) A check builds its
networks and methods `per_task`, where reads are allowed, and runs its `steps`, where they are not. The reads
per task are recorded on a CPU and replayed on the fake GPU.

Autograd cannot run on a fake GPU, so backward passes run on device `meta`. It has no autocast: with bf16,
they run on a fake CPU, which shows reads but no tensors of the wrong device.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.loop import Compute, Learner

_READS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__)


@dataclass
class Machine:
    """A real GPU: `torch.cuda.set_sync_debug_mode` raises where a step waits for it.

    Attributes:
        reads: Results of all reads so far, in order.
    """

    compute: Compute
    reads: list = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.compute.device

    def read(self, read: Callable[[], object]) -> object:
        """The result of a read by the host."""
        return read()

    def outside(self) -> AbstractContextManager:
        """Work on the CPU, which is slow under FakeTensorMode."""
        return nullcontext()

    def learner(self, learner: Learner) -> Learner:
        """A learner that runs on this machine."""
        return learner

    @contextmanager
    def per_task(self) -> Iterator[None]:
        """Work that may read from the device and copy to it."""
        with _Reads(self):
            yield

    @contextmanager
    def steps(self, *, reads: int = 0) -> Iterator[None]:
        """Work that waits for the device in exactly `reads` reads, and in copies to it if it reads."""
        before = len(self.reads)
        if reads:
            with _Reads(self, limit=reads):
                yield
        else:
            with self.no_waits():
                yield
        assert len(self.reads) - before == reads

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Work that never waits for the device."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class RecordingCPU(Machine):
    """A CPU."""

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        with _Reads(self, limit=0):
            yield


@dataclass
class FakeGPU(Machine):
    """A device under FakeTensorMode.

    Attributes:
        answers: Results of the reads, as a `RecordingCPU` recorded them.
    """

    answers: list = field(default_factory=list)

    def read(self, read: Callable[[], object]) -> object:
        return self.answers[len(self.reads)]

    def outside(self) -> AbstractContextManager:
        return unset_fake_temporarily()

    def learner(self, learner: Learner) -> Learner:
        for optimizer in learner.optimizers.values():
            for group in optimizer.param_groups:
                group["fused"] = False  # torch has no fake fused kernels
        return learner

    def no_waits(self) -> AbstractContextManager:
        return _Copies()  # reads raise by themselves


class _Copies(TorchDispatchMode):
    """Refuses copies between devices, which FakeTensorMode allows: explicit ones, and indices on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {
            value.device.type
            for value in tree_leaves((args, kwargs, result))
            # Kernels take scalars on the CPU as arguments.
            if isinstance(value, Tensor) and (value.dim() > 0 or value.device.type != "cpu")
        }
        if isinstance(result, Tensor):  # but a scalar copied to the CPU waits
            devices.add(result.device.type)
        assert len(devices) < 2, f"{func} copies between devices {', '.join(sorted(devices))}"
        return result


class _Reads(TorchFunctionMode):
    """Passes the host's reads of tensors on to a machine."""

    def __init__(self, machine: Machine, *, limit: int | None = None) -> None:
        super().__init__()
        self.machine = machine
        self.last = None if limit is None else len(machine.reads) + limit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # A fake tensor of known value is on the host: the step counter of an optimizer that is not fused.
        steps = self.last is not None
        if func not in _READS or (steps and getattr(args[0], "constant", None) is not None):
            return func(*args, **(kwargs or {}))
        assert not steps or len(self.machine.reads) < self.last, f"{func.__name__} reads a tensor"
        result = self.machine.read(lambda: func(*args))
        self.machine.reads.append(result)
        return result


Check = Callable[[Machine], None]


def run_faked(check: Check, *, precision: str = "fp32", backward: bool = True, reads: bool = True) -> None:
    """Run a check on a fake GPU; on a CPU before it, unless it reads nothing."""
    cpu = RecordingCPU(Compute(device=torch.device("cpu"), precision=precision))
    if reads:
        check(cpu)
    device = ("cpu" if precision == "bf16" else "meta") if backward else "cuda"
    gpu = FakeGPU(Compute(device=torch.device(device), precision=precision), answers=cpu.reads)
    with FakeTensorMode(allow_non_fake_inputs=True), _patched_torch():
        check(gpu)
    assert len(gpu.reads) == len(gpu.answers)


def run_for_real(check: Check, *, precision: str = "fp32", backward: bool = True, reads: bool = True) -> None:
    """Run a check on this machine's GPU; arguments as for `run_faked`."""
    check(Machine(Compute(device=torch.device("cuda"), precision=precision)))


@contextmanager
def _patched_torch() -> Iterator[None]:
    """Let torch autocast on a GPU that does not exist, and move and copy modules of fake tensors."""
    with (
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(FakeTensor, "tolist", Tensor.tolist),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(Tensor, "__deepcopy__", _deepcopy),
    ):
        yield


def _apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and (converted := convert(parameter)) is not parameter:
                part._parameters[name] = nn.Parameter(converted.detach(), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = convert(buffer)
    return module


def _deepcopy(tensor: Tensor, memo: dict) -> Tensor:
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]
