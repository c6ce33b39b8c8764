"""No approach to a sequence of tasks waits for the device in a step, a pass after a task or an evaluation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.approaches import APPROACHES, Approach
from methods.approaches.base import Settings, TaskPasses
from models import architectures
from models.network import Network
from tests.cuda.machines import Machine
from tests.cuda.recipes import WIDTH
from training.loop import Learner, evaluation_sums, train_step

SIZE = 16


def builder(arch: str) -> Callable[..., Network]:
    def build(*, width: float) -> Network:
        return architectures("plain")[arch](width=width * WIDTH, size=SIZE, in_channels=3)

    return build


def batch(machine: Machine, *, label: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(4, 3, SIZE, SIZE, device=machine.device)
    return inputs, torch.full((4,), label, dtype=torch.int64, device=machine.device)


def begun(approach: Approach, machine: Machine, task: str) -> None:
    with machine.per_task():
        approach.begin_task(task, 3)
        approach.to(machine.device)


def learners(approach: Approach, machine: Machine, data: list) -> list[Learner]:
    """Train the newest task in all its stages, two steps in each; returns their learners."""
    found = []
    passes = TaskPasses(
        batches=lambda size: data,
        autocast=machine.compute.autocast,
        stored=data[0],
        to_inputs=lambda inputs: inputs,
    )
    for stage in approach.stages(remaining=approach.total - len(approach.tasks)):
        with machine.per_task():
            learner = machine.learner(approach.learner(stage, passes, epochs=2))
            learner.method.before_task()
            learner.begin_epoch(1)
        approach.network.train()
        with machine.steps():
            for inputs, labels in data:
                train_step(
                    network=approach.network,
                    method=learner.method,
                    optimizers=tuple(learner.optimizers.values()),
                    inputs=inputs,
                    labels=labels,
                    autocast=machine.compute.autocast,
                    clip_grad_norm=learner.clip_grad_norm,
                )
            learner.method.after_task()
        found.append(learner)
    return found


@pytest.mark.parametrize(
    ("name", "arch", "precision"),
    [
        *((name, "alexnet", "fp32") for name in APPROACHES),
        *((name, "resnet18", "fp32") for name in ("spg", "ewc")),  # running statistics; no last layer
        *((name, "resnet18", "bf16") for name in ("spg", "ewc", "packnet")),
    ],
)
def test_two_tasks(run_check, name: str, arch: str, precision: str) -> None:
    def check(machine: Machine) -> None:
        kind = APPROACHES[name]
        with machine.per_task():
            approach = kind(build=builder(arch), total=2, settings=Settings())
        begun(approach, machine, "first")
        if kind.joint:
            begun(approach, machine, "second")
        else:
            learners(approach, machine, [batch(machine, label=0)] * 2)
            begun(approach, machine, "second")
        data = [batch(machine, label=3 if kind.joint else 0)] * 2
        *_, last = learners(approach, machine, data)
        with machine.per_task():
            seen = last.method.shared.network if name == "packnet" else approach.network
        with machine.steps():
            evaluation_sums(seen, data, autocast=machine.compute.autocast, method=last.method)
        with machine.per_task():
            first = approach.as_task("first")
        with machine.steps():
            evaluation_sums(first, [batch(machine, label=0)], autocast=machine.compute.autocast)

    run_check(check, precision=precision)
