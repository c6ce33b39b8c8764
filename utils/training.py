"""The one training loop, and the hooks by which a method takes part in it."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from tqdm import tqdm

from utils import logs
from utils.errors import UserError
from utils.runtime import random_state, set_random_state

Batch = tuple[Tensor, Tensor]


class Diverged(UserError):
    """A loss is no longer finite."""


class Method:
    """What a continual-learning method does inside the loop. Every hook may be left as it is."""

    def before_task(self) -> None:
        """Before the first step of a task, also when the task is resumed."""

    def before_epoch(self, epoch: int) -> None:
        """Before epoch `epoch`, which counts from 1."""

    def select(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The logits (B, classes) among which labels (B,) are told apart, from the network's output."""
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise, from logits (B, classes) and labels (B,)."""
        return cross_entropy(logits, labels)

    def after_backward(self) -> None:
        """Edit gradients."""

    def after_step(self) -> None:
        """Edit weights."""

    def after_task(self) -> None:
        """After the last step of a task."""

    def state_dict(self) -> dict:
        """What a resumed run needs beyond the network and the optimizers."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""


class Schedule:
    """The learning rate of every epoch; it may look at the figures of the epochs before."""

    # Whether training ends here, before its last epoch.
    finished = False

    def at(self, epoch: int) -> float:
        """The learning rate of epoch `epoch`, which counts from 1."""
        raise NotImplementedError

    def observe(self, figure: float) -> None:
        """Take note of the watched figure after an epoch (see `fit`); infinite if training broke down."""

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """A learning rate multiplied by a factor after given epochs.

    Attributes:
        lr: the first learning rate.
        drops: epoch → factor that applies from the epoch after it on.
    """

    lr: float
    drops: Mapping[int, float] = field(default_factory=dict)

    def at(self, epoch: int) -> float:
        """The learning rate of epoch `epoch`, which counts from 1."""
        return self.lr * math.prod(factor for after, factor in self.drops.items() if epoch > after)


# The published SPG leaves this to torch's ReduceLROnPlateau, whose default it is.
PLATEAU_THRESHOLD = 1e-4


class PlateauSchedule(Schedule):
    """A learning rate that falls when the watched figure stops improving, and then ends training.

    Args:
        lr: the first learning rate.
        factor: the rate falls to `factor` times itself …
        patience: … after more than this many epochs in a row without an improvement …
        floor: … but not below this (or `lr`, if that is lower).
        stop_after: at the floor, training ends after this many epochs without an improvement.
        threshold: an improvement is a figure below (1 − threshold) times the best one.
    """

    def __init__(
        self,
        lr: float,
        *,
        factor: float = 1 / 3,
        patience: int = 4,
        floor: float = 1e-3,
        stop_after: int = 5,
        threshold: float = PLATEAU_THRESHOLD,
    ) -> None:
        self.lr = lr
        self.threshold = threshold
        self.factor, self.patience, self.stop_after = factor, patience, stop_after
        self.floor = min(floor, lr)
        self.best = math.inf
        self.waited = 0
        self.finished = False

    def at(self, epoch: int) -> float:
        return self.lr

    def observe(self, figure: float) -> None:
        at_floor = self.lr <= self.floor
        if figure < self.best * (1 - self.threshold):
            self.best, self.waited = figure, 0
            return
        self.waited += 1
        # A loss that is not finite will not mend itself: the rate falls at once.
        broken = not math.isfinite(figure)
        if at_floor:
            self.finished = broken or self.waited >= self.stop_after
        elif broken or self.waited > self.patience:
            self.lr, self.waited = max(self.lr * self.factor, self.floor), 0

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("lr", "best", "waited", "finished")}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Learner:
    """A method with its optimizers and their schedules, by name, the weights' first.

    Attributes:
        watch: the figure whose best epoch counts; None: the last epoch counts.
    """

    method: Method
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, Schedule]
    watch: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (a share, 0 to 1) over `count` samples."""

    loss: float
    accuracy: float
    count: int


@dataclass
class Progress:
    """How far a run has come: all that continuing needs beside the network.

    Attributes:
        epoch: epochs finished.
        history: a dict of figures for each of them.
        best: the network's state after the best epoch, where one is watched for; 0 is before the first.
    """

    epoch: int = 0
    history: list[dict] = field(default_factory=list)
    optimizers: dict = field(default_factory=dict)
    generator: Tensor | None = None
    random: dict = field(default_factory=dict)
    method: dict = field(default_factory=dict)
    schedules: dict = field(default_factory=dict)
    best: dict | None = None
    best_figure: float = math.inf
    best_epoch: int = 0


def train_step(
    *,
    network: nn.Module,
    method: Method,
    optimizers: Sequence[Optimizer],
    inputs: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager,
    clip_grad_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent; returns the detached loss () and logits (B, classes).

    Nothing here leaves the device or depends on Python state, so that steps can be captured or stacked
    (but for the hooks of a method that counts its steps, as gradual pruning does).

    Args:
        clip_grad_norm: the greatest L2 norm of the gradients of all that the first optimizer trains; longer
            ones are shortened to it (Pascanu et al. 2013). None: any.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    with autocast:
        logits = method.select(network(inputs), labels)
        loss = method.loss(logits, labels)
    loss.backward()
    method.after_backward()
    if clip_grad_norm is not None:
        _clip(optimizers[0], clip_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    method.after_step()
    return loss.detach(), logits.detach()


def _clip(optimizer: Optimizer, norm: float) -> None:
    """Shorten the gradients of all that `optimizer` trains to `norm`, taken together."""
    weights = [
        weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
    ]
    # Multiplied by a norm that is NaN, gradients of 0 would carry it into what other tasks own.
    total = get_total_norm([weight.grad for weight in weights]).nan_to_num(nan=0.0)
    clip_grads_with_norm_(weights, norm, total)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    autocast: AbstractContextManager,
    method: Method | None = None,
) -> Evaluation:
    """Mean cross-entropy and accuracy of `network` in evaluation mode; its mode is put back.

    Args:
        method: selects among the logits, where the network has more than the labels are about.
    """
    training = network.training
    network.eval()
    loss, correct, count = 0.0, 0, 0
    for inputs, labels in batches:
        with autocast:
            logits = network(inputs)
        if method is not None:
            logits = method.select(logits, labels)
        loss += cross_entropy(logits.float(), labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        count += len(labels)
    network.train(training)
    return Evaluation(loss=loss / count, accuracy=correct / count, count=count)


def fit(
    *,
    network: nn.Module,
    method: Method,
    optimizers: Mapping[str, Optimizer],
    schedules: Mapping[str, Schedule],
    epoch_batches: Callable[[torch.Generator], Iterator[Batch]],
    epochs: int,
    seed: int,
    device: torch.device,
    autocast: AbstractContextManager,
    figures: Callable[[dict], dict],
    progress: Progress | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    title: str = "",
    watch: str | None = None,
    remedy: str = "lower the learning rate",
    clip_grad_norm: float | None = None,
) -> Progress:
    """Train `network` until `epochs` epochs are done or a schedule ends it.

    Args:
        optimizers, schedules: by name; the learning rate of the first one is logged.
        epoch_batches: the batches of one epoch, drawn with the generator it is given.
        seed: of that generator and of torch's own; ignored when `progress` is resumed.
        figures: given an epoch's training figures, returns the row of the history (adds validation).
        progress: where to go on; None starts anew.
        on_epoch: called after every epoch, to save and to log.
        title: of the progress bar.
        watch: the figure, the lower the better, that schedules observe. The network ends with its state
            after the best epoch, and returns to it when a loss is no longer finite, which then ends only
            the epoch. None: the last state counts.
        remedy: what to do when a loss is no longer finite, for the message.
        clip_grad_norm: see `train_step`.

    Returns:
        The progress after the last epoch.

    Raises:
        Diverged: if a figure of an epoch is no longer finite and none is watched.
    """
    generator = torch.Generator()
    method.before_task()
    if progress is None:
        progress = Progress(best=None if watch is None else _snapshot(network))
        generator.manual_seed(seed)
        torch.manual_seed(seed)
    else:
        generator.set_state(progress.generator.cpu())
        set_random_state(progress.random, device)
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(progress.optimizers[name])
        method.load_state_dict(progress.method)
        for name, state in progress.schedules.items():
            schedules[name].load_state_dict(state)

    remaining = range(progress.epoch + 1, epochs + 1)
    for epoch in tqdm(
        remaining, desc=title, unit="epoch", initial=progress.epoch, total=epochs, disable=logs.hide_bar()
    ):
        if any(schedule.finished for schedule in schedules.values()):
            break
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = schedules[name].at(epoch)
        method.before_epoch(epoch)
        network.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        count = 0
        for inputs, labels in epoch_batches(generator):
            loss, logits = train_step(
                network=network,
                method=method,
                optimizers=tuple(optimizers.values()),
                inputs=inputs,
                labels=labels,
                autocast=autocast,
                clip_grad_norm=clip_grad_norm,
            )
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            count += len(labels)
        lr = next(iter(schedules.values())).at(epoch)
        row = {
            "epoch": epoch,
            "loss": loss_sum.item() / count,
            "accuracy": correct.item() / count,
            "lr": lr,
        }
        row = figures(row)
        if watch is None:
            _require_finite(row, title=title, remedy=remedy)
        else:
            row = _judge(
                row, watch=watch, network=network, schedules=schedules, progress=progress, title=title
            )
        progress.history.append(row)
        progress.epoch = epoch
        progress.optimizers = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        progress.generator = generator.get_state()
        progress.random = random_state(device)
        progress.method = method.state_dict()
        progress.schedules = {name: schedule.state_dict() for name, schedule in schedules.items()}
        on_epoch(progress)
    if progress.best is not None:
        network.load_state_dict(progress.best)
        progress.best = None
    method.after_task()
    return progress


def _require_finite(row: dict, *, title: str, remedy: str) -> None:
    # The validation loss, too: the last step of an epoch may break what all losses before it did not show.
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Diverged(f"{title}: {name} is {value} in epoch {row['epoch']}: {remedy}")


def _judge(
    row: dict,
    *,
    watch: str,
    network: nn.Module,
    schedules: Mapping[str, Schedule],
    progress: Progress,
    title: str,
) -> dict:
    """Keep the network's state if it is the best, return to the best one if training broke down.

    Returns:
        The row of the history; figures that are not finite are None in it.
    """
    figure = row[watch] if math.isfinite(row["loss"]) else math.nan
    if math.isfinite(figure):
        if figure < progress.best_figure:
            progress.best, progress.best_figure = _snapshot(network), figure
            progress.best_epoch = row["epoch"]
    else:
        figure = math.inf
        network.load_state_dict(progress.best)
        logging.warning(
            "%s: the loss is %s in epoch %d (%s: %s): back to the best state so far, and on with the next "
            "lower learning rate",
            *(title, row["loss"], row["epoch"], watch, row[watch]),
        )
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
    for schedule in schedules.values():
        schedule.observe(figure)
    return row


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
