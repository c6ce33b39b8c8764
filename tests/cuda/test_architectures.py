"""No architecture waits for the device in a training step or an evaluation, nor mixes devices."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from methods.ownership import SharedNetwork
from models import architectures
from pipeline.recipe import OnBackboneRecipe, ScratchRecipe
from tests.cuda.machines import Machine, run_for_real
from tests.cuda.recipes import SIZE, builder, first_task, grown_task, recipe
from training.loop import evaluation_sums, train_step
from utils.runtime import autocast

KINDS = {"sharable": OnBackboneRecipe, "plain": ScratchRecipe}
# Deeper networks of the same layers as a shallower one, and the deepest of the others.
REPEATED = ("resnet34", "resnet101", "resnet152", *(f"efficientnetb{number}" for number in range(1, 8)))
DEEP = ("vgg16_bn", "resnet50", "mobilenetv2", "efficientnetb0")
SHALLOW = [name for name in architectures("plain") if name not in REPEATED + DEEP]


def batch(machine: Machine) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(2, 3, SIZE, SIZE, device=machine.device)
    return inputs, torch.zeros(2, dtype=torch.int64, device=machine.device)


def train(shared: SharedNetwork, layers: str, machine: Machine, *, steps: int) -> None:
    """Take steps as a stage would."""
    with machine.per_task():
        stage = recipe(KINDS[layers], precision=machine.compute.precision)
        learner = machine.learner(stage.learner(shared, batches=None, compute=machine.compute))
        learner.method.before_task()
        learner.begin_epoch(1)
    inputs, labels = batch(machine)
    shared.network.train()
    with machine.steps():
        for _ in range(steps):
            train_step(
                network=shared.network,
                method=learner.method,
                optimizers=tuple(learner.optimizers.values()),
                inputs=inputs,
                labels=labels,
                autocast=machine.compute.autocast,
                clip_grad_norm=learner.clip_grad_norm,
            )


def evaluate(network: nn.Module, machine: Machine, *, precision: str) -> None:
    with machine.steps():
        context = autocast(machine.device, precision)
        losses, hits, count = evaluation_sums(network, [batch(machine)], autocast=context)
    assert count == 2
    assert losses.device.type == hits.device.type == machine.device.type


@pytest.mark.parametrize(
    ("name", "layers", "precision"),
    [
        *((name, layers, "fp32") for name in SHALLOW for layers in KINDS),
        *((name, "sharable", "bf16") for name in ("lenet5", "alexnet", "perceiver", "perceiver_io")),
    ],
)
def test_steps_of_a_first_and_of_a_grown_second_task(
    run_check, name: str, layers: str, precision: str
) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = first_task(builder(name, layers=layers)).to(machine.device)
        train(shared, layers, machine, steps=1)
        with machine.per_task():
            grown_task(shared)
        train(shared, layers, machine, steps=2 if precision == "fp32" else 1)

    run_check(check, precision=precision)


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("name", SHALLOW)
def test_evaluation_of_both_tasks(run_check, name: str, layers: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = grown_task(first_task(builder(name, layers=layers)).to(machine.device))
            first = shared.as_task("first")
            shared.shares("first")
        evaluate(first, machine, precision="fp32")
        for precision in ("fp32", "bf16"):
            evaluate(shared.network, machine, precision=precision)

    run_check(check, backward=False)


@pytest.mark.parametrize("name", DEEP)
def test_a_step_of_a_deep_network(run_check, name: str) -> None:
    def check(machine: Machine) -> None:
        with machine.outside():
            shared = grown_task(first_task(builder(name)))
        with machine.per_task():
            shared.to(machine.device)
        train(shared, "sharable", machine, steps=1)

    run_check(check)


def check_evaluation(machine: Machine, *, name: str, layers: str) -> None:
    with machine.outside():
        shared = first_task(builder(name, layers=layers))
        if layers == "sharable":  # a second task differs by its piggymasks
            shared.begin_task("second", num_classes=4)
    evaluate(shared.network.to(machine.device), machine, precision="bf16")


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("name", DEEP)
def test_evaluation_of_a_deep_network(run_check, name: str, layers: str) -> None:
    run_check(partial(check_evaluation, name=name, layers=layers), backward=False, reads=False)


@pytest.mark.usefixtures("cuda_device")
@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("name", REPEATED)
def test_evaluation_of_more_of_the_same_layers_on_a_gpu(name: str, layers: str) -> None:
    run_for_real(partial(check_evaluation, name=name, layers=layers))
