"""Behaviour shared by all approaches to a sequence of tasks."""

from contextlib import nullcontext

import pytest
import torch

from methods.approaches import APPROACHES
from methods.approaches.base import Settings, TaskPasses
from models.alexnet import alexnet
from models.layers import PLAIN
from training.loop import train_step

CLIP = 1e-3


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4


@pytest.mark.parametrize("name", APPROACHES)
def test_every_approach_clips_the_gradient_norm_of_its_heads(name: str) -> None:
    """In every training stage; the features' gradients are not clipped."""
    torch.manual_seed(0)
    approach = APPROACHES[name](
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        total=2,
        settings=Settings(clip=CLIP),
    )
    approach.begin_task("first", 4)
    inputs, labels = batch()
    for stage in approach.stages(remaining=1):
        passes = TaskPasses(batches=lambda size: iter([batch()]), autocast=nullcontext())
        learner = approach.learner(stage, passes, epochs=1)
        learner.method.before_task()
        learner.begin_epoch(1)
        approach.network.train()
        train_step(
            network=approach.network,
            method=learner.method,
            optimizers=tuple(learner.optimizers.values()),
            inputs=inputs,
            labels=labels,
            autocast=nullcontext(),
        )
        head = torch.stack([value.grad.norm() for value in approach.network.classifiers.parameters()]).norm()
        assert head.item() == pytest.approx(CLIP, rel=1e-3)
        features = [value.grad.norm() for value in approach.network.features.parameters()]
        assert torch.stack(features).norm() > 2 * CLIP
