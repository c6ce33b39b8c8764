"""SphereNet-20: its layers, its angular softmax, and what is private to a task."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import models
from methods.cpg import CPG, weight_optimizer
from methods.ownership import SharedNetwork
from models.layers import PLAIN
from models.spherenet import AngularHead, margined, spherenet20

BUILD = partial(models.ARCHITECTURES["spherenet20"], size=16)
NARROW = 0.125


def a_softmax(features, weight, labels, *, factor: float) -> float:
    """The paper's loss, computed with loops and angles."""
    total = 0.0
    for x, label in zip(features.tolist(), labels.tolist(), strict=True):
        norm = math.hypot(*x)
        logits = []
        for number, row in enumerate(weight.tolist()):
            dot = sum(a * b for a, b in zip(x, row, strict=True)) / norm / math.hypot(*row)
            angle = math.acos(max(-1.0, min(1.0, dot)))
            k = min(int(angle * 4 / math.pi), 3)
            psi = (-1) ** k * math.cos(4 * angle) - 2 * k
            cosine = (factor * math.cos(angle) + psi) / (1 + factor) if number == label else math.cos(angle)
            logits.append(norm * cosine)
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize(("steps", "factor"), [(0, 1000.0), (100, 1000 / 13), (10**6, 5.0)])
def test_the_loss_is_a_softmax_with_a_falling_lambda(steps, factor):
    torch.manual_seed(0)
    head = AngularHead(6, 5)
    head.steps.fill_(steps)
    features, labels = torch.randn(9, 6), torch.randint(5, (9,))
    loss = head.loss(head(features), labels)
    assert loss.item() == pytest.approx(a_softmax(features, head.weight, labels, factor=factor), rel=1e-4)
    assert head.steps == steps + 1


def test_the_margin_decreases_from_1_to_minus_7_and_has_gradients():
    angles = torch.linspace(0.01, math.pi - 0.01, 2000, dtype=torch.float64)
    cosine = angles.cos().requires_grad_()
    values = margined(cosine)
    assert (values.diff() < 0).all()
    assert values.diff().abs().max() < 0.02, "ψ is continuous"
    assert margined(torch.tensor([1.0, -1.0])).tolist() == [1.0, -7.0]
    values.sum().backward()
    assert cosine.grad.isfinite().all()


def test_training_and_evaluation_predict_the_same_class_and_evaluation_has_no_margin():
    torch.manual_seed(0)
    head = AngularHead(6, 5)
    features, labels = torch.randn(50, 6), torch.randint(5, (50,))
    trained = head(features)
    plain = head.eval()(features)
    assert plain.shape == (50, 5)
    assert torch.equal(trained.argmax(1), plain.argmax(1))
    assert torch.equal(head.loss(plain, labels), cross_entropy(plain, labels))
    assert head.steps == 0


def test_20_convolutions_leave_49_pixels_for_the_linear():
    with torch.device("meta"):
        network = spherenet20(layers=PLAIN)
    weights = [layer for layer in network.features.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(weights) == 20 + 1
    assert weights[-1].weight.shape == (512, 512 * 49)


def train(shared: SharedNetwork, *, steps: int) -> float:
    """Train a few steps; returns the last loss."""
    optimizer = weight_optimizer(shared)
    optimizer.param_groups[0]["lr"] = 0.05
    method = CPG(shared=shared, weight_decay=0.0, freeze_after=10)
    method.before_task()
    shared.network.train()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.arange(8) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        loss = method.loss(shared.network(inputs), labels)
        loss.backward()
        method.after_backward()
        optimizer.step()
    return loss.item()


def test_it_learns_and_slopes_and_steps_belong_to_one_task():
    torch.manual_seed(0)
    shared = SharedNetwork(build=BUILD, width=NARROW)
    shared.begin_task("first", num_classes=4)
    before = train(shared, steps=1)
    assert train(shared, steps=30) < 0.8 * before
    shared.release({name: torch.rand_like(layer.weight) < 0.5 for name, layer in shared.layers().items()})
    shared.begin_task("second", num_classes=4)
    train(shared, steps=3)
    info = shared.payload()["shared_layer_info"]
    slopes = [info[task]["prelu_layer_weight"] for task in ("first", "second")]
    assert len(slopes[0]) == 4 + 2 * 8
    assert not any(torch.equal(slopes[0][name], slopes[1][name]) for name in slopes[0])

    again = SharedNetwork.from_payload(shared.payload(), build=BUILD, source=Path("x"))
    assert [head.steps.item() for head in again.network.classifiers] == [31, 3]
    inputs = torch.randn(3, 3, 16, 16)
    for task in ("first", "second"):
        assert torch.equal(again.as_task(task)(inputs), shared.as_task(task)(inputs))
    assert train(again, steps=2) == train(shared, steps=2)
