"""Device, precision, threads and generators of a process."""

import ctypes
from contextlib import AbstractContextManager, nullcontext

import torch

from utils.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:<i>` as a device.

    Raises:
        UserError: if the device is not there.
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
    """The context of a forward pass: bfloat16 autocast for `bf16`, nothing for `fp32`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def set_threads(threads: int) -> None:
    """Pin the number of CPU threads; 0 leaves torch's choice."""
    if threads > 0:
        torch.set_num_threads(threads)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's default generators (initialisation, dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def reuse_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the kernel.

    The gradients and activations of a large network otherwise cost page faults in every step. The bash
    stages ask for the same through the environment. Elsewhere than on Linux nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    for parameter, value in ((mmap_threshold, 1 << 30), (trim_threshold, 1 << 30), (top_pad, 1 << 26)):
        mallopt(parameter, value)
