"""The one training loop: train an epoch, validate, let schedules and the method react, repeat."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from tqdm import tqdm

from training.method import Batch, Method
from training.parallel import split
from training.schedules import Schedule
from utils import logs
from utils.errors import UserError
from utils.runtime import autocast, random_state, set_random_state


class Diverged(UserError):
    """A loss is NaN or infinite."""


class Batches(Protocol):
    """Source of a task's batches, such as `data.loading.Batches`."""

    steps_per_epoch: int

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """The training batches of one epoch, drawn with `generator`."""

    def validation(self) -> Iterable[Batch]:
        """Batches of the samples used for decisions."""

    def test(self) -> Iterable[Batch]:
        """Batches of the test samples."""


@dataclass(frozen=True)
class Compute:
    """Device and precision that networks run with."""

    device: torch.device
    precision: str = "fp32"

    @cached_property
    def autocast(self) -> AbstractContextManager:
        """Autocast context of the forward passes."""
        return autocast(self.device, self.precision)


@dataclass(frozen=True)
class Learner:
    """How a network is trained: the method, its optimizers and their schedules.

    Attributes:
        method: the hooks.
        optimizers, schedules: by name. The weights' come first; their learning rate is logged.
        epochs: maximum number of epochs; a schedule may end training earlier.
        monitor: metric that the schedules observe; lower is better. The network ends in the state of its best
            epoch, and falls back to the best state so far if the loss diverges. If None, the last state is
            kept, and a diverged loss ends training.
        clip_grad_norm: see `train_step`.
    """

    method: Method
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, Schedule]
    epochs: int
    monitor: str | None = None
    clip_grad_norm: float | None = None

    @property
    def finished(self) -> bool:
        """Whether a schedule has ended training."""
        return any(schedule.finished for schedule in self.schedules.values())

    @property
    def lr(self) -> float:
        """The weights' learning rate in the current epoch."""
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rates of epoch `epoch`, counted from 1."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.schedules[name].at(epoch)
        self.method.before_epoch(epoch)

    def load_progress(self, progress: "Progress") -> None:
        """Restore the state of optimizers, schedules and method."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(progress.optimizers[name])
        self.method.load_state_dict(progress.method)
        for name, state in progress.schedules.items():
            self.schedules[name].load_state_dict(state)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy (0 to 1) over `count` samples."""

    loss: float
    accuracy: float
    count: int


@dataclass
class Progress:
    """Training progress: everything that resuming needs besides the network.

    Attributes:
        epoch: number of finished epochs.
        history: one dict of metrics per epoch.
        best: the network's state after `best_epoch` (0: before training) if a metric is monitored.
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


class Observer:
    """Callbacks that the caller of `fit` adds to every epoch."""

    def metrics(self) -> dict:
        """Extra metrics of the epoch just validated."""
        return {}

    def after_epoch(self, progress: Progress) -> None:
        """Log and save."""


def train_step(
    *,
    network: Callable[[Tensor], Tensor],
    method: Method,
    optimizers: Sequence[Optimizer],
    inputs: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager,
    clip_grad_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one gradient step; return the detached loss () and logits (B, classes).

    Nothing here waits for the device or branches on the value of a tensor, so steps can be captured or
    stacked (except for hooks that count steps, as gradual pruning does).

    Args:
        clip_grad_norm: clip the total L2 norm of the first optimizer's gradients to this value (Pascanu et
            al. 2013). None disables clipping.
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
    weights = [
        weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
    ]
    # A NaN norm must not spread: 0 times NaN would put NaN into the masked gradients of other tasks' weights.
    total = get_total_norm([weight.grad for weight in weights]).nan_to_num(nan=0.0)
    clip_grads_with_norm_(weights, norm, total)


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    autocast: AbstractContextManager,
    method: Method | None = None,
) -> Evaluation:
    """Mean cross-entropy and accuracy of `network` in evaluation mode. Restores its mode afterwards.

    Args:
        method: restricts the logits if the network has more classes than the task.
    """
    losses, hits, count = evaluation_sums(network, batches, autocast=autocast, method=method)
    return Evaluation(loss=sum(losses.tolist()) / count, accuracy=sum(hits.tolist()) / count, count=count)


@torch.no_grad()
def evaluation_sums(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    autocast: AbstractContextManager,
    method: Method | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Per batch, the summed cross-entropy and the hits, each (batches,) on the device; and the sample count.

    The host reads them once, at the end, instead of synchronising per batch.
    """
    training = network.training
    network.eval()
    forward = split(network)
    losses, hits, count = [], [], 0
    for inputs, labels in batches:
        with autocast:
            logits = forward(inputs)
        if method is not None:
            logits = method.select(logits, labels)
        losses.append(cross_entropy(logits.float(), labels, reduction="sum"))
        hits.append((logits.argmax(dim=1) == labels).sum())
        count += len(labels)
    network.train(training)
    return torch.stack(losses), torch.stack(hits), count


def train_epoch(
    network: nn.Module, *, learner: Learner, batches: Iterable[Batch], compute: Compute
) -> tuple[float, float]:
    """Train for one epoch; return the mean training loss and the training accuracy."""
    network.train()
    forward = split(network, trained=True)
    optimizers = tuple(learner.optimizers.values())
    loss_sum = torch.zeros((), device=compute.device)
    correct = torch.zeros((), dtype=torch.int64, device=compute.device)
    count = 0
    for inputs, labels in batches:
        loss, logits = train_step(
            network=forward,
            method=learner.method,
            optimizers=optimizers,
            inputs=inputs,
            labels=labels,
            autocast=compute.autocast,
            clip_grad_norm=learner.clip_grad_norm,
        )
        loss_sum += loss * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        count += len(labels)
    return loss_sum.item() / count, correct.item() / count


def fit(
    network: nn.Module,
    *,
    learner: Learner,
    batches: Batches,
    compute: Compute,
    seed: int,
    progress: Progress | None = None,
    observer: Observer | None = None,
    title: str = "",
    remedy: str = "lower the learning rate",
) -> Progress:
    """Train `network` until the learner's epochs are done or one of its schedules ends training.

    Args:
        seed: seeds the batch order and torch's generators; ignored when resuming from `progress`.
        title: title of the progress bar, also used in messages.
        remedy: what to do about a diverged loss, for the message.

    Returns:
        The progress after the last epoch.

    Raises:
        Diverged: if an epoch's metric is not finite and no metric is monitored.
    """
    observer = observer or Observer()
    method, monitor = learner.method, learner.monitor
    generator = torch.Generator()
    method.before_task()
    if progress is None:
        progress = Progress(best=None if monitor is None else _snapshot(network))
        generator.manual_seed(seed)
        torch.manual_seed(seed)
    else:
        generator.set_state(progress.generator.cpu())
        set_random_state(progress.random, compute.device)
        learner.load_progress(progress)

    for epoch in _with_bar(progress.epoch, learner.epochs, title=title):
        if learner.finished:
            break
        learner.begin_epoch(epoch)
        loss, accuracy = train_epoch(
            network, learner=learner, batches=batches.epoch(generator), compute=compute
        )
        validation = evaluate(network, batches.validation(), autocast=compute.autocast, method=method)
        row = {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            "lr": learner.lr,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            **observer.metrics(),
        }
        if monitor is None:
            _require_finite(row, title=title, remedy=remedy)
        else:
            row = _keep_best(row, network=network, learner=learner, progress=progress, title=title)
        progress.history.append(row)
        progress.epoch = epoch
        progress.optimizers = {name: value.state_dict() for name, value in learner.optimizers.items()}
        progress.generator = generator.get_state()
        progress.random = random_state(compute.device)
        progress.method = method.state_dict()
        progress.schedules = {name: value.state_dict() for name, value in learner.schedules.items()}
        observer.after_epoch(progress)
    if progress.best is not None:
        network.load_state_dict(progress.best)
        progress.best = None
    method.after_task()
    return progress


def final_row(progress: Progress, *, monitor: str | None, title: str, remedy: str) -> dict:
    """The history row that counts: the best epoch's if a metric is monitored, else the last.

    Raises:
        Diverged: if the monitored metric was never finite.
    """
    if monitor is None:
        return progress.history[-1]
    finite = [row for row in progress.history if row[monitor] is not None]
    if not finite:
        raise Diverged(f"{title}: the loss was not finite in any epoch: {remedy}")
    return min(finite, key=lambda row: row[monitor])


def _with_bar(done: int, epochs: int, *, title: str) -> Iterable[int]:
    return tqdm(
        range(done + 1, epochs + 1),
        desc=title,
        unit="epoch",
        initial=done,
        total=epochs,
        disable=logs.hide_bar(),
    )


def _require_finite(row: dict, *, title: str, remedy: str) -> None:
    # Includes the validation loss: no training loss shows that an epoch's last step broke the network.
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Diverged(f"{title}: {name} is {value} in epoch {row['epoch']}: {remedy}")


def _keep_best(row: dict, *, network: nn.Module, learner: Learner, progress: Progress, title: str) -> dict:
    """Keep the network's state if it is the best so far; restore the best state if the loss diverged.

    Returns:
        The history row, with None for metrics that are not finite.
    """
    metric = row[learner.monitor] if math.isfinite(row["loss"]) else math.nan
    if math.isfinite(metric):
        if metric < progress.best_figure:
            progress.best, progress.best_figure = _snapshot(network), metric
            progress.best_epoch = row["epoch"]
    else:
        metric = math.inf
        network.load_state_dict(progress.best)
        logging.warning(
            "%s: the loss is %s in epoch %d (%s: %s): returning to the best state so far and continuing with "
            "the next lower learning rate",
            *(title, row["loss"], row["epoch"], learner.monitor, row[learner.monitor]),
        )
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
    for schedule in learner.schedules.values():
        schedule.observe(metric)
    return row


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
