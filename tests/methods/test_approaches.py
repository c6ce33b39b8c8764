"""Behaviour shared by all approaches to a sequence of tasks."""

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from methods.approaches import APPROACHES
from methods.approaches.base import Approach, Settings, TaskPasses
from models.alexnet import alexnet
from models.layers import PLAIN
from tests.helpers import same
from training.loop import Learner, train_step

CLIP = 1e-3


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4


def make(name: str, *, total: int = 2, clip: float = CLIP) -> Approach:
    torch.manual_seed(0)
    return APPROACHES[name](**setup(total=total, clip=clip))


def setup(*, total: int, clip: float) -> dict:
    return {
        "build": lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        "total": total,
        "settings": Settings(clip=clip),
    }


def take_step(approach: Approach, stage: str) -> Learner:
    """Train one batch in one stage of the newest task; return the learner."""
    passes = TaskPasses(
        batches=lambda size: iter([batch()]), autocast=nullcontext(), stored=batch(), to_inputs=lambda x: x
    )
    learner = approach.learner(stage, passes, epochs=1)
    learner.method.before_task()
    learner.begin_epoch(1)
    approach.network.train()
    inputs, labels = batch()
    train_step(
        network=approach.network,
        method=learner.method,
        optimizers=tuple(learner.optimizers.values()),
        inputs=inputs,
        labels=labels,
        autocast=nullcontext(),
    )
    return learner


@pytest.mark.parametrize("name", APPROACHES)
def test_every_approach_clips_the_gradient_norm_of_its_heads(name: str) -> None:
    """In every training stage; the features' gradients are not clipped."""
    approach = make(name)
    approach.begin_task("first", 4)
    for stage in approach.stages(remaining=1):
        take_step(approach, stage)
        head = torch.stack([value.grad.norm() for value in approach.network.classifiers.parameters()]).norm()
        assert head.item() == pytest.approx(CLIP, rel=1e-3)
        features = [value.grad.norm() for value in approach.network.features.parameters()]
        assert torch.stack(features).norm() > 2 * CLIP


@pytest.mark.parametrize("name", APPROACHES)
def test_an_approach_continues_from_its_payload_as_if_never_saved(name: str) -> None:
    approach = make(name, total=3, clip=10.0)
    for task in ("first", "second"):
        approach.begin_task(task, 4)
        for stage in approach.stages(remaining=1):
            take_step(approach, stage).method.after_task()
    payload = copy.deepcopy(approach.payload())
    kind = APPROACHES[name]
    again = kind.from_payload(copy.deepcopy(payload), Path("saved"), **setup(total=3, clip=10.0))
    again = again.to(torch.device("cpu"))
    assert same(again.payload(), payload)
    for one in (approach, again):
        torch.manual_seed(1)
        one.begin_task("third", 4)
        for _ in range(2):
            take_step(one, "train")
    moved = approach.network.state_dict()
    assert same(dict(again.network.state_dict()), dict(moved))
    assert not any(torch.equal(moved[key], value) for key, value in trained(payload, moved).items())


@pytest.mark.parametrize("name", APPROACHES)
def test_a_new_task_starts_with_no_cost(name: str) -> None:
    approach = make(name)
    approach.begin_task("first", 4)
    approach.epochs, approach.seconds = 7, 3.5
    assert approach.payload()["sequence"] == {"past": [], "epochs": 7, "seconds": 3.5}
    approach.begin_task("second", 3)
    assert (approach.epochs, approach.seconds) == (0, 0.0)
    assert approach.tasks == approach.payload()["dataset2num_classes"] == {"first": 4, "second": 3}


def trained(payload: dict, state: dict) -> dict:
    """The biases of a payload's backbone, which every approach trains (SPG while not all-important)."""
    saved = payload["model_state_dict"]
    return {key: saved[key] for key in state if key.startswith("features.conv") and key.endswith(".bias")}
