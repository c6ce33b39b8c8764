"""No pruning cut, search or pass over batches waits for the device, nor mixes devices."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from methods.modeldiff import Model, compare
from methods.ownership import SharedNetwork
from pipeline.recipe import GradualPruningRecipe, OnBackboneRecipe, PackNetPruningRecipe, StageRecipe
from tests.cuda.machines import Machine, run_faked
from tests.cuda.recipes import SIZE, builder, first_task, grown_task, recipe
from training.loop import Learner, evaluate, train_epoch
from utils.runtime import autocast


class Steps:
    """Stands for the batches of a task."""

    steps_per_epoch = 3


def two_tasks(machine: Machine, *, arch: str = "lenet5") -> SharedNetwork:
    return grown_task(first_task(builder(arch)).to(machine.device))


def started(shared: SharedNetwork, kind: type[StageRecipe], machine: Machine) -> Learner:
    """The learner of a stage, before its first step."""
    learner = machine.learner(recipe(kind).learner(shared, batches=Steps(), compute=machine.compute))
    learner.method.before_task()
    learner.begin_epoch(1)
    return learner


def batches(machine: Machine, *, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(4, 3, SIZE, SIZE, device=machine.device)
    return [(inputs, torch.zeros(4, dtype=torch.int64, device=machine.device))] * count


@pytest.mark.parametrize("kind", [OnBackboneRecipe, GradualPruningRecipe, PackNetPruningRecipe])
def test_an_epoch_reads_its_two_metrics_at_the_end(run_check, kind: type[StageRecipe]) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = two_tasks(machine)
            learner = started(shared, kind, machine)
        data = batches(machine)
        with machine.steps(reads=2):
            train_epoch(shared.network, learner=learner, batches=data, compute=machine.compute)
        with machine.steps(reads=2):
            evaluate(shared.network, data, autocast=machine.compute.autocast, method=learner.method)
        assert "momentum_buffer" in learner.optimizers["weights"].state[shared.network.features[0].weight]

    run_check(check)


@pytest.mark.parametrize("kind", [OnBackboneRecipe, GradualPruningRecipe, PackNetPruningRecipe])
def test_hooks_and_cuts_never_wait(run_check, kind: type[StageRecipe]) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = two_tasks(machine)
            learner = started(shared, kind, machine)
        for parameter in shared.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with machine.steps():
            for _ in range(3):
                learner.method.after_backward()
                learner.optimizers["weights"].step()
                learner.method.after_step()
        assert shared.network.features[0].owner.device.type == machine.device.type

    run_check(check, backward=False)


def test_packnets_cut_never_waits(run_check) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = two_tasks(machine)
            learner = recipe(PackNetPruningRecipe).learner(shared, batches=Steps(), compute=machine.compute)
        with machine.steps():
            learner.method.before_task()

    run_check(check, backward=False)


def test_counting_owners_waits_once(run_check) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = two_tasks(machine)
        for task in ("first", "second"):
            with machine.steps(reads=1):
                shared.shares(task)

    run_check(check, backward=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("iterations", [0, 3])
def test_a_search_waits_once(run_check, iterations: int, precision: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            models = [
                Model(
                    id=number,
                    network=two_tasks(machine).as_task("second"),
                    probes=torch.randn(4, 3, SIZE, SIZE, device=machine.device),
                )
                for number in range(3)
            ]
        with machine.steps(reads=1), autocast(machine.device, precision):
            found = compare(models[1:], models[0], iterations=iterations, epsilon=0.1, seeds=[1, 2])
        assert [distance.candidate for distance in found] == [1, 2]

    run_check(check, backward=False)


@pytest.mark.parametrize("arch", ["perceiver", "perceiver_io"])
def test_a_search_on_keys_and_values_waits_once(run_check, arch: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            models = [
                Model(id=number, network=network.as_task("first"), probes=probes)
                for number, (network, probes) in enumerate(
                    [
                        (
                            first_task(builder(arch)).to(machine.device),
                            torch.randn(4, 3, SIZE, SIZE, device=machine.device),
                        ),
                        (
                            first_task(builder(arch), modality="text").to(machine.device),
                            torch.randn(4, 7, 768, device=machine.device),
                        ),
                    ]
                )
            ]
        with machine.steps(reads=1):
            compare(models, models[1], iterations=0, epsilon=0.1, seeds=[1, 2])

    run_check(check, backward=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["perceiver", "perceiver_io"])
def test_steps_on_texts_on_a_backbone_of_images(run_check, arch: str, precision: str) -> None:
    def check(machine: Machine) -> None:
        with machine.per_task():
            shared = first_task(builder(arch)).to(machine.device)
            grown_task(shared, modality="text")
            learner = started(shared, OnBackboneRecipe, machine)
        data = [
            (torch.randn(2, length, 768, device=machine.device), labels[:2])
            for length, (_, labels) in zip((5, 7), batches(machine), strict=False)
        ]
        with machine.steps(reads=2):
            train_epoch(shared.network, learner=learner, batches=data, compute=machine.compute)

    run_check(check, precision=precision)


# The checks themselves.


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_reads_and_mixed_devices_raise(device: str) -> None:
    with FakeTensorMode():
        values = torch.zeros(3, device=device)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            values[values == 0]
        with pytest.raises(FakeTensorDeviceMismatchError):
            values + torch.zeros(3)


def test_bf16_is_bf16_on_a_fake_gpu() -> None:
    def check(machine: Machine) -> None:
        with machine.compute.autocast:
            product = torch.ones(2, 2, device=machine.device) @ torch.ones(2, 2, device=machine.device)
        assert product.dtype == torch.bfloat16

    run_faked(check, precision="bf16", backward=False)


def test_one_read_too_many_fails() -> None:
    def check(machine: Machine) -> None:
        values = torch.ones(2, device=machine.device)
        with machine.steps(reads=1):
            values.tolist()
            values.tolist()

    with pytest.raises(AssertionError, match="tolist reads a tensor"):
        run_faked(check)


@pytest.mark.parametrize(
    "work",
    [
        lambda values: values.cpu(),
        lambda values: values.sum().cpu(),
        lambda values: values[torch.zeros(2, dtype=torch.int64)],
        lambda values: torch.tensor([0.1, 0.2], device=values.device),
    ],
)
def test_copies_between_devices_fail(work) -> None:
    def check(machine: Machine) -> None:
        values = torch.ones(2, device=machine.device)
        with machine.steps():
            work(values)

    with pytest.raises(AssertionError, match="copies between devices"):
        run_faked(check, backward=False)
