"""What the training scripts share: one task with its data, its network's making and its outputs."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

from data.loading import Batches, TaskData, load_task
from data.tables import Table, Task, load_table
from data.text_encoders import MAX_TOKENS, TextEncoder
from methods import footprint
from methods.ownership import SharedNetwork
from models.network import Network
from tools.learning import evaluate_as, learn, open_folder
from tools.pretrained import start_of
from utils import arguments, logs
from utils.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.files import json_text, read_csv, read_json, write_atomically
from utils.paths import Paths, widths_file
from utils.runs import Output, deciding
from utils.runtime import resolve_device, set_threads
from utils.seeds import derive_seed
from utils.training import Learner

FROM_CSV = "from_csv"


class TaskRun:
    """One task of a table under one set of flags.

    A script subclasses it: `folder` says where the task's log goes, `run` does the work.

    Args:
        args: the script's flags.
        table, task: what is learned.
        registry: architecture name → builder.
        layers: the kind of layers the registry builds with, "plain" or "sharable".
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        table: Table,
        task: Task,
        registry: Mapping[str, Callable[..., Network]],
        layers: str,
    ) -> None:
        self.args = args
        self.table = table
        self.task = task
        self.paths: Paths = arguments.paths_of(args)
        self.build = arguments.asked_architecture(registry, args, in_channels=table.channels, size=table.size)
        self.architecture = self.build.entry(layers)
        self.clip_grad_norm = arguments.clip_grad_norm(args.clip_grad_norm, build=self.build)
        self.device = resolve_device(args.device)
        self.start = start_of(args)
        arguments.check_num_classes(args.num_classes, task=task.name, num_classes=task.num_classes)

    @property
    def folder(self) -> Path:
        """Where the log goes."""
        raise NotImplementedError

    def run(self) -> None:
        """Do what the flags ask for."""
        raise NotImplementedError

    @property
    def configuration(self) -> dict:
        """Every flag as it was resolved, and all sizes of the network."""
        return vars(self.args) | self.build.sizes | {"clip_grad_norm": self.clip_grad_norm}

    @cached_property
    def origin(self) -> str | None:
        """What a first task's weights start from; None: at random."""
        return None if self.start is None else self.start.origin

    @cached_property
    def data(self) -> TaskData:
        """The task's samples, on the device.

        Raises:
            UserError: if a text is longer than the network has positions.
        """
        data = load_task(
            self.table,
            self.task,
            data_root=self.args.data_root,
            protocol=self.args.protocol,
            seed=self.args.seed,
            device=self.device,
            text_encoder=self.args.text_encoder,
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
        """Batches of them."""
        return Batches(self.data, batch_size=self.args.batch_size, val_batch_size=self.args.val_batch_size)

    def baseline(self) -> float:
        """The accuracy of the task's scratch network, as stage 1 wrote it.

        Raises:
            UserError: if the file or the task's entry in it is missing.
        """
        path = self.args.jsonfile or self.paths.baseline_file(self.table.name)
        return read_baseline(path, task=self.task.name)

    def new_network(self, *, width: float) -> SharedNetwork:
        """A network that has just begun the task, with nothing learned before but what it starts from."""
        shared = SharedNetwork(build=self.build, width=width)
        if self.start is not None:
            self.start.put_into(shared.network, build=self.build)
        shared.begin_task(self.task.name, num_classes=self.task.num_classes, modality=self.task.modality)
        return shared

    def load(self, path: Path) -> dict:
        """The payload of the checkpoint at `path`, which must be of this architecture and size."""
        name, layers = self.architecture["name"], self.architecture["layers"]
        return load_checkpoint(path, architecture=name, layers=layers, sizes=self.build.sizes)

    def load_learned(self, path: Path) -> dict:
        """The same, for a network that must know the task's texts by the encoder in use."""
        payload = self.load(path)
        check_text_encoder(payload, task=self.task, encoder=self.data.encoder, where=path)
        return payload

    def learn(
        self,
        *,
        folder: Path,
        stage: str,
        epochs: int,
        begin: Callable[[], SharedNetwork],
        learner: Callable[[SharedNetwork], Learner],
        lr_flag: str = "--lr",
        **deciders: object,
    ) -> dict:
        """Learn into `folder`; `deciders` are what the result depends on beyond the common flags.

        Args:
            lr_flag: what sets the weights' learning rate, for messages.

        Returns:
            The finished checkpoint's payload.
        """
        output = Output(
            folder=folder,
            epochs=epochs,
            architecture=self.architecture,
            arguments=deciding(
                self.args,
                config=self.table.name,
                task=self.task.name,
                stage=stage,
                epochs=epochs,
                clip_grad_norm=self.clip_grad_norm,
                data=self.data.fingerprint,
                **self.build.sizes,
                **self.text_deciders(),
                **deciders,
            ),
            task_table=self.task_table(),
            overwrite=self.args.overwrite,
        )
        with self.log_into(folder):
            return learn(
                output=output,
                restore=lambda payload, source: SharedNetwork.from_payload(
                    payload, build=self.build, source=source
                ),
                begin=begin,
                learner=learner,
                batches=self.batches,
                seed=derive_seed(self.args.seed, self.table.name, self.task.name, stage),
                device=self.device,
                precision=self.args.precision,
                title=f"{self.task.name}, {stage}",
                lr_flag=lr_flag,
                clip_grad_norm=self.clip_grad_norm,
            )

    def text_deciders(self) -> dict:
        """What a text task depends on beside its data; named, so that a refusal can name it."""
        encoder = self.data.encoder
        return {} if encoder is None else {"text_encoder": encoder.identity, "max_tokens": MAX_TOKENS}

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
            return entry | self.text_deciders()
        return entry | {
            "size": self.table.size,
            "channels": self.table.channels,
            "crop_padding": self.table.augment.crop_padding,
            "flip": self.table.augment.flip,
            "mean": self.data.mean.tolist(),
            "std": self.data.std.tolist(),
        }

    def log_into(self, folder: Path) -> AbstractContextManager:
        """A log file in an output folder, where the run's own log is not in it already."""
        if self.args.log_path or folder == self.folder:
            return nullcontext()
        return logs.to_file(folder / self.args.logfile)

    def look_at(self, folder: Path) -> None:
        """Evaluate the checkpoint in `folder` as the task on the test samples, and report what it takes."""
        shared, epoch = open_folder(
            folder,
            load=self.load_learned,
            build=self.build,
            task=self.task.name,
            num_classes=self.task.num_classes,
            device=self.device,
        )
        batches = self.batches.test()
        evaluate_as(shared, self.task.name, batches=batches, precision=self.args.precision, epoch=epoch)
        if self.args.compute_report:
            self.report_footprint(shared)

    def report_footprint(self, shared: SharedNetwork) -> None:
        """Print what the network takes, and write it as JSON where `--report_file` says."""
        inputs, _ = next(iter(self.batches.test()))
        figures = footprint.footprint(shared, self.task.name, inputs=inputs[:1])
        sys.stdout.write(footprint.as_text(figures) + "\n")
        if self.args.report_file:
            write_atomically(self.args.report_file, json_text(figures | {"architecture": self.architecture}))


def run_tasks(
    args: argparse.Namespace,
    *,
    script: type[TaskRun],
    registry: Mapping[str, Callable[..., Network]],
    layers: str,
    modality: str | None = None,
) -> None:
    """Run a script's work for every task that `--dataset` names, in turn, each with its log file.

    Args:
        modality: leaves out the tasks of any other.
    """
    logs.to_terminal()
    set_threads(args.threads)
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = [task for task in table.select(args.dataset) if modality in (None, task.modality)]
    if not tasks:
        raise UserError(f"--modality {modality} leaves none of the tasks {args.dataset}: leave it out")
    arguments.check_of_one_task(args, tasks)
    for task in tasks:
        run = script(args, table=table, task=task, registry=registry, layers=layers)
        # Looking at a checkpoint leaves its folder as it is.
        folder = args.log_path or (None if "inference" in args.mode else run.folder)
        log = logs.to_file(folder / args.logfile, shared=bool(args.log_path)) if folder else nullcontext()
        with log:
            logs.configuration(run.configuration)
            logs.protocol(args.protocol)
            run.run()


def check_text_encoder(payload: Mapping, *, task: Task, encoder: TextEncoder | None, where: Path) -> None:
    """Refuse a network that learned the texts of `task`, its newest, by another encoder than `encoder`.

    Raises:
        UserError: naming `where` and both encoders.
    """
    entry = payload.get("task_table", {})
    if encoder is None or entry.get("name") != task.name:
        return
    learned_with = entry.get("text_encoder", encoder.identity)
    if learned_with != encoder.identity:
        raise UserError(
            f"{where}: task {task.name} was learned with the text encoder {learned_with}, not "
            f"{encoder.identity}: give the same --text_encoder"
        )


def read_baseline(path: Path, *, task: str) -> float:
    """The scratch accuracy of `task` in a baseline file.

    Raises:
        UserError: if the file or the entry is missing or no number.
    """
    remedy = "run run_pickaback/baseline.sh first, or give the file with --jsonfile"
    entries = read_json(path, remedy=remedy)
    if task not in entries:
        raise UserError(f"{path} has no entry for task {task}: {remedy}")
    try:
        return float(entries[task])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the entry of task {task} is no number ({entries[task]!r}): {remedy}"
        ) from error


def read_widths(folder: Path) -> dict[float, dict]:
    """Width multiplier → figures of a target on its backbone, narrowest first.

    Raises:
        UserError: if the target has not been trained.
    """
    entries = read_json(widths_file(folder), remedy="run run_pickaback/w_backbone.sh first")
    return {float(width): entries[width] for width in sorted(entries, key=float)}


def chosen_backbone(path: Path, *, table: Table, target: Task) -> Task:
    """The backbone that stage 3-1 chose for `target`.

    Raises:
        UserError: if the CSV has no row for it, or names an unknown task or the target itself.
    """
    remedy = "run run_pickaback/find_backbone.sh first, or give --backbone"
    for row in read_csv(path, columns=("target_id", "task_id"), remedy=remedy):
        if row["target_id"] == str(target.id):
            try:
                backbone = table.task(row["task_id"])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if backbone == target:
                raise UserError(f"{path} pairs task {target.name} with itself: {remedy}")
            return backbone
    raise UserError(f"{path} has no row for target {target.id} ({target.name}): {remedy}")


def backbone_of(target: Task, *, asked: str, table: Table, pairs: Path) -> Task:
    """The backbone of `target`: the task `asked`, or, from_csv, the one that stage 3-1 chose.

    Args:
        pairs: CSV of the chosen backbones.

    Raises:
        UserError: if there is none, or if it is the target itself.
    """
    if asked == FROM_CSV:
        return chosen_backbone(pairs, table=table, target=target)
    return named_backbone(asked, table=table, target=target)


def named_backbone(asked: str, *, table: Table, target: Task) -> Task:
    """The task that --backbone names.

    Raises:
        UserError: if there is no such task, or if it is the target itself.
    """
    backbone = table.task(asked)
    if backbone == target:
        raise UserError(f"--backbone {asked} is the target itself: choose another task")
    return backbone


def final_width(paths: Paths, *, table: Table, target: Task, pairs: Path) -> float:
    """The width multiplier that a target ended at in stage 3-2 on its backbone in the CSV `pairs`."""
    backbone = chosen_backbone(pairs, table=table, target=target)
    return max(read_widths(paths.target(table.name, backbone.name, target.name)))
