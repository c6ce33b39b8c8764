"""EWC's Fisher information and penalty, against slow loops in double precision."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.approaches.base import Settings, TaskPasses
from methods.approaches.ewc import EWC, EWCOptions
from models.alexnet import alexnet
from models.layers import PLAIN
from models.lenet5 import lenet5
from training.method import Method

LAMBDA = 10_000.0
COUNT = 50  # not a multiple of the Fisher pass's batch size


def samples(seed: int, *, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(COUNT, 3, size, size, generator=generator)
    return images, torch.randint(0, 4, (COUNT,), generator=generator)


def method_for(ewc: EWC, inputs: Tensor, labels: Tensor) -> Method:
    passes = TaskPasses(
        batches=lambda size: zip(inputs.split(size), labels.split(size), strict=True),
        autocast=nullcontext(),
    )
    return ewc.method(passes)


def loop_fisher(network: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The squared mean gradient of every 20 samples, averaged over the samples."""
    network = copy.deepcopy(network).double()
    totals = {name: torch.zeros_like(value) for name, value in network.features.named_parameters()}
    for start in range(0, COUNT, 20):
        part = slice(start, min(start + 20, COUNT))
        network.zero_grad()
        cross_entropy(network(inputs[part].double()), labels[part]).backward()
        for name, value in network.features.named_parameters():
            totals[name] += (part.stop - part.start) * value.grad**2
    return {name: total / COUNT for name, total in totals.items()}


def learn(ewc: EWC, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Begin a task, move all weights at random, and end it; return its Fisher information and w*."""
    ewc.begin_task(f"task_{number}", 4)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for value in ewc.network.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    inputs, labels = samples(number)
    fisher = loop_fisher(ewc.network, inputs, labels)
    anchors = {name: value.detach().double() for name, value in ewc.feature_parameters().items()}
    anchors = copy.deepcopy(anchors)
    method_for(ewc, inputs, labels).after_task()
    return fisher, anchors


@pytest.fixture
def ewc() -> EWC:
    torch.manual_seed(0)
    return EWC(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        total=4,
        settings=Settings(),
        options=EWCOptions(ewc_lambda=LAMBDA),
    )


def test_fisher_information_is_the_mean_over_samples_and_tasks(ewc: EWC) -> None:
    learned = []
    for number in range(3):
        learned.append(learn(ewc, number)[0])
        for name, found in ewc.fisher.items():
            expected = sum(fisher[name] for fisher in learned) / len(learned)
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-9)


def test_the_penalty_adds_its_gradient_to_that_of_the_loss(ewc: EWC) -> None:
    """λ/2 · Σ F (w − w*)², with F of all tasks learned and w* after the last one, by autograd."""
    learned = [learn(ewc, number) for number in range(2)]
    ewc.begin_task("newest", 4)
    with torch.no_grad():
        for value in ewc.network.features.parameters():
            value.add_(torch.randn_like(value), alpha=0.05)
    inputs, labels = samples(9)
    cross_entropy(ewc.network(inputs), labels).backward()
    plain = {name: value.grad.double() for name, value in ewc.network.classifiers[-1].named_parameters()}
    loss_gradients = {name: value.grad.double() for name, value in ewc.feature_parameters().items()}
    method_for(ewc, inputs, labels).after_backward()

    weights = {name: value.detach().double() for name, value in ewc.feature_parameters().items()}
    penalty = torch.zeros((), dtype=torch.float64)
    for name, weight in weights.items():
        weight.requires_grad_()
        fisher = (learned[0][0][name] + learned[1][0][name]) / 2
        penalty += LAMBDA / 2 * (fisher * (weight - learned[1][1][name]) ** 2).sum()
    penalty.backward()
    for name, value in ewc.feature_parameters().items():
        pull = value.grad.double() - loss_gradients[name]
        torch.testing.assert_close(pull, weights[name].grad, rtol=2e-3, atol=1e-5)
        assert pull.abs().max() > 1e-2, "too small to measure"
        assert not value.grad.requires_grad
    for name, value in ewc.network.classifiers[-1].named_parameters():
        assert value.grad.double().equal(plain[name]), "the penalty must not reach the head"


def test_the_default_weight_of_the_penalty_is_that_of_the_experiments() -> None:
    assert EWCOptions().ewc_lambda == 5000.0


def test_the_first_task_has_no_penalty(ewc: EWC) -> None:
    ewc.begin_task("first", 4)
    inputs, labels = samples(0)
    cross_entropy(ewc.network(inputs), labels).backward()
    before = {name: value.grad.clone() for name, value in ewc.feature_parameters().items()}
    method_for(ewc, inputs, labels).after_backward()
    assert all(value.grad.equal(before[name]) for name, value in ewc.feature_parameters().items())


def test_the_pull_towards_the_old_weights_lowers_the_penalty(ewc: EWC) -> None:
    fisher, anchors = learn(ewc, 0)
    ewc.begin_task("newest", 4)
    for value in ewc.network.parameters():
        value.grad = torch.zeros_like(value)
    with torch.no_grad():
        for value in ewc.feature_parameters().values():
            value.add_(0.1)
    method_for(ewc, *samples(1)).after_backward()
    for name, value in ewc.feature_parameters().items():
        away = value.detach().double() - anchors[name]
        assert (value.grad * away >= 0).all(), "gradient descent must move the weight back"
        important = fisher[name] > fisher[name].max() / 2
        assert (value.grad * away)[important].gt(0).all()


def test_the_fisher_pass_uses_the_learned_statistics_of_batch_norms() -> None:
    torch.manual_seed(0)
    ewc = EWC(
        build=lambda width: lenet5(layers=PLAIN, width=width, batch_norm=True),
        total=2,
        settings=Settings(),
    )
    ewc.begin_task("first", 4)
    inputs, labels = samples(0, size=32)
    buffers = {name: value.clone() for name, value in ewc.network.named_buffers()}
    expected = loop_fisher(ewc.network.eval(), inputs, labels)
    ewc.network.train()
    method_for(ewc, inputs, labels).after_task()
    assert all(value.equal(buffers[name]) for name, value in ewc.network.named_buffers())
    for name, found in ewc.fisher.items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-2, atol=1e-8)
