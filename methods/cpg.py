"""CPG: compacting, picking and growing (Hung et al. 2019), on top of weight ownership."""

from collections.abc import Mapping, Sequence

import torch
from torch.optim import SGD, Adam, Optimizer

from methods.ownership import OwnedTraining, SharedNetwork
from training.schedules import StepSchedule

MOMENTUM = 0.9

# Decimals of an accuracy in the published baseline file. Comparisons ignore any beyond these.
BASELINE_DIGITS = 4


class CPG(OwnedTraining):
    """Train the newest task's weights together with its piggymasks.

    On earlier tasks' weights w the forward pass uses w · 1[m > 0.005], and the gradient passes straight
    through to the piggymask m (Hung et al. 2019, eq. 3; see `models.layers`).

    Args:
        freeze_after: Last epoch in which the piggymasks are trained (`freeze_epoch`). They stay trainable
            if the task owns no weight.
    """

    def __init__(self, *, shared: SharedNetwork, weight_decay: float, freeze_after: int) -> None:
        super().__init__(shared=shared, weight_decay=weight_decay)
        self.freeze_after = freeze_after

    def before_epoch(self, epoch: int) -> None:
        trainable = epoch <= self.freeze_after or self.owned_count == 0
        for piggymask in piggymasks_of(self.shared):
            piggymask.requires_grad_(trainable)


def piggymasks_of(shared: SharedNetwork) -> list[torch.nn.Parameter]:
    """The newest task's piggymasks; empty for a first task and for plain layers."""
    masks = (getattr(layer, "piggymask", None) for layer in shared.layers().values())
    return [mask for mask in masks if mask is not None]


def weight_optimizer(shared: SharedNetwork) -> Optimizer:
    """SGD with Nesterov momentum over everything that the newest task trains except its piggymasks.

    `OwnedTraining` applies the weight decay, so that it does not touch other tasks' weights. The training
    loop's schedule sets the learning rate.
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


def piggymask_optimizer(shared: SharedNetwork) -> Optimizer:
    """Adam over the newest task's piggymasks. The training loop's schedule sets the learning rate."""
    return Adam(piggymasks_of(shared), lr=0.0, fused=True)


def weight_schedule(*, lr: float, epochs: int) -> StepSchedule:
    """Multiply `lr` by 0.1 after half of the epochs and again after 0.8 (published: 50 and 80 of 100)."""
    return _step_schedule(lr, (_boundary(epochs, tenths=5), 0.1), (_boundary(epochs, tenths=8), 0.1))


def piggymask_schedule(*, lr: float, epochs: int) -> StepSchedule:
    """Multiply `lr` by 0.2 after half of the epochs (published: after 50 of 100)."""
    return _step_schedule(lr, (_boundary(epochs, tenths=5), 0.2))


def freeze_epoch(epochs: int) -> int:
    """The last epoch that trains piggymasks: 0.7 of the epochs (published: 70 of 100), at least 1."""
    return _boundary(epochs, tenths=7)


def _boundary(epochs: int, *, tenths: int) -> int:
    """The epoch after which something changes, at least 1: the first epoch trains at the full rate."""
    return max(1, epochs * tenths // 10)


def _step_schedule(lr: float, *drops: tuple[int, float]) -> StepSchedule:
    """A step schedule in which drops (epoch, factor) after the same epoch multiply."""
    factors: dict[int, float] = {}
    for after, factor in drops:
        factors[after] = factors.get(after, 1.0) * factor
    return StepSchedule(lr, drops=factors)


def choose_ratio(record: Mapping[float, float], *, baseline: float, allow_acc_loss: float) -> float:
    """The highest sparsity whose accuracy + `allow_acc_loss` reaches the scratch baseline; 0.0 if none does.

    Args:
        record: Sparsity → accuracy (0 to 1); 0.0 stands for the unpruned network.
        baseline: Scratch accuracy with `BASELINE_DIGITS` decimals. Accuracies are rounded to as many.
        allow_acc_loss: Accuracy (0 to 1) that pruning may cost.
    """
    reaching = [ratio for ratio, accuracy in record.items() if rounded(accuracy) + allow_acc_loss >= baseline]
    return max(reaching, default=0.0)


def ratio_for_room(remaining: int) -> float:
    """The sparsity that leaves room for `remaining` tasks: 1 − round(1 / (remaining + 1), 1), at most 0.95.

    Applies to a task in a sequence that stays under its baseline at the maximum width.
    """
    return round(1 - max(round(1 / (remaining + 1), 1), 0.05), 2)


# A network that does not fit its training data better than this grows.
LOW_TRAIN_ACCURACY = 0.95


def reasons_to_grow(*, accuracy: float, baseline: float, train_accuracy: float | None = None) -> list[str]:
    """Why a network is too small, in words; empty if it is not.

    It is if its accuracy is under the scratch baseline or its training accuracy is at most 0.95.

    Args:
        train_accuracy: None leaves out the second condition.
    """
    reasons = []
    if rounded(accuracy) < baseline:
        reasons.append(f"under its baseline by {baseline - rounded(accuracy):.{BASELINE_DIGITS}f}")
    if train_accuracy is not None and train_accuracy <= LOW_TRAIN_ACCURACY:
        reasons.append(f"training accuracy {train_accuracy:.4f} is at most {LOW_TRAIN_ACCURACY}")
    return reasons


def rounded(accuracy: float) -> float:
    """An accuracy rounded to the decimals of the baseline file."""
    return round(accuracy, BASELINE_DIGITS)


def width_multipliers(first: float, last: float, *, step: float = 0.5) -> Sequence[float]:
    """The width multipliers to try in turn, from `first` up to `last` in increments of `step`."""
    count = int((last - first) / step + 1e-9) + 1
    return [first + step * number for number in range(count)]
