"""Learning-rate schedules, by epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


class Schedule:
    """A learning rate per epoch, which may depend on the metrics of earlier epochs."""

    # Whether the schedule has ended training early.
    finished = False

    def at(self, epoch: int) -> float:
        """The learning rate of epoch `epoch`, counted from 1."""
        raise NotImplementedError

    def observe(self, metric: float) -> None:
        """Record the monitored metric after an epoch (see `loop.fit`); infinite if training diverged."""

    def state_dict(self) -> dict:
        """State that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """A learning rate that is multiplied by a factor after given epochs.

    Attributes:
        lr: initial learning rate.
        drops: epoch → factor that applies from the following epoch on.
    """

    lr: float
    drops: Mapping[int, float] = field(default_factory=dict)

    def at(self, epoch: int) -> float:
        return self.lr * math.prod(factor for after, factor in self.drops.items() if epoch > after)


class PlateauSchedule(Schedule):
    """A learning rate that falls when the monitored metric stops improving, and finally ends training.

    An epoch improves the metric if it is below (1 − threshold) times the best value so far, as in torch's
    `ReduceLROnPlateau`, which the published SPG uses.

    Args:
        lr: initial learning rate.
        factor: factor applied to the rate on a plateau.
        patience: the rate is reduced after more than this many epochs in a row without improvement.
        floor: minimum rate (or `lr`, if that is lower).
        stop_after: training ends after this many epochs without improvement at the minimum rate.
        threshold: smallest relative decrease that counts as an improvement.
    """

    def __init__(
        self,
        lr: float,
        *,
        factor: float = 1 / 3,
        patience: int = 4,
        floor: float = 1e-3,
        stop_after: int = 5,
        threshold: float = 1e-4,
    ) -> None:
        self.lr = lr
        self.factor, self.patience, self.stop_after = factor, patience, stop_after
        self.threshold = threshold
        self.floor = min(floor, lr)
        self.best = math.inf
        self.waited = 0
        self.finished = False

    def at(self, epoch: int) -> float:
        return self.lr

    def observe(self, metric: float) -> None:
        at_floor = self.lr <= self.floor
        if metric < self.best * (1 - self.threshold):
            self.best, self.waited = metric, 0
            return
        self.waited += 1
        # Waiting does not cure a diverged loss: reduce the rate at once.
        diverged = not math.isfinite(metric)
        if at_floor:
            self.finished = diverged or self.waited >= self.stop_after
        elif diverged or self.waited > self.patience:
            self.lr, self.waited = max(self.lr * self.factor, self.floor), 0

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("lr", "best", "waited", "finished")}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)
