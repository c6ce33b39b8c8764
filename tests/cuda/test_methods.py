"""Steps, cuts and searches never wait for the device.

Under FakeTensorMode tensors exist on a GPU without one: `.item()`, `nonzero` and branches on a tensor's value
raise there, and so do operations on tensors of different devices. Backward passes need device `meta`.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.optim import Optimizer

import models
from methods.cpg import CPG, piggymask_optimizer, weight_optimizer
from methods.gradual_pruning import GradualPruning
from methods.modeldiff import mutate
from methods.ownership import OwnedTraining, SharedNetwork
from methods.packnet import PackNetPruning

LENET = partial(models.ARCHITECTURES["lenet5"], size=16)


def two_tasks() -> SharedNetwork:
    """A half-pruned first task, and a second one at twice the weights."""
    shared = SharedNetwork(build=LENET)
    shared.begin_task("first", num_classes=3)
    shared.release({name: layer.weight < 0 for name, layer in shared.layers().items()})
    shared.begin_task("second", num_classes=3, width=2**0.5)
    return shared


def pruning(shared: SharedNetwork) -> GradualPruning:
    """Cuts after every step of the second task."""
    optimizer = weight_optimizer(shared)
    settings = {"initial": 0.0, "final": 0.5, "interval": 1, "span": 3}
    return GradualPruning(shared=shared, weight_decay=0.1, optimizer=optimizer, **settings)


def cpg(shared: SharedNetwork) -> CPG:
    return CPG(shared=shared, weight_decay=0.1, freeze_after=1)


def make_fake(shared: SharedNetwork, mode: FakeTensorMode, *, device: str) -> None:
    """Replace every tensor of the network by a fake one on `device`."""

    def fake(value: Tensor) -> Tensor:
        return mode.from_tensor(value).detach().to(device)

    for module in shared.network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def move(method: OwnedTraining, mode: FakeTensorMode, *, device: str) -> list[Optimizer]:
    """Make the method's network fake; returns new optimizers of its weights and piggymasks."""
    make_fake(method.shared, mode, device=device)
    optimizers = [weight_optimizer(method.shared), piggymask_optimizer(method.shared)]
    for optimizer in optimizers:
        optimizer.param_groups[0].update(lr=0.1, fused=False)  # torch has no fake fused kernels
    if isinstance(method, GradualPruning):
        method.optimizer = optimizers[0]
    method.refresh()
    return optimizers


@pytest.mark.parametrize("make", [cpg, pruning])
def test_a_training_step_with_a_cut_never_waits(make) -> None:
    method = make(two_tasks())
    method.before_task()
    with FakeTensorMode() as mode:
        optimizers = move(method, mode, device="meta")
        network = method.shared.network.train()
        for epoch in (1, 2):
            method.before_epoch(epoch)
            inputs = torch.randn(4, 3, 16, 16, device="meta")
            labels = torch.zeros(4, dtype=torch.int64, device="meta")
            method.loss(network(inputs), labels).backward()
            method.after_backward()
            for optimizer in optimizers:
                optimizer.step()
            method.after_step()
        assert "momentum_buffer" in optimizers[0].state[network.features[0].weight]


def test_the_hooks_never_wait_for_a_gpu() -> None:
    method = pruning(two_tasks())
    method.before_task()
    with FakeTensorMode() as mode:
        optimizers = move(method, mode, device="cuda")
        for parameter in method.shared.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(2):
            method.after_backward()
            optimizers[0].step()
            method.after_step()
        assert method.shared.network.features[0].owner.device.type == "cuda"


def test_packnets_cut_never_waits_for_a_gpu() -> None:
    shared = two_tasks()
    method = PackNetPruning(shared=shared, weight_decay=0.0, optimizer=weight_optimizer(shared), sparsity=0.5)
    with FakeTensorMode() as mode:
        move(method, mode, device="cuda")
        method.before_task()


def test_a_search_never_waits_for_a_gpu() -> None:
    nets = [two_tasks() for _ in range(3)]
    with FakeTensorMode() as mode:
        for shared in nets:
            make_fake(shared, mode, device="cuda")
        *networks, target = [shared.network.eval() for shared in nets]
        probes = [torch.randn(6, 3, 16, 16, device="cuda") for _ in networks]
        mutated = mutate(probes, networks, target, iterations=3, epsilon=0.1, seeds=[1, 2])
        assert [part.device.type for part in mutated] == ["cuda", "cuda"]


def test_waiting_for_the_device_would_raise() -> None:
    with FakeTensorMode():
        values = torch.zeros(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            values[values == 0]
