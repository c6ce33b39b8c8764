"""SPG's importance, soft-masked gradients, dropout and network, against plain loops."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d

from methods.approaches.base import Settings, TaskPasses
from methods.approaches.spg import SPG, SoftMaskedSGD, normalised_importance, soft_masks, task_importance
from models.alexnet import alexnet
from models.dropout import ReluDropout, ReluDropoutMaxPool2d, drop_
from models.layers import PLAIN
from models.lenet5 import lenet5

NO_CONTEXT = contextlib.nullcontext()


def small_network(*, heads=3, dropout=(0.0, 0.0), seed=0):
    torch.manual_seed(seed)
    network = alexnet(layers=PLAIN, width=1 / 16, size=16, dropout=dropout)
    for _ in range(heads):
        network.add_head(4)
    return network


def samples(count=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.randint(
        0, 4, (count,), generator=generator
    )


def in_batches(inputs, labels, size):
    return lambda: zip(inputs.split(size), labels.split(size), strict=True)


# Importance


def loop_importance(gradient: torch.Tensor) -> list[float]:
    """γ of one tensor, element by element in double precision."""
    values = [float(value) for value in gradient.flatten()]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    if variance == 0:
        return [0.0] * len(values)
    return [abs(math.tanh((value - mean) / math.sqrt(variance))) for value in values]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5])
def test_normalised_importance_matches_the_loop(scale):
    gradient = scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) + 0.3 * scale
    expected = torch.tensor(loop_importance(gradient.double()))
    torch.testing.assert_close(normalised_importance(gradient).flatten(), expected, atol=1e-5, rtol=1e-5)


def test_importance_of_a_constant_gradient_is_zero():
    assert normalised_importance(torch.zeros(3, 4)).eq(0).all()
    assert normalised_importance(torch.zeros(1)).eq(0).all()
    assert normalised_importance(torch.tensor([math.nan, 1.0])).eq(0).all()


def test_task_importance_matches_the_loop():
    """Maximum over heads: cross-entropy for the newest head, sums of logits for the others."""
    network = small_network()
    inputs, labels = samples()
    found = task_importance(network=network, batches=in_batches(inputs, labels, 16), autocast=NO_CONTEXT)

    network = network.double()
    expected = {name: None for name, _ in network.features.named_parameters()}
    for tau in range(3):
        network.zero_grad()
        for image, label in zip(inputs.double(), labels, strict=True):
            logits = network.classifiers[tau](network.features(image[None]))
            loss = cross_entropy(logits, label[None]) if tau == 2 else logits.sum()
            loss.backward()
        for name, parameter in network.features.named_parameters():
            gamma = torch.tensor(loop_importance(parameter.grad), dtype=torch.float64).view_as(parameter)
            expected[name] = gamma if expected[name] is None else torch.maximum(expected[name], gamma)
    for name, gamma in expected.items():
        torch.testing.assert_close(found[name].double(), gamma, atol=2e-4, rtol=1e-3)
        assert found[name].amax() <= 1


def test_importance_does_not_depend_on_heads_at_once(monkeypatch):
    network = small_network(heads=5)
    batches = in_batches(*samples(), 20)
    together = task_importance(network=network, batches=batches, autocast=NO_CONTEXT)
    monkeypatch.setattr("methods.approaches.spg.HEADS_AT_ONCE", 2)
    apart = task_importance(network=network, batches=batches, autocast=NO_CONTEXT)
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, atol=1e-5, rtol=1e-4)


def spg_after_tasks(tasks=2, importance=None):
    torch.manual_seed(0)
    spg = SPG(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        total=5,
        settings=Settings(),
    )
    for number in range(tasks):
        spg.begin_task(f"task_{number}", 4)
    if importance is not None:
        spg.importance = importance(spg)
    return spg


def test_importance_accumulates_as_the_maximum():
    spg = spg_after_tasks(
        importance=lambda spg: {
            name: torch.full_like(value, 0.5) for name, value in spg.feature_parameters().items()
        }
    )
    inputs, labels = samples()
    newest = task_importance(
        network=spg.network, batches=in_batches(inputs, labels, 512), autocast=NO_CONTEXT
    )
    passes = TaskPasses(batches=lambda size: in_batches(inputs, labels, size)(), autocast=NO_CONTEXT)
    spg.method(passes).after_task()
    for name, value in spg.importance.items():
        torch.testing.assert_close(value, newest[name].clamp(min=0.5))


def test_importance_uses_the_learned_statistics_of_batch_norms():
    """With batch statistics, many gradients would vanish, and the pass would move the statistics."""
    torch.manual_seed(0)
    spg = SPG(
        build=lambda width: lenet5(layers=PLAIN, width=width, batch_norm=True), total=2, settings=Settings()
    )
    spg.begin_task("first", 4)
    generator = torch.Generator().manual_seed(1)
    inputs = 2 + torch.randn(48, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 4, (48,), generator=generator)
    spg.network.train()
    spg.network(inputs)  # learns statistics that are not those of a batch
    buffers = {name: value.clone() for name, value in spg.network.named_buffers()}

    expected = task_importance(
        network=spg.network.eval(), batches=in_batches(inputs, labels, 512), autocast=NO_CONTEXT
    )
    spg.network.train()
    passes = TaskPasses(batches=lambda size: in_batches(inputs, labels, size)(), autocast=NO_CONTEXT)
    spg.method(passes).after_task()
    for name, value in spg.importance.items():
        torch.testing.assert_close(value, expected[name])
    assert all(value.equal(buffers[name]) for name, value in spg.network.named_buffers())


def test_importance_is_measured_with_dropout():
    def importance(seed):
        spg = SPG(
            build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.3, 0.4)),
            total=2,
            settings=Settings(),
        )
        torch.manual_seed(0)
        spg.network = small_network(heads=0, dropout=(0.3, 0.4))
        spg.begin_task("first", 4)
        spg.network.eval()
        passes = TaskPasses(batches=lambda size: in_batches(*samples(), size)(), autocast=NO_CONTEXT)
        torch.manual_seed(seed)
        spg.method(passes).after_task()
        return spg.importance["conv1.weight"]

    assert importance(1).equal(importance(1))
    assert not importance(1).equal(importance(2))


# Soft masks


def step(spg, lr=0.1):
    """Take one step with the approach's own optimizer; return each parameter's gradient and change."""
    inputs, labels = samples()
    optimizer = spg.optimizer()
    optimizer.param_groups[0]["lr"] = lr
    before = {name: value.detach().clone() for name, value in spg.network.named_parameters()}
    cross_entropy(spg.network(inputs), labels).backward()
    optimizer.step()
    named = dict(spg.network.named_parameters())
    gradients = {name: value.grad for name, value in named.items()}
    return gradients, {name: (named[name].detach() - before[name]).double() for name in named}


def random_importance(spg):
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(value.shape, generator=generator) for name, value in spg.feature_parameters().items()
    }


def test_soft_masked_step_matches_the_loop():
    spg = spg_after_tasks(importance=random_importance)
    gradients, changes = step(spg)
    values = [float(value) for tensor in spg.importance.values() for value in tensor.flatten()]
    head_factor = 1 - sum(values) / len(values)
    for name, change in changes.items():
        if name.startswith("features."):
            mask = 1 - spg.importance[name.removeprefix("features.")].double()
        elif name.startswith("classifiers.1."):
            mask = head_factor
        else:
            assert gradients[name] is None and change.eq(0).all()
            continue
        torch.testing.assert_close(change, -0.1 * mask * gradients[name].double(), atol=1e-7, rtol=1e-4)


def test_parameters_with_importance_one_do_not_move():
    def importance(spg):
        found = random_importance(spg)
        return {name: torch.where(value > 0.5, 1.0, value) for name, value in found.items()}

    spg = spg_after_tasks(importance=importance)
    _, changes = step(spg)
    moved = 0
    for name, value in spg.importance.items():
        change = changes[f"features.{name}"]
        assert change[value == 1].eq(0).all()
        moved += change[value < 1].ne(0).sum()
    assert moved > 0


def test_the_first_task_is_not_masked():
    assert soft_masks({}) == ({}, None)
    gradients, changes = step(spg_after_tasks(tasks=1))
    for name, change in changes.items():
        torch.testing.assert_close(change, -0.1 * gradients[name].double(), atol=1e-7, rtol=1e-4)


def test_the_heads_gradient_is_clipped():
    spg = spg_after_tasks(tasks=1)
    inputs, labels = samples()
    cross_entropy(spg.network(inputs) * 1e8, labels).backward()
    features = spg.network.features.fc2.weight.grad.clone()
    spg.method(TaskPasses(batches=lambda size: [], autocast=NO_CONTEXT)).after_backward()
    head = spg.network.classifiers[0]
    norm = torch.cat([head.weight.grad.flatten(), head.bias.grad]).norm()
    assert norm == pytest.approx(10_000, rel=1e-3)
    assert spg.network.features.fc2.weight.grad.equal(features)


def test_soft_masked_sgd_skips_parameters_without_gradient():
    parameter = nn.Parameter(torch.ones(3))
    SoftMaskedSGD([(parameter, None)]).step()
    assert parameter.eq(1).all()


# Dropout


@pytest.mark.parametrize("p", [0.05, 0.3135, 0.5, 0.9])
def test_drop_keeps_the_expected_share(p):
    torch.manual_seed(0)
    count = 1_000_003
    values = torch.ones(count)
    scale = drop_(values, p)
    kept = values.mean().item()
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    assert scale == pytest.approx(1 / (1 - p), abs=1e-3)
    # Neighbours share a random word but are independent.
    for distance in (1, 2, 3, 4, 64):
        both = (values[:-distance] * values[distance:]).mean().item()
        assert abs(both - (1 - p) ** 2) < 5e-3


def test_drop_depends_only_on_the_seed():
    def drawn(threads, seed=5):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        values = torch.ones(300_001)
        drop_(values, 0.4)
        return values

    assert drawn(1).equal(drawn(2))
    assert not drawn(1).equal(drawn(1, seed=6))


def test_drop_accepts_any_dense_layout_and_bfloat16():
    for values in (
        torch.ones(4, 8, 6, 6).contiguous(memory_format=torch.channels_last),
        torch.ones(999).bfloat16(),
    ):
        drop_(values, 0.5)
        assert 0.3 < values.float().mean() < 0.7
    with pytest.raises(ValueError, match="dense"):
        drop_(torch.ones(8, 8)[:, :3], 0.5)
    with pytest.raises(ValueError, match="probability"):
        drop_(torch.ones(3), 1.0)


def mask_like(values, p, seed):
    """The mask that `drop_` draws for a tensor, scaled."""
    torch.manual_seed(seed)
    mask = torch.ones_like(values)
    return mask * drop_(mask, p) if p else mask


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_relu_dropout_matches_the_plain_layers(p):
    inputs = torch.randn(6, 40, dtype=torch.float32)
    mask = mask_like(inputs, p, seed=1)
    plain = inputs.clone().requires_grad_()
    expected = plain.relu() * mask
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()

    layer, fast = ReluDropout(p), inputs.clone().requires_grad_()
    torch.manual_seed(1)
    output = layer(fast * 1.0)
    (output * weights).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(fast.grad, plain.grad)
    torch.testing.assert_close(layer.eval()(inputs), inputs.relu())


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_pooling_matches_the_plain_layers(p, size):
    inputs = torch.randn(3, 8, size, size).contiguous(memory_format=torch.channels_last)
    mask = mask_like(inputs, p, seed=1)
    plain = inputs.clone().requires_grad_()
    expected = max_pool2d(plain.relu() * mask, 2)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()

    layer, fast = ReluDropoutMaxPool2d(p), inputs.clone().requires_grad_()
    torch.manual_seed(1)
    output = layer(fast * 1.0)
    (output * weights).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(fast.grad, plain.grad)
    torch.testing.assert_close(layer.eval()(inputs), max_pool2d(inputs.relu(), 2))


# The network


@pytest.mark.parametrize("size", [16, 28, 32])
def test_outputs_that_pooling_drops_have_no_effect(size):
    """Skipping them gives the same outputs and gradients as computing every output."""
    torch.manual_seed(0)
    network = alexnet(layers=PLAIN, width=1 / 8, size=size, dropout=(0.0, 0.0))
    network.add_head(3)
    features = network.features
    inputs = torch.randn(5, 3, size, size)

    def plainly(hidden):
        for convolution in (features.conv1, features.conv2, features.conv3):
            hidden = max_pool2d(convolution(hidden).relu(), 2)
        return network.classifiers[0](features.fc2(features.fc1(hidden.flatten(1)).relu()).relu())

    expected, found = plainly(inputs), network(inputs)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), features.parameters()),
        torch.autograd.grad(expected.square().sum(), features.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_published_sizes():
    network = alexnet(layers=PLAIN)
    shapes = {name: tuple(value.shape) for name, value in network.features.named_parameters()}
    assert shapes["conv1.weight"] == (64, 3, 4, 4)
    assert shapes["conv2.weight"] == (128, 64, 3, 3)
    assert shapes["conv3.weight"] == (256, 128, 2, 2)
    assert shapes["fc1.weight"] == (2048, 1024)
    assert shapes["fc2.weight"] == (2048, 2048)
    with pytest.raises(ValueError, match="too small"):
        alexnet(layers=PLAIN, size=8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_step_and_importance_on_a_gpu():
    network = small_network(dropout=(0.3, 0.4)).cuda()
    inputs, labels = (tensor.cuda() for tensor in samples())
    cross_entropy(network(inputs), labels).backward()
    found = task_importance(network=network, batches=in_batches(inputs, labels, 16), autocast=NO_CONTEXT)
    assert all(value.isfinite().all() and value.amax() <= 1 for value in found.values())
