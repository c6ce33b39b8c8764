"""Numerics, clocks and start-up of a process, as far as they can be tested without a GPU."""

import logging
import time
from collections.abc import Iterator

import pytest
import torch
from torch.backends import cuda, cudnn

from utils import runtime
from utils.precisions import PRECISIONS
from utils.runtime import autocast, set_numerics, set_up_process, synchronised_clock


@pytest.fixture(autouse=True)
def defaults_afterwards() -> Iterator[None]:
    yield
    set_numerics(precision="fp32")


@pytest.mark.parametrize(("precision", "internal"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_matrix_products_convolutions_and_recurrent_layers_share_one_fp32_precision(
    precision: str, internal: str
) -> None:
    # Starting from the opposite shows that nothing is left over.
    set_numerics(precision="fp32" if precision == "tf32" else "tf32")
    set_numerics(precision=precision)
    for operations in (cuda.matmul, cudnn.conv, cudnn.rnn):
        assert operations.fp32_precision == internal
    # PyTorch's older flags agree; otherwise reading them raises.
    assert cuda.matmul.allow_tf32 == cudnn.allow_tf32 == (internal == "tf32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_can_be_exported_after_the_numerics_are_set(precision: str) -> None:
    set_numerics(precision=precision)
    program = torch.export.export(torch.nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 2, 2),))
    assert program.module()(torch.zeros(1, 1, 2, 2)).shape == (1, 1, 2, 2)


def test_cudnn_is_deterministic_and_does_not_autotune_unless_requested() -> None:
    set_numerics(precision="fp32", nondeterministic=True)
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    set_numerics(precision="fp32")
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)


def test_an_unknown_precision_is_rejected() -> None:
    with pytest.raises(ValueError, match="'fp16': use one of fp32, tf32, bf16"):
        set_numerics(precision="fp16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_bf16_autocasts(precision: str) -> None:
    with autocast(torch.device("cpu"), precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_set_up_logs_to_the_terminal_and_sets_threads_memory_and_numerics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(runtime, "reuse_memory", lambda: calls.append("memory"))
    set_up_process(threads=2, precision="tf32", nondeterministic=True)
    assert torch.get_num_threads() == 2
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == ("tf32", True)
    assert calls == ["memory"]
    logging.info("started")
    assert " - root - INFO - started" in capsys.readouterr().err


def test_the_clock_waits_for_the_device_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))

    def clock() -> float:
        events.append("read")
        return 5.0

    assert synchronised_clock(torch.device("cuda", 1), clock=clock)() == 5.0
    assert events == ["cuda:1", "read"]
    events.clear()
    assert synchronised_clock(torch.device("cpu"), clock=clock)() == 5.0
    assert events == ["read"]


def test_the_clock_measures_seconds() -> None:
    clock = synchronised_clock(torch.device("cpu"))
    begun = clock()
    time.sleep(0.02)
    assert 0.02 <= clock() - begun < 5
