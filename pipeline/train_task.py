"""Train one task into its output folder, or evaluate a finished checkpoint as a task."""

import argparse
import logging
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data.loading import Batches, TaskData, load_task
from data.tables import Table, Task, load_table
from methods import footprint
from methods.ownership import SharedNetwork, Shares
from pipeline import flags
from pipeline.architectures import Builder, requested_architecture
from pipeline.fleet import (
    check_num_classes,
    check_text_encoder,
    final_width,
    fleet_paths,
    pairs_file,
    paths_of,
    scratch_baseline,
    selected_tasks,
    trackers_of,
)
from pipeline.named_files import check_log, check_named_files
from pipeline.pretrained import start_of
from pipeline.recipe import (
    ContinualStageRecipe,
    RunRecipe,
    SamplesRecipe,
    StageRecipe,
    TrainingRecipe,
    text_entries,
)
from training.checkpoints import load_checkpoint
from training.loop import Compute, Diverged, Evaluation, Observer, Progress, evaluate, final_row, fit
from training.outputs import Output, Unfinished
from training.trackers import Trackers, Tracking, require_trackers
from utils import logs
from utils.errors import UserError
from utils.files import json_text, write_atomically
from utils.folders import alone_in
from utils.paths import Paths, checkpoint_in
from utils.runtime import resolve_device, set_up_process

# Maximum share of the running time spent on saving unfinished runs. Writing the state of a large network
# takes seconds, sometimes longer than an epoch.
SAVING_SHARE = 0.05


class TaskRun:
    """One task of a table under one set of flags: its data, networks and output folders.

    Args:
        args: the script's flags.
        layers: kind of layers of its networks, `architectures.PLAIN` or `SHARABLE`.

    Attributes:
        paths: files of this run.
        recipe: settings common to all its training runs.
        log_folder: folder whose log file is already open.
        locked: folder that this process already holds.
    """

    def __init__(self, args: argparse.Namespace, *, table: Table, task: Task, layers: str) -> None:
        self.args = args
        self.table = table
        self.task = task
        self.paths: Paths = paths_of(args)
        self.build: Builder = requested_architecture(
            args, layers=layers, in_channels=table.channels, size=table.size
        )
        self.recipe = RunRecipe.from_args(args, build=self.build)
        self.compute = Compute(device=resolve_device(args.device), precision=self.recipe.precision)
        self.start = start_of(args)
        self.log_folder: Path | None = None
        self.locked: Path | None = None
        check_num_classes(args.num_classes, task=task)

    @property
    def pairs_file(self) -> Path:
        """CSV of the chosen backbones."""
        return pairs_file(self.args, self.table.name)

    @cached_property
    def fleet(self) -> Paths:
        """Files of the run that backbones come from."""
        return fleet_paths(self.args)

    @cached_property
    def origin(self) -> str | None:
        """Origin of a first task's initial weights; None for random ones."""
        return None if self.start is None else self.start.origin

    @cached_property
    def data(self) -> TaskData:
        """The task's samples, on the device.

        Raises:
            UserError: if a text has more tokens than the network has positions.
        """
        data = load_task(
            self.table,
            self.task,
            data_root=self.args.data_root,
            protocol=self.recipe.protocol,
            seed=self.recipe.seed,
            device=self.compute.device,
            text_encoder=self.args.text_encoder,
            train_per_class=self.args.train_per_class,
        )
        positions = self.build.sizes.get("max_text_length")
        if data.encoder is not None and positions is not None:
            splits = data.train, data.validation, data.test
            longest = max(int((samples.inputs != 0).sum(dim=1).max()) for samples in splits)
            if longest > positions:
                raise UserError(
                    f"--max_text_length {positions}: task {self.task.name} has texts of {longest} tokens: "
                    f"give {longest} or more"
                )
        return data

    @cached_property
    def batches(self) -> Batches:
        """Batches of the task's samples."""
        return Batches(self.data, batch_size=self.recipe.batch_size, val_batch_size=self.args.val_batch_size)

    @property
    def samples(self) -> SamplesRecipe:
        """The samples as recipes record them."""
        return SamplesRecipe.of(self.data)

    @cached_property
    def width_multiplier(self) -> float:
        """The network's width multiplier: a number, or the one that the task reached in stage 3-2."""
        requested = self.args.network_width_multiplier
        if requested != flags.FROM_TARGET:
            return requested
        return final_width(self.paths, table=self.table, target=self.task, pairs=self.pairs_file)

    def configuration(self, recipe: StageRecipe) -> dict:
        """The content of `config.json`: how a training run was called, on what, and every setting."""
        resolved = vars(self.args) | {"device": self.compute.device}
        return {
            "command": getattr(self.args, "command", None),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "flags": {name: _plain(value) for name, value in sorted(resolved.items())},
            "recipe": recipe.stamp(),
        }

    def baseline(self) -> float:
        """The accuracy of the task's scratch network, as stage 1 wrote it.

        Raises:
            UserError: if the file or the task's entry in it is missing.
        """
        return scratch_baseline(self.args, config=self.table.name, task=self.task.name)

    # Networks

    def new_network(self, *, width: float) -> SharedNetwork:
        """A new network with the task begun."""
        shared = SharedNetwork(build=self.build, width=width)
        if self.start is not None:
            self.start.put_into(shared.network, build=self.build)
        task = self.task
        shared.begin_task(task.name, num_classes=task.num_classes, modality=task.modality)
        return shared

    def restore(self, payload: dict, source: Path) -> SharedNetwork:
        """The network in a checkpoint, on the CPU."""
        return SharedNetwork.from_payload(payload, build=self.build, source=source)

    def load(self, path: Path) -> dict:
        """The payload of the checkpoint at `path`, which must match the architecture and its sizes."""
        return load_checkpoint(
            path, architecture=self.build.name, layers=self.build.layers, sizes=self.build.sizes
        )

    # Training

    def train(self, recipe: StageRecipe, *, folder: Path, begin: Callable[[], SharedNetwork]) -> dict:
        """Train the task as `recipe` says, into `folder`; skipped if finished, resumed if unfinished.

        Args:
            begin: makes the network with the task begun, when there is nothing to resume.

        Returns:
            The finished checkpoint's payload.

        Raises:
            Unfinished: if training is left under `--list_unfinished`.
        """
        output = Output(
            folder=folder,
            epochs=recipe.epochs,
            architecture=self.build.entry,
            stamp=recipe.stamp(),
            task_table=self.task_table(),
            overwrite=self.args.overwrite,
            listing=self.args.list_unfinished,
            configuration=self.configuration(recipe),
        )
        with self.hold(folder), self.log_into(folder):
            return train_into(
                output,
                recipe=recipe,
                begin=begin,
                restore=self.restore,
                batches=self.batches,
                compute=self.compute,
                trackers=trackers_of(self.args, self.paths),
            )

    def train_new(self, recipe: TrainingRecipe, *, folder: Path) -> dict:
        """Train a new network that has learned nothing before; see `train`."""
        return self.train(recipe, folder=folder, begin=lambda: self.new_network(width=recipe.width))

    def task_table(self) -> dict:
        """The task's entry in its table, with the preprocessing in use."""
        entry = {
            "config": self.table.name,
            "id": self.task.id,
            "name": self.task.name,
            "classes": list(self.task.classes),
            "modality": self.task.modality,
        }
        if self.task.modality == "text":
            return entry | text_entries(self.data.encoder.identity)
        return entry | {
            "size": self.table.size,
            "channels": self.table.channels,
            "crop_padding": self.table.augment.crop_padding,
            "flip": self.table.augment.flip,
            "mean": self.data.mean.tolist(),
            "std": self.data.std.tolist(),
        }

    def hold(self, folder: Path) -> AbstractContextManager:
        """Hold an output folder, unless this process already does, or only lists."""
        if self.args.list_unfinished or folder == self.locked:
            return nullcontext()
        return alone_in(folder)

    def log_into(self, folder: Path) -> AbstractContextManager:
        """Open a log file in an output folder, unless the run's own log is already there."""
        if self.args.log_path or self.args.list_unfinished or folder == self.log_folder:
            return nullcontext()
        return logs.to_file(folder / self.args.logfile)

    # Evaluation

    def evaluate(self, shared: SharedNetwork, *, epoch: int) -> Evaluation:
        """Evaluate a network as this task on the test samples, and log the validation line."""
        shared.to(self.compute.device)
        network = shared.as_task(self.task.name)
        result = evaluate(network, self.batches.test(), autocast=self.compute.autocast)
        shares = shared.shares(self.task.name)
        row = {"val_loss": result.loss, "val_accuracy": result.accuracy} | ownership_metrics(shares)
        logging.info(shared_line(row, epoch=epoch, task_index=shares.index))
        return result

    def inspect(self, folder: Path) -> None:
        """Evaluate the checkpoint in `folder` as this task; report its footprint if requested."""
        path = checkpoint_in(folder, remedy="give the folder of a checkpoint with --load_folder")
        payload = self.load(path)
        check_text_encoder(payload, task=self.task, identity=self.data.encoder_identity, where=path)
        shared = self.restore(payload, path)
        try:
            found = shared.tasks[shared.index_of(self.task.name) - 1].num_classes
        except UserError as error:
            raise UserError(f"{path}: {error}: choose one of those with --dataset") from error
        if found != self.task.num_classes:
            raise UserError(
                f"{path} has {found} classes for task {self.task.name}, its table {self.task.num_classes}"
            )
        self.evaluate(shared, epoch=payload.get("epoch", int(path.name.split("-")[1].split(".")[0])))
        if self.args.compute_report:
            self.report_footprint(shared)

    def report_footprint(self, shared: SharedNetwork) -> None:
        """Print the network's footprint, and write it as JSON to `--report_file`."""
        inputs, _ = next(iter(self.batches.test()))
        report = footprint.footprint(shared, self.task.name, inputs=inputs[:1])
        sys.stdout.write(footprint.as_text(report) + "\n")
        if self.args.report_file:
            write_atomically(self.args.report_file, json_text(report | {"architecture": self.build.entry}))


def _plain(value: object) -> object:
    """A flag's value as JSON."""
    return value if isinstance(value, bool | int | float | list | None) else str(value)


class Stage(Protocol):
    """What a stage does with one task."""

    folder: Path

    def work(self) -> None:
        """Do what the flags request."""


def run_tasks(
    args: argparse.Namespace,
    *,
    layers: str,
    stages: Callable[[TaskRun], Sequence[Stage]],
    modality: str | None = None,
) -> None:
    """Run the stages of each task in `--dataset`, with one log file per stage and task.

    With `--list_unfinished`, only print the tasks with work left.

    Args:
        modality: keeps only the tasks of this modality.
    """
    require_trackers(args.log_to)
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    table = load_table(args.dataset_config, data_root=args.data_root)
    check_named_files(args)
    for task in selected_tasks(args, table, modality=modality):
        if args.list_unfinished:
            if has_work_left(lambda task=task: stages(TaskRun(args, table=table, task=task, layers=layers))):
                sys.stdout.write(f"{task.name}\n")
            continue
        run = TaskRun(args, table=table, task=task, layers=layers)
        for stage in stages(run):
            run_stage(run, stage)


def run_stage(run: TaskRun, stage: Stage) -> None:
    """Run one stage of one task, alone in its folder and logged there."""
    args = run.args
    # Evaluation must not write to the checkpoint's folder.
    training = "inference" not in args.mode
    run.log_folder = args.log_path or (stage.folder if training else None)
    with ExitStack() as held:
        if training:
            held.enter_context(run.hold(stage.folder))
            run.locked = stage.folder
        if run.log_folder:
            log = run.log_folder / args.logfile
            if args.logfile != flags.LOG_NAME:
                check_log(log)
            held.enter_context(logs.to_file(log, shared=bool(args.log_path)))
        logs.configuration(flags.changed(args))
        logs.protocol(args.protocol)
        stage.work()


def has_work_left(stages: Callable[[], Sequence[Stage]]) -> bool:
    """Whether any stage has anything left to train. Finished outputs are logged.

    A task with an error counts as unfinished: the actual run reports the error.
    """
    try:
        for stage in stages():
            stage.work()
    except (Unfinished, UserError):
        return True
    return False


# Training into an output folder


class Trainable(Protocol):
    """A network with everything that its tasks own: a `SharedNetwork` or an `Approach`."""

    network: nn.Module

    def to(self, device: torch.device) -> Any:
        """Move everything to `device`."""

    def payload(self) -> dict:
        """Its part of a checkpoint."""


def train_into(
    output: Output,
    *,
    recipe: StageRecipe | ContinualStageRecipe,
    begin: Callable[[], Trainable],
    restore: Callable[[dict, Path], Trainable],
    batches: Batches,
    compute: Compute,
    trackers: Trackers,
    log: type["EpochLog"] | None = None,
) -> dict:
    """Train the newest task of a network as `recipe` says, and write its checkpoint.

    Args:
        begin: makes the network with the task begun, when there is nothing to resume.
        restore: makes the network from an unfinished checkpoint and its path.
        trackers: follow the training run.
        log: logs the epochs and saves the unfinished run (default: `EpochLog`).

    Returns:
        The finished checkpoint's payload; `payload["metrics"]` has the final metrics.

    Raises:
        Diverged: if the loss diverged and no best state was kept; the resume file is removed.
        Unfinished: if the output is only being listed, and training is left.
    """
    finished = output.finished()
    if finished is not None:
        logging.info("%s is finished: skipped (--overwrite redoes it)", output.checkpoint)
        return finished
    unfinished = output.unfinished()
    torch.manual_seed(recipe.draws)
    if unfinished is None:
        model, progress = begin(), None
    else:
        model = restore(unfinished, output.resume)
        progress = Progress(**unfinished["progress"])
        logs.forget_epochs(after=progress.epoch)
    model.to(compute.device)
    learner = recipe.learner(model, batches=batches, compute=compute)
    messages = {"title": recipe.title, "remedy": f"lower {recipe.lr_flag}"}
    logging.info("Training %s, for at most %d epochs", recipe.title, output.epochs)
    with trackers.follow(
        trackers.name_of(output.folder), configuration=output.stamp, resumed=progress is not None
    ) as tracking:
        epoch_log = (log or EpochLog)(model, output=output, compute=compute, tracking=tracking)
        try:
            progress = fit(
                model.network,
                learner=learner,
                batches=batches,
                compute=compute,
                seed=recipe.draws,
                progress=progress,
                observer=epoch_log,
                **messages,
            )
            row = final_row(progress, monitor=learner.monitor, **messages)
        except Diverged:
            output.discard()
            raise
        epoch_log.after_task()
        test = evaluate(model.network, batches.test(), autocast=compute.autocast, method=learner.method)
        metrics = {
            "train_accuracy": row["accuracy"],
            "validation_accuracy": row["val_accuracy"],
            "test_accuracy": test.accuracy,
        }
        tracking.finish(metrics)
    return output.finish(model.payload(), progress, metrics=metrics)


class EpochLog(Observer):
    """Logs every epoch of a network whose weights tasks own, and saves the unfinished run occasionally.

    Args:
        model: the network with everything that its tasks own.
        output: where the unfinished run is saved.
        tracking: receives the same epochs as the log.
    """

    def __init__(self, model: Trainable, *, output: Output, compute: Compute, tracking: Tracking) -> None:
        self.model = model
        self.tracking = tracking
        self.output = output
        self.compute = compute
        self._save = Sparingly(self.save)

    def metrics(self) -> dict:
        return ownership_metrics(self.model.shares(self.model.tasks[-1].name))

    def after_epoch(self, progress: Progress) -> None:
        for line in self.lines(progress.history[-1]):
            logs.epoch_line(line)
        self.tracking.log(progress.history)
        if progress.epoch < self.output.epochs:
            self._save.call(progress)

    def after_task(self) -> None:
        """Called when training has ended, before the final evaluation."""

    def lines(self, row: dict) -> Sequence[str]:
        """One row of the history as log lines, in the published format."""
        train = f"{train_line(row)}, sparsity: {row['sparsity']:.3f}, network_width_mpl: {row['mpl']}"
        return train, shared_line(row, epoch=row["epoch"], task_index=len(self.model.tasks))

    def save(self, progress: Progress) -> None:
        """Write the resume file."""
        payload = self.model.payload()
        if progress.best_epoch == progress.epoch:
            # torch.save stores shared tensors once.
            payload["model_state_dict"] = progress.best
        self.output.save_unfinished(payload, progress)


class Sparingly:
    """Calls a function the first time, then only as often as keeps it within `SAVING_SHARE` of the time.

    After a kill, epochs that were not saved are trained again, with the same result.
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


# Log lines, in the published format


def ownership_metrics(shares: Shares) -> dict:
    """Shares of the weights, as columns of `train.csv`."""
    return {
        "sparsity": shares.sparsity,
        "task_ratio": shares.task_ratio,
        "zero_ratio": shares.zero_ratio,
        "mpl": shares.width,
        "shared_ratio": shares.shared_ratio,
    }


def train_line(row: dict) -> str:
    """The training metrics of one epoch."""
    return (
        f"In train()-> Train Ep. #{row['epoch']} loss: {_shown(row['loss'])}, "
        f"accuracy: {100 * row['accuracy']:.2f}, lr: {row['lr']:.6g}"
    )


def validation_line(row: dict, *, epoch: int) -> str:
    """The validation metrics after one epoch."""
    return (
        f"In validate()-> Val Ep. #{epoch} loss: {_shown(row['val_loss'])}, "
        f"accuracy: {100 * row['val_accuracy']:.2f}"
    )


def shared_line(row: dict, *, epoch: int, task_index: int) -> str:
    """The validation line with the shares of the weights."""
    return (
        f"{validation_line(row, epoch=epoch)}, sparsity: {row['sparsity']:.3f}, "
        f"task{task_index} ratio: {row['task_ratio']:.3f}, zero ratio: {row['zero_ratio']:.3f}, "
        f"mpl: {row['mpl']}, shared_ratio: {row['shared_ratio']:.3f}"
    )


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"
