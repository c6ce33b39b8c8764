"""Device, numerics, threads, memory, clocks and random generators of a process."""

import ctypes
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from utils import logs
from utils.errors import UserError
from utils.precisions import PRECISIONS


def set_up_process(*, threads: int, precision: str, nondeterministic: bool) -> None:
    """Prepare a process that computes: terminal log, CPU threads, memory allocator and numerics.

    Args:
        threads: CPU threads; 0 keeps PyTorch's choice.
        precision, nondeterministic: see `set_numerics`.
    """
    logs.to_terminal()
    set_threads(threads)
    reuse_memory()
    set_numerics(precision=precision, nondeterministic=nondeterministic)


def set_numerics(*, precision: str, nondeterministic: bool = False) -> None:
    """Set the fp32 precision and the determinism of CUDA operations, for the whole process.

    By default, PyTorch runs fp32 convolutions in TF32 but fp32 matrix products in full precision, and cuDNN
    may use non-deterministic algorithms, so that one seed gives different weights in every run. Operations
    outside cuDNN stay as they are: the backward pass of fused attention, for one, is not deterministic.
    Nothing changes on a CPU.

    Args:
        precision: one of `PRECISIONS`. With `fp32`, matrix products, convolutions and recurrent layers run
            in full precision; with `tf32`, they may use TF32. With `bf16`, `autocast` runs most operations
            in bfloat16, and the others run in full precision.
        nondeterministic: let cuDNN autotune and use non-deterministic algorithms, which is faster.

    Raises:
        ValueError: if `precision` is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    tf32 = precision == "tf32"
    # torch.export reads PyTorch's older flags, and raises if they contradict fp32_precision. So set both.
    with warnings.catch_warnings(action="ignore"):  # some versions warn that the older flags are deprecated
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    for operations in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        operations.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cudnn.deterministic = not nondeterministic
    torch.backends.cudnn.benchmark = nondeterministic


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:<i>` names.

    Raises:
        UserError: if the name is unknown, or this machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:<i>") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:<i>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use auto, cpu or one of those"
        )
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: bfloat16 autocast for `bf16`, none for `fp32` and `tf32`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def set_threads(threads: int) -> None:
    """Set the number of CPU threads; 0 keeps PyTorch's choice."""
    if threads > 0:
        torch.set_num_threads(threads)


def synchronised_clock(
    device: torch.device, *, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """A clock, in seconds, that waits for the work queued on `device` before it is read.

    CUDA kernels run asynchronously: without waiting, a time covers only how long they took to queue.

    Args:
        clock: the clock to read; `time.process_time` counts only the time that this process computes.
    """

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    return read


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of PyTorch's default generators, which draw initial weights and dropout."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore a state that `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def reuse_memory() -> None:
    """Make glibc keep freed memory for the next step instead of returning it to the kernel.

    Otherwise the gradients and activations of a large network cause page faults in every step. Without
    glibc, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    for parameter, value in ((mmap_threshold, 1 << 30), (trim_threshold, 1 << 30), (top_pad, 1 << 26)):
        mallopt(parameter, value)
