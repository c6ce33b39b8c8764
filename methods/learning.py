"""Learning one task into one output folder: skipped if finished, resumed if half done."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from methods.ownership import OwnedTraining, SharedNetwork, Shares
from models.network import Network
from utils import logs
from utils.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.paths import checkpoint_in
from utils.runs import Output
from utils.runtime import autocast
from utils.training import Evaluation, Progress, StepSchedule, evaluate, fit

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Where a task's batches come from; `data.loading.Batches` is one."""

    steps_per_epoch: int

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """The training batches of one epoch, drawn with `generator`."""

    def validation(self) -> Iterable[Batch]:
        """Batches of the samples that decisions look at."""

    def test(self) -> Iterable[Batch]:
        """Batches of the test samples."""


@dataclass(frozen=True)
class Learner:
    """A method with its optimizers and their schedules, by name, the weights' first."""

    method: OwnedTraining
    optimizers: Mapping[str, Optimizer]
    schedules: Mapping[str, StepSchedule]


def learn(
    *,
    output: Output,
    build: Callable[..., Network],
    begin: Callable[[], SharedNetwork],
    learner: Callable[[SharedNetwork], Learner],
    batches: Batches,
    seed: int,
    device: torch.device,
    precision: str,
    title: str,
) -> dict:
    """Train the newest task of a network and write its checkpoint.

    Args:
        output: the folder, and what makes its content.
        build: makes the architecture.
        begin: makes the network with the task begun, when there is nothing to resume.
        learner: makes the method for it.
        seed: of initialisation and of every draw.
        title: of the progress bar and in messages.

    Returns:
        The finished checkpoint's payload; `payload["metrics"]` has the final figures.
    """
    finished = output.finished()
    if finished is not None:
        logging.info("%s is finished: skipped (--overwrite redoes it)", output.checkpoint)
        return finished
    unfinished = output.unfinished()
    torch.manual_seed(seed)
    if unfinished is None:
        shared, progress = begin(), None
    else:
        shared = SharedNetwork.from_payload(unfinished, build=build, source=output.resume)
        progress = Progress(**unfinished["progress"])
    shared.to(device)
    task = shared.tasks[-1].name
    made = learner(shared)
    context = autocast(device, precision)

    def figures(row: dict) -> dict:
        validation = evaluate(shared.network, batches.validation(), autocast=context)
        return row | validation_row(validation, shared.shares(task))

    def on_epoch(progress: Progress) -> None:
        log_epoch(progress.history[-1], task_index=len(shared.tasks))
        if progress.epoch < output.epochs:
            output.save_unfinished(shared.payload(), progress)

    progress = fit(
        network=shared.network,
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
    )
    last = progress.history[-1]
    test = evaluate(shared.network, batches.test(), autocast=context)
    metrics = {
        "train_accuracy": last["accuracy"],
        "validation_accuracy": last["val_accuracy"],
        "test_accuracy": test.accuracy,
    }
    return output.finish(shared.payload(), progress, metrics=metrics)


def evaluate_as(
    shared: SharedNetwork, task: str, *, batches: Iterable[Batch], precision: str, epoch: int
) -> Evaluation:
    """Evaluate a network as one of its tasks and log the validation line."""
    network = shared.as_task(task)
    device = next(network.parameters()).device
    result = evaluate(network, batches, autocast=autocast(device, precision))
    shares = shared.shares(task)
    logging.info(_validation_line(validation_row(result, shares), epoch=epoch, task_index=shares.index))
    return result


def evaluate_folder(
    folder: Path,
    *,
    architecture: dict,
    build: Callable[..., Network],
    task: str,
    num_classes: int,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
) -> Evaluation:
    """Evaluate the checkpoint in `folder` as `task` and log the validation line.

    Raises:
        UserError: if there is no checkpoint, or none that holds the task with so many classes.
    """
    path = checkpoint_in(folder, remedy="give the folder of a checkpoint with --load_folder")
    payload = load_checkpoint(path, architecture=architecture["name"], layers=architecture["layers"])
    shared = SharedNetwork.from_payload(payload, build=build, source=path).to(device)
    try:
        found = shared.tasks[shared.index_of(task) - 1].num_classes
    except UserError as error:
        raise UserError(f"{path}: {error}: choose one of those with --dataset") from error
    if found != num_classes:
        raise UserError(f"{path} has {found} classes for task {task}, its table {num_classes}")
    epoch = payload.get("epoch", int(path.name.split("-")[1].split(".")[0]))
    return evaluate_as(shared, task, batches=batches, precision=precision, epoch=epoch)


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


def log_epoch(row: dict, *, task_index: int) -> None:
    """Log the two lines of one epoch in the published format."""
    logs.epoch_line(
        f"In train()-> Train Ep. #{row['epoch']} loss: {row['loss']:.3f}, "
        f"accuracy: {100 * row['accuracy']:.2f}, lr: {row['lr']:.6g}, "
        f"sparsity: {row['sparsity']:.3f}, network_width_mpl: {row['mpl']}"
    )
    logs.epoch_line(_validation_line(row, epoch=row["epoch"], task_index=task_index))


def _validation_line(row: dict, *, epoch: int, task_index: int) -> str:
    return (
        f"In validate()-> Val Ep. #{epoch} loss: {row['val_loss']:.3f}, "
        f"accuracy: {100 * row['val_accuracy']:.2f}, sparsity: {row['sparsity']:.3f}, "
        f"task{task_index} ratio: {row['task_ratio']:.3f}, zero ratio: {row['zero_ratio']:.3f}, "
        f"mpl: {row['mpl']}, shared_ratio: {row['shared_ratio']:.3f}"
    )
