"""CPG: compacting, picking and growing (Hung et al. 2019), on top of weight ownership."""

from collections.abc import Mapping, Sequence

import torch
from torch.optim import SGD, Adam, Optimizer

from methods.ownership import OwnedTraining, SharedNetwork
from training.schedules import StepSchedule

MOMENTUM = 0.9

# Digits of an accuracy in the published baseline file; a comparison must not hang on those beyond.
BASELINE_DIGITS = 4


class CPG(OwnedTraining):
    """Training the newest task's weights together with its piggymasks.

    Args:
        freeze_after: piggymasks stay as they are after this epoch, unless the task owns no weight.
    """

    def __init__(self, *, shared: SharedNetwork, weight_decay: float, freeze_after: int) -> None:
        super().__init__(shared=shared, weight_decay=weight_decay)
        self.freeze_after = freeze_after

    def before_epoch(self, epoch: int) -> None:
        trainable = epoch <= self.freeze_after or self.owned_count == 0
        for piggymask in piggymasks_of(self.shared):
            piggymask.requires_grad_(trainable)


def piggymasks_of(shared: SharedNetwork) -> list[torch.nn.Parameter]:
    """The newest task's piggymasks; none for a first task and for plain layers."""
    masks = (getattr(layer, "piggymask", None) for layer in shared.layers().values())
    return [mask for mask in masks if mask is not None]


def weight_optimizer(shared: SharedNetwork) -> Optimizer:
    """SGD with Nesterov momentum over all that the newest task trains but its piggymasks.

    Weight decay is left to `OwnedTraining`, which keeps it off other tasks' weights. The learning rate
    is set by the training loop's schedule.
    """
    masks = {id(mask) for mask in piggymasks_of(shared)}
    network = shared.network
    trained = [*network.features.parameters(), *network.classifiers[network.active].parameters()]
    return SGD(
        [parameter for parameter in trained if id(parameter) not in masks],
        lr=0.0,
        momentum=MOMENTUM,
        nesterov=True,
        fused=True,
    )


def weight_schedule(*, lr: float, epochs: int) -> StepSchedule:
    """A tenth of `lr` after half of the epochs, a tenth of that after 0.8 of them."""
    return StepSchedule(lr, drops={epochs * 5 // 10: 0.1, epochs * 8 // 10: 0.1})


def piggymask_optimizer(shared: SharedNetwork) -> Optimizer:
    """Adam over the newest task's piggymasks."""
    return Adam(piggymasks_of(shared), lr=0.0, fused=True)


def choose_ratio(record: Mapping[float, float], *, baseline: float, allow_acc_loss: float) -> float:
    """The highest sparsity whose accuracy + `allow_acc_loss` reaches the scratch baseline; else 0.0.

    Args:
        record: sparsity → accuracy, the unpruned network under 0.0.
        baseline: an accuracy with `BASELINE_DIGITS` digits; accuracies are rounded alike to compare.
    """
    reaching = [ratio for ratio, accuracy in record.items() if rounded(accuracy) + allow_acc_loss >= baseline]
    return max(reaching, default=0.0)


def ratio_for_room(remaining: int) -> float:
    """The sparsity that leaves room for `remaining` tasks: 1 − round(1 / (remaining + 1), 1), at most 0.95.

    What a task in a sequence is pruned to when it stays under its baseline at the maximum width.
    """
    return round(1 - max(round(1 / (remaining + 1), 1), 0.05), 2)


def must_grow(*, accuracy: float, baseline: float, train_accuracy: float) -> bool:
    """Whether the target asks for a wider network: under its baseline, or not over 0.95 in training."""
    return rounded(accuracy) < baseline or train_accuracy <= 0.95


def rounded(accuracy: float) -> float:
    """An accuracy with as many digits as the baseline file has."""
    return round(accuracy, BASELINE_DIGITS)


def width_multipliers(first: float, last: float, *, step: float = 0.5) -> Sequence[float]:
    """The width multipliers to try in turn: `first`, then `step` more each time, up to `last`."""
    count = int((last - first) / step + 1e-9) + 1
    return [first + step * number for number in range(count)]
