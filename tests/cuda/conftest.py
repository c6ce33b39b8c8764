"""Fixtures of the tests for GPUs."""

from collections.abc import Callable

import pytest
import torch

from tests.cuda.machines import run_faked, run_for_real


@pytest.fixture
def cuda_device() -> torch.device:
    """A real GPU; tests that need one are skipped without it."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is available")
    return torch.device("cuda")


@pytest.fixture(params=["fake", "real"])
def run_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a check on a fake GPU and, where there is one, on a real GPU."""
    if request.param == "fake":
        return run_faked
    request.getfixturevalue("cuda_device")
    return run_for_real
