"""CPG: when piggymasks are trained, and the step of the weights' optimizer."""

import pytest
import torch

import models
from methods.cpg import CPG, MOMENTUM, freeze_epoch, piggymask_optimizer, piggymasks_of, weight_optimizer
from methods.ownership import SharedNetwork

LENET = models.ARCHITECTURES["lenet5"]


def second_task(*, free: bool) -> SharedNetwork:
    """A network at its second task, whose first task left half of the weights free, or none."""
    torch.manual_seed(0)
    shared = SharedNetwork(build=LENET)
    shared.begin_task("first", num_classes=3)
    if free:
        shared.release({name: torch.rand(owner.shape) < 0.5 for name, owner in shared.owners().items()})
    shared.begin_task("second", num_classes=3)
    return shared


@pytest.mark.parametrize(("free", "frozen"), [(True, [8, 9, 10]), (False, [])])
def test_piggymasks_are_frozen_after_their_last_epoch_unless_the_task_owns_no_weight(
    free: bool, frozen: list[int]
) -> None:
    shared = second_task(free=free)
    method = CPG(shared=shared, weight_decay=0.0, freeze_after=freeze_epoch(10))
    method.before_task()
    assert len(piggymasks_of(shared)) == 4
    found = []
    for epoch in range(1, 11):
        method.before_epoch(epoch)
        (trained,) = {piggymask.requires_grad for piggymask in piggymasks_of(shared)}
        found += [] if trained else [epoch]
    assert found == frozen


def test_a_task_without_weights_of_its_own_trains_its_piggymasks_to_the_end() -> None:
    shared = second_task(free=False)
    weights = {name: layer.weight.detach().clone() for name, layer in shared.layers().items()}
    weight_sgd, adam = weight_optimizer(shared), piggymask_optimizer(shared)
    for optimizer in (weight_sgd, adam):
        optimizer.param_groups[0]["lr"] = 0.01
    method = CPG(shared=shared, weight_decay=0.1, freeze_after=1)
    method.before_task()
    assert method.owned_count == 0
    method.before_epoch(2)
    before = [piggymask.detach().clone() for piggymask in piggymasks_of(shared)]
    shared.network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    method.after_backward()
    weight_sgd.step()
    adam.step()
    for piggymask, old in zip(piggymasks_of(shared), before, strict=True):
        assert not piggymask.equal(old)
    assert all(layer.weight.equal(weights[name]) for name, layer in shared.layers().items())


def test_weights_take_steps_of_sgd_with_nesterov_momentum() -> None:
    """v ← 0.9 v + g, w ← w − lr (g + 0.9 v) (Sutskever et al. 2013, as in torch)."""
    shared = second_task(free=True)
    optimizer = weight_optimizer(shared)
    optimizer.param_groups[0]["lr"] = 0.1
    (parameters,) = (group["params"] for group in optimizer.param_groups)
    expected = [value.detach().double() for value in parameters]
    velocity = [torch.zeros_like(value) for value in expected]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for number, value in enumerate(parameters):
            value.grad = torch.randn(value.shape, generator=generator)
            velocity[number] = 0.9 * velocity[number] + value.grad.double()
            expected[number] = expected[number] - 0.1 * (value.grad.double() + 0.9 * velocity[number])
        optimizer.step()
    assert MOMENTUM == 0.9
    for value, reference in zip(parameters, expected, strict=True):
        torch.testing.assert_close(value.detach().double(), reference, rtol=1e-4, atol=1e-5)


def test_the_optimizers_share_no_parameter_and_miss_none_of_the_newest_task() -> None:
    shared = second_task(free=True)
    weights, piggymasks = (
        {id(value) for group in optimizer.param_groups for value in group["params"]}
        for optimizer in (weight_optimizer(shared), piggymask_optimizer(shared))
    )
    network = shared.network
    assert not weights & piggymasks
    assert piggymasks == {id(layer.piggymask) for layer in shared.layers().values()}
    newest = [*network.features.parameters(), *network.classifiers[1].parameters()]
    assert weights | piggymasks == {id(value) for value in newest}
