"""No architecture waits for the device in a training step or an evaluation, nor mixes devices."""

import pytest
import torch
from torch import Tensor

from methods.ownership import SharedNetwork
from models import architectures
from pipeline.recipe import OnBackboneRecipe, ScratchRecipe
from tests.cuda.machines import Machine
from tests.cuda.recipes import SIZE, builder, first_task, grown_task, recipe
from training.loop import evaluation_sums, train_step

KINDS = {"sharable": OnBackboneRecipe, "plain": ScratchRecipe}


def batch(machine: Machine) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(2, 3, SIZE, SIZE, device=machine.device)
    return inputs, torch.zeros(2, dtype=torch.int64, device=machine.device)


def train(shared: SharedNetwork, layers: str, machine: Machine) -> None:
    """Take two steps as a stage would."""
    with machine.per_task():
        stage = recipe(KINDS[layers], precision=machine.compute.precision)
        learner = machine.learner(stage.learner(shared, batches=None, compute=machine.compute))
        learner.method.before_task()
        learner.begin_epoch(1)
    inputs, labels = batch(machine)
    shared.network.train()
    with machine.steps():
        for _ in range(2):
            train_step(
                network=shared.network,
                method=learner.method,
                optimizers=tuple(learner.optimizers.values()),
                inputs=inputs,
                labels=labels,
                autocast=machine.compute.autocast,
                clip_grad_norm=learner.clip_grad_norm,
            )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("name", architectures("plain"))
def test_training_steps(run_check, name: str, layers: str, precision: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = first_task(builder(name, layers=layers)).to(machine.device)
        train(shared, layers, machine)
        with machine.per_task():
            grown_task(shared)
        train(shared, layers, machine)

    run_check(check, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("name", architectures("plain"))
def test_evaluation(run_check, name: str, layers: str, precision: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = grown_task(first_task(builder(name, layers=layers)).to(machine.device))
            first = shared.as_task("first")
            shared.shares("first")
        for network in (first, shared.network):
            with machine.steps():
                losses, hits, count = evaluation_sums(
                    network, [batch(machine)], autocast=machine.compute.autocast
                )
            assert count == 2
            assert losses.device.type == hits.device.type == machine.device.type

    run_check(check, precision=precision, backward=False)
