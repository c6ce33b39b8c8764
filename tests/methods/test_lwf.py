"""LwF's distillation, against slow loops in double precision."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.approaches.base import Settings, TaskPasses
from methods.approaches.lwf import Distillation, LwF, LwFOptions
from models.alexnet import alexnet
from models.layers import PLAIN
from utils.errors import UserError

LAMBDA, TEMPERATURE = 3.0, 2.0
SIZES = (3, 2, 4)


@pytest.fixture
def lwf() -> LwF:
    """Two tasks learned, and a third one begun."""
    torch.manual_seed(0)
    approach = LwF(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.5, 0.5)),
        total=3,
        settings=Settings(),
        options=LwFOptions(lwf_lambda=LAMBDA, lwf_temperature=TEMPERATURE),
    )
    for number, size in enumerate(SIZES):
        approach.begin_task(f"task_{number}", size)
    with torch.no_grad():
        for head in approach.network.classifiers:
            head.weight.mul_(100)  # so that the outputs differ by class
    return approach


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(10, 3, 16, 16, generator=generator), torch.arange(10) % SIZES[-1]


def method_of(lwf: LwF) -> Distillation:
    inputs, labels = samples()
    passes = TaskPasses(
        batches=lambda size: zip(inputs.split(size), labels.split(size), strict=True), autocast=nullcontext()
    )
    method = lwf.method(passes)
    method.before_task()
    return method


def outputs(lwf: LwF, inputs: Tensor) -> list[Tensor]:
    """The logits of each head, in double precision."""
    features = lwf.network.features(inputs)
    return [head(features).double() for head in lwf.network.classifiers]


def test_the_loss_distils_the_recorded_outputs_of_the_earlier_heads(lwf: LwF) -> None:
    inputs, labels = samples()
    lwf.network.eval()
    with torch.no_grad():
        recorded = outputs(lwf, inputs)[:-1]
    lwf.network.train()
    method = method_of(lwf)
    for epoch in (1, 2):
        method.before_epoch(epoch)
        with torch.no_grad():  # the recorded outputs stay those before the task
            for value in lwf.network.parameters():
                value.add_(torch.randn_like(value), alpha=0.02)
        lwf.network.eval()
        for part in (slice(0, 6), slice(6, 10)):
            logits = method.select(lwf.network(inputs[part]), labels[part])
            found = method.loss(logits, labels[part])
            *earlier, newest = outputs(lwf, inputs[part])
            expected = cross_entropy(newest, labels[part])
            for current, old in zip(earlier, recorded, strict=True):
                for row, target in zip(current, old[part], strict=True):
                    wanted = (target / TEMPERATURE).exp() / (target / TEMPERATURE).exp().sum()
                    given = (row / TEMPERATURE).exp() / (row / TEMPERATURE).exp().sum()
                    expected = expected - LAMBDA * (wanted * given.log()).sum() / len(current)
            assert found.item() == pytest.approx(expected.item(), rel=1e-4)
            assert logits.shape[1] == SIZES[-1]
        lwf.network.train()


def test_distillation_pulls_the_earlier_heads_back(lwf: LwF) -> None:
    """Without the newest task's own loss, the recorded outputs are a minimum."""
    method = method_of(lwf)
    inputs, labels = samples()
    method.before_epoch(1)
    lwf.network.eval()
    logits = method.select(lwf.network(inputs), labels)
    (method.loss(logits, labels) - cross_entropy(logits, labels)).backward()
    assert all(value.grad.abs().max() < 1e-4 for value in lwf.network.features.parameters())


def test_recorded_outputs_survive_a_resumption(lwf: LwF) -> None:
    method = method_of(lwf)
    method.before_epoch(1)
    state = method.state_dict()
    with torch.no_grad():
        for value in lwf.network.parameters():
            value.mul_(2)
    again = method_of(lwf)
    again.load_state_dict(state)
    again.before_epoch(2)
    assert again.targets.equal(method.targets)
    with pytest.raises(UserError, match="lacks the recorded outputs"):
        again.load_state_dict({})


def test_a_first_task_is_plain_training() -> None:
    approach = LwF(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16), total=2, settings=Settings()
    )
    assert (approach.options.lwf_lambda, approach.options.lwf_temperature) == (1.0, 2.0)
    approach.begin_task("first", 4)
    method = method_of(approach)
    method.before_epoch(1)
    inputs, labels = samples()
    logits = approach.network(inputs)
    assert method.loss(method.select(logits, labels), labels).equal(cross_entropy(logits, labels))
    assert method.state_dict() == {}
