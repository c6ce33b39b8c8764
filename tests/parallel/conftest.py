"""Fixtures of the tests of one task on several processes, which compute on the CPU."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from data.loading import Normaliser
from training.parallel import processes

# With PARALLEL_TESTS=all, four processes too, and torchrun.
ALL = os.environ.get("PARALLEL_TESTS") == "all"
COUNTS = (2, 4) if ALL else (2,)


def together(count: int) -> AbstractContextManager:
    """The context in which `count` processes share the computing."""
    return processes(count=count, device="cpu", threads=1, precision="fp32", nondeterministic=False)


def doubled(normalise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: normalise(*arguments).double()


@pytest.fixture(scope="module")
def double() -> Iterator[None]:
    """Compute in float64, so that rounding does not hide a difference."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Normaliser, "__call__", doubled(Normaliser.__call__))
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)
