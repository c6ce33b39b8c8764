"""The one training loop, and the hooks by which a method takes part in it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from utils import logs
from utils.errors import UserError
from utils.runtime import random_state, set_random_state


class Method:
    """What a continual-learning method does inside the loop. Every hook may be left as it is."""

    def before_task(self) -> None:
        """Before the first step of a task, also when the task is resumed."""

    def before_epoch(self, epoch: int) -> None:
        """Before epoch `epoch`, which counts from 1."""

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


@dataclass(frozen=True)
class StepSchedule:
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
    """

    epoch: int = 0
    history: list[dict] = field(default_factory=list)
    optimizers: dict = field(default_factory=dict)
    generator: Tensor | None = None
    random: dict = field(default_factory=dict)
    method: dict = field(default_factory=dict)


def train_step(
    *,
    network: nn.Module,
    method: Method,
    optimizers: Iterable[Optimizer],
    inputs: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager,
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent; returns the detached loss () and logits (B, classes).

    Nothing here leaves the device or depends on Python state, so that steps can be captured or stacked
    (but for the hooks of a method that counts its steps, as gradual pruning does).
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    with autocast:
        logits = network(inputs)
        loss = method.loss(logits, labels)
    loss.backward()
    method.after_backward()
    for optimizer in optimizers:
        optimizer.step()
    method.after_step()
    return loss.detach(), logits.detach()


@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, autocast: AbstractContextManager
) -> Evaluation:
    """Mean cross-entropy and accuracy of `network` in evaluation mode; its mode is put back."""
    training = network.training
    network.eval()
    loss, correct, count = 0.0, 0, 0
    for inputs, labels in batches:
        with autocast:
            logits = network(inputs)
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
    schedules: Mapping[str, StepSchedule],
    epoch_batches: Callable[[torch.Generator], Iterator[tuple[Tensor, Tensor]]],
    epochs: int,
    seed: int,
    device: torch.device,
    autocast: AbstractContextManager,
    figures: Callable[[dict], dict],
    progress: Progress | None = None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    title: str = "",
) -> Progress:
    """Train `network` until `epochs` epochs are done.

    Args:
        optimizers, schedules: by name; the learning rate of the first one is logged.
        epoch_batches: the batches of one epoch, drawn with the generator it is given.
        seed: of that generator and of torch's own; ignored when `progress` is resumed.
        figures: given an epoch's training figures, returns the row of the history (adds validation).
        progress: where to go on; None starts anew.
        on_epoch: called after every epoch, to save and to log.
        title: of the progress bar.

    Returns:
        The progress after the last epoch.

    Raises:
        UserError: if the loss is no longer finite.
    """
    generator = torch.Generator()
    method.before_task()
    if progress is None:
        progress = Progress()
        generator.manual_seed(seed)
        torch.manual_seed(seed)
    else:
        generator.set_state(progress.generator.cpu())
        set_random_state(progress.random, device)
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(progress.optimizers[name])
        method.load_state_dict(progress.method)

    remaining = range(progress.epoch + 1, epochs + 1)
    for epoch in tqdm(
        remaining, desc=title, unit="epoch", initial=progress.epoch, total=epochs, disable=logs.hide_bar()
    ):
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
            )
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            count += len(labels)
        mean_loss = loss_sum.item() / count
        if not math.isfinite(mean_loss):
            raise UserError(f"{title}: the loss is {mean_loss} in epoch {epoch}: lower --lr")
        lr = next(iter(schedules.values())).at(epoch)
        row = {"epoch": epoch, "loss": mean_loss, "accuracy": correct.item() / count, "lr": lr}
        progress.history.append(figures(row))
        progress.epoch = epoch
        progress.optimizers = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        progress.generator = generator.get_state()
        progress.random = random_state(device)
        progress.method = method.state_dict()
        on_epoch(progress)
    method.after_task()
    return progress
