"""PackNet on a sequence: the share that each task leaves free, and the rate of retraining."""

from contextlib import nullcontext

import pytest
import torch

from methods.approaches.base import Settings, TaskPasses
from methods.approaches.packnet import PackNet, PackNetOptions
from models.alexnet import alexnet
from models.layers import PLAIN
from training.loop import Learner

TOTAL = 4


def packnet(**options: float) -> PackNet:
    torch.manual_seed(0)
    return PackNet(
        build=lambda width: alexnet(layers=PLAIN, width=width / 16, size=16, dropout=(0.0, 0.0)),
        total=TOTAL,
        settings=Settings(lr=0.25),
        options=PackNetOptions(**options),
    )


def learner(approach: PackNet, stage: str) -> Learner:
    return approach.learner(stage, TaskPasses(batches=lambda size: [], autocast=nullcontext()), epochs=1)


def freed_shares(approach: PackNet) -> list[dict[str, float]]:
    """After each task's cut, the share of each layer's own and free weights that is free."""
    shares = []
    for number in range(1, TOTAL):
        approach.begin_task(f"task_{number}", 3)
        assert PackNet.stages(remaining=TOTAL - number) == ("train", "prune")
        for layer in approach.shared.layers().values():  # freed weights are 0 until they are trained
            own = layer.owner == number
            layer.weight.data[own] = torch.randn(int(own.sum()))
        learner(approach, "prune").method.before_task()
        owners = approach.shared.owners()
        shares.append(
            {
                name: (owner == 0).sum().item() / ((owner == 0) | (owner == number)).sum().item()
                for name, owner in owners.items()
            }
        )
    return shares


def test_every_task_leaves_an_equal_part_for_each_task_to_come() -> None:
    """The first of four frees 3/4, the second 2/3 of what it was given, the last but one 1/2."""
    approach = packnet()
    for shares, expected in zip(freed_shares(approach), (3 / 4, 2 / 3, 1 / 2), strict=True):
        for name, owner in approach.shared.owners().items():
            assert shares[name] == pytest.approx(expected, abs=4 / owner.numel() + 5e-3)
    approach.begin_task("last", 3)
    assert PackNet.stages(remaining=0) == ("train",), "the last task keeps its weights"
    owners = torch.cat([owner.flatten() for owner in approach.shared.owners().values()])
    shares = owners.bincount(minlength=TOTAL + 1) / len(owners)
    assert shares.tolist() == pytest.approx([0.0, *[1 / TOTAL] * TOTAL], abs=0.01)


def test_a_given_share_holds_for_every_task() -> None:
    approach = packnet(packnet_share=0.3)
    for shares in freed_shares(approach):
        assert shares["features.fc2"] == pytest.approx(0.3, abs=5e-3)


def test_training_frees_nothing_and_does_not_decay_weights() -> None:
    approach = packnet()
    approach.begin_task("first", 3)
    for stage in ("train", "prune"):
        method = learner(approach, stage).method
        method.before_task()
        freed = sum((owner == 0).sum().item() for owner in approach.shared.owners().values())
        assert (freed > 0) == (stage == "prune")
        for value in approach.network.parameters():
            value.grad = torch.zeros_like(value)
        method.after_backward()
        assert all((value.grad == 0).all() for value in approach.network.parameters())


def test_retraining_starts_at_a_tenth_of_the_learning_rate() -> None:
    approach = packnet()
    approach.begin_task("first", 3)
    assert learner(approach, "train").schedules["weights"].at(1) == 0.25
    assert learner(approach, "prune").schedules["weights"].at(1) == pytest.approx(0.025)
