"""Learning one task into one output folder: skipped if finished, resumed if half done."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from methods.ownership import SharedNetwork, Shares
from models.network import Network
from utils import logs
from utils.errors import UserError
from utils.paths import checkpoint_in
from utils.runs import Output
from utils.runtime import autocast
from utils.training import Batch, Diverged, Evaluation, Learner, Progress, evaluate, fit

# What saving an unfinished run may take of the time since it was last saved. A large network's state takes
# seconds to write, and may take longer than an epoch.
SAVING_SHARE = 0.05


class Batches(Protocol):
    """Where a task's batches come from; `data.loading.Batches` is one."""

    steps_per_epoch: int

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """The training batches of one epoch, drawn with `generator`."""

    def validation(self) -> Iterable[Batch]:
        """Batches of the samples that decisions look at."""

    def test(self) -> Iterable[Batch]:
        """Batches of the test samples."""


class Learned(Protocol):
    """A network with all that its tasks own; `methods.ownership.SharedNetwork` is one."""

    network: nn.Module

    def to(self, device: torch.device) -> Any:
        """Move everything to `device`."""

    def payload(self) -> dict:
        """Its part of a checkpoint."""


class EpochReport:
    """What the history and the log say of an epoch of a network whose weights tasks own."""

    def row(self, learned: SharedNetwork, validation: Evaluation) -> dict:
        """The figures after an epoch, added to those of training."""
        return validation_row(validation, learned.shares(learned.tasks[-1].name))

    def lines(self, learned: SharedNetwork, row: dict) -> tuple[str, ...]:
        """One row of the history as lines of the log, in the published format."""
        train = f"{train_line(row)}, sparsity: {row['sparsity']:.3f}, network_width_mpl: {row['mpl']}"
        return train, _shared_line(row, epoch=row["epoch"], task_index=len(learned.tasks))


def learn(
    *,
    output: Output,
    restore: Callable[[dict, Path], Learned],
    begin: Callable[[], Learned],
    learner: Callable[[Learned], Learner],
    batches: Batches,
    seed: int,
    device: torch.device,
    precision: str,
    title: str,
    report: EpochReport | None = None,
    lr_flag: str = "--lr",
    clip_grad_norm: float | None = None,
) -> dict:
    """Train the newest task of a network and write its checkpoint.

    Args:
        output: the folder, and what makes its content.
        restore: makes the network from a checkpoint and its path, to resume.
        begin: makes the network with the task begun, when there is nothing to resume.
        learner: makes the method for it.
        seed: of initialisation and of every draw.
        title: of the progress bar and in messages.
        report: what is noted of an epoch (default: for a `SharedNetwork`).
        lr_flag: what sets the weights' learning rate, for messages.
        clip_grad_norm: see `utils.training.train_step`.

    Returns:
        The finished checkpoint's payload; `payload["metrics"]` has the final figures.

    Raises:
        Diverged: if the loss is no longer finite, and no best state was kept; nothing half done is left.
    """
    finished = output.finished()
    if finished is not None:
        logging.info("%s is finished: skipped (--overwrite redoes it)", output.checkpoint)
        return finished
    unfinished = output.unfinished()
    report = report or EpochReport()
    torch.manual_seed(seed)
    if unfinished is None:
        learned, progress = begin(), None
    else:
        learned = restore(unfinished, output.resume)
        progress = Progress(**unfinished["progress"])
        logs.forget_epochs(after=progress.epoch)
    learned.to(device)
    made = learner(learned)
    context = autocast(device, precision)
    remedy = f"lower {lr_flag}"

    def figures(row: dict) -> dict:
        validation = evaluate(learned.network, batches.validation(), autocast=context, method=made.method)
        return row | report.row(learned, validation)

    def save(progress: Progress) -> None:
        payload = learned.payload()
        if progress.best_epoch == progress.epoch:
            # The same tensors twice take the space of one.
            payload["model_state_dict"] = progress.best
        output.save_unfinished(payload, progress)

    sparingly = _Sparingly(save)

    def on_epoch(progress: Progress) -> None:
        for line in report.lines(learned, progress.history[-1]):
            logs.epoch_line(line)
        if progress.epoch < output.epochs:
            sparingly.call(progress)

    try:
        progress = fit(
            network=learned.network,
            method=made.method,
            optimizers=made.optimizers,
            schedules=made.schedules,
            epoch_batches=batches.epoch,
            epochs=output.epochs,
            seed=seed,
            device=device,
            autocast=context,
            figures=figures,
            progress=progress,
            on_epoch=on_epoch,
            title=title,
            watch=made.watch,
            remedy=remedy,
            clip_grad_norm=clip_grad_norm,
        )
        counts = _epoch_that_counts(progress, watch=made.watch, title=title, remedy=remedy)
    except Diverged:
        # With the same arguments it would break down again, and the lower learning rate refuses it.
        output.resume.unlink(missing_ok=True)
        raise
    test = evaluate(learned.network, batches.test(), autocast=context, method=made.method)
    metrics = {
        "train_accuracy": counts["accuracy"],
        "validation_accuracy": counts["val_accuracy"],
        "test_accuracy": test.accuracy,
    }
    return output.finish(learned.payload(), progress, metrics=metrics)


class _Sparingly:
    """Calls a function the first time, and then as often as it takes no more than a share of the time.

    What is not saved is learned again after a kill, in the same steps.
    """

    def __init__(self, function: Callable[[Progress], None]) -> None:
        self.function = function
        self.ended, self.seconds = -math.inf, 0.0

    def call(self, progress: Progress) -> None:
        begun = time.perf_counter()
        if (begun - self.ended) * SAVING_SHARE < self.seconds:
            return
        self.function(progress)
        self.ended = time.perf_counter()
        self.seconds = self.ended - begun


def _epoch_that_counts(progress: Progress, *, watch: str | None, title: str, remedy: str) -> dict:
    """The row of the history whose figures are the run's."""
    if watch is None:
        return progress.history[-1]
    known = [row for row in progress.history if row[watch] is not None]
    if not known:
        raise Diverged(f"{title}: the loss was finite in no epoch: {remedy}")
    return min(known, key=lambda row: row[watch])


def evaluate_as(
    shared: SharedNetwork, task: str, *, batches: Iterable[Batch], precision: str, epoch: int
) -> Evaluation:
    """Evaluate a network as one of its tasks and log the validation line."""
    network = shared.as_task(task)
    device = next(network.parameters()).device
    result = evaluate(network, batches, autocast=autocast(device, precision))
    shares = shared.shares(task)
    logging.info(_shared_line(validation_row(result, shares), epoch=epoch, task_index=shares.index))
    return result


def open_folder(
    folder: Path,
    *,
    load: Callable[[Path], dict],
    build: Callable[..., Network],
    task: str,
    num_classes: int,
    device: torch.device,
) -> tuple[SharedNetwork, int]:
    """The network of the checkpoint in `folder`, to be looked at as `task`, and its epoch.

    Args:
        load: reads a checkpoint, and refuses one of another architecture.

    Raises:
        UserError: if there is no checkpoint, or none that holds the task with so many classes.
    """
    path = checkpoint_in(folder, remedy="give the folder of a checkpoint with --load_folder")
    payload = load(path)
    shared = SharedNetwork.from_payload(payload, build=build, source=path).to(device)
    try:
        found = shared.tasks[shared.index_of(task) - 1].num_classes
    except UserError as error:
        raise UserError(f"{path}: {error}: choose one of those with --dataset") from error
    if found != num_classes:
        raise UserError(f"{path} has {found} classes for task {task}, its table {num_classes}")
    epoch = payload.get("epoch", int(path.name.split("-")[1].split(".")[0]))
    return shared, epoch


def validation_row(result: Evaluation, shares: Shares) -> dict:
    """The validation figures of one epoch, as they stand in `train.csv`."""
    return {
        "val_loss": result.loss,
        "val_accuracy": result.accuracy,
        "sparsity": shares.sparsity,
        "task_ratio": shares.task_ratio,
        "zero_ratio": shares.zero_ratio,
        "mpl": shares.width,
        "shared_ratio": shares.shared_ratio,
    }


def train_line(row: dict) -> str:
    """The figures of training in one epoch, in the published format."""
    return (
        f"In train()-> Train Ep. #{row['epoch']} loss: {_shown(row['loss'])}, "
        f"accuracy: {100 * row['accuracy']:.2f}, lr: {row['lr']:.6g}"
    )


def validation_line(row: dict, *, epoch: int) -> str:
    """The figures of validation after one epoch, in the published format."""
    return (
        f"In validate()-> Val Ep. #{epoch} loss: {_shown(row['val_loss'])}, "
        f"accuracy: {100 * row['val_accuracy']:.2f}"
    )


def _shared_line(row: dict, *, epoch: int, task_index: int) -> str:
    return (
        f"{validation_line(row, epoch=epoch)}, sparsity: {row['sparsity']:.3f}, "
        f"task{task_index} ratio: {row['task_ratio']:.3f}, zero ratio: {row['zero_ratio']:.3f}, "
        f"mpl: {row['mpl']}, shared_ratio: {row['shared_ratio']:.3f}"
    )


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"
