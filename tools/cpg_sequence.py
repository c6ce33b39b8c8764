"""All tasks of a table in sequence in one network (CPG, Hung et al. 2019): train, prune, choose, next."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from data.tables import load_table
from methods.cpg import choose_ratio, ratio_for_room, rounded, width_multipliers
from methods.ownership import SharedNetwork
from models.network import Network
from tools.cpg_run import CPGRun
from tools.learning import evaluate_as
from tools.report import as_text, control
from tools.select_pruning_ratio import log_choice
from utils import arguments, logs
from utils.checkpoints import fingerprint, save_checkpoint
from utils.errors import UserError
from utils.files import csv_text, json_text, write_atomically, write_changed
from utils.paths import (
    Paths,
    checkpoint_in,
    checkpoint_name,
    checkpoints_in,
    record_file,
    sparsity_folder,
    width_folder,
    widths_file,
)
from utils.runs import deciding, require_same
from utils.runtime import set_threads

NOTES = """\
scratch, learned, end: accuracy on the test set of the task's scratch network, when the sequence had learned
the task, and after its last task. gain: end minus scratch. ratio: chosen pruning ratio. width: of the
network when the task was learned. owned: share of the final network's weights. ±: standard error."""

# Flags that decide the result of a task in the sequence, beside those that decide any training run's.
_DECIDING = (
    *("epochs", "lr", "lr_mask", "prune_epochs", "prune_lr", "pruning_interval", "pruning_frequency"),
    *("target_sparsity", "allow_acc_loss", "stop_pruning_early"),
    *("network_width_multiplier", "max_allowed_network_width_multiplier"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a sequence to those of a CPG script."""
    group = parser.add_argument_group("tasks in sequence")
    group.add_argument(
        "--total_num_tasks",
        type=arguments.positive_int,
        help="Learn the tasks of --dataset in turn in one network that is to hold so many in the end: each "
        "is trained, pruned, and its ratio chosen, before the next; with --mode finetune prune "
        "(default: a network for each task).",
    )
    arguments.add_allowed_loss(group)
    group.add_argument(
        "--stop_pruning_early",
        action="store_true",
        help="Try no ratio above one that misses the baseline (default: try all; a higher one may reach it).",
    )
    group.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="Keep the networks of every width and ratio (default: only the chosen one).",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the usage for flags that contradict a sequence, or that need one."""
    if args.total_num_tasks is None:
        if args.stop_pruning_early or args.keep_checkpoints:
            parser.error("--stop_pruning_early and --keep_checkpoints go with --total_num_tasks")
        return
    if args.mode != ["finetune", "prune"]:
        parser.error("--total_num_tasks: give --mode finetune prune with it")
    if (
        args.backbone
        or args.initial_sparsity
        or args.pruning_ratio_to_acc_record_file
        or args.network_width_multiplier == arguments.FROM_TARGET
    ):
        parser.error(
            "--total_num_tasks: leave out --backbone, --initial_sparsity, "
            "--pruning_ratio_to_acc_record_file and --network_width_multiplier from_target"
        )


def learn_sequence(
    args: argparse.Namespace,
    *,
    script: type[CPGRun],
    registry: Mapping[str, Callable[..., Network]],
    layers: str,
) -> None:
    """Learn the tasks that `--dataset` names, in that order, in one network; print what each reached.

    Raises:
        UserError: if a task has no scratch baseline, or other arguments made what is finished.
    """
    logs.to_terminal()
    set_threads(args.threads)
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = table.select(args.dataset)
    arguments.check_of_one_task(args, tasks)
    if len(tasks) > args.total_num_tasks:
        raise UserError(f"--total_num_tasks {args.total_num_tasks}: --dataset names {len(tasks)} tasks")
    paths = arguments.paths_of(args)
    log = args.log_path / args.logfile if args.log_path else paths.stage_log(table.name, "cpg_sequence")
    with logs.to_file(log, shared=bool(args.log_path)):
        runs = [script(args, table=table, task=task, registry=registry, layers=layers) for task in tasks]
        logs.configuration(runs[0].configuration)
        logs.protocol(args.protocol)
        steps = [TaskInSequence(run, number=number) for number, run in enumerate(runs, 1)]
        for step in steps:
            _ = step.baseline  # a missing one is told before any work
        payload = None
        for step in steps:
            payload = step.learn(payload)
        report(steps, payload, paths=paths, config=table.name)


class TaskInSequence:
    """One task of the sequence.

    Args:
        run: the task with its data and flags.
        number: of the task in the sequence, from 1.

    Attributes:
        selection: once learned, the chosen ratio, width and accuracies.
    """

    def __init__(self, run: CPGRun, *, number: int) -> None:
        self.run = run
        self.args = run.args
        self.number = number
        self.name: str = run.task.name
        self.folder: Path = run.paths.in_sequence(run.table.name, number, self.name)
        self.scratch = self.folder / "scratch"
        self.pruned = self.folder / "gradual_prune"
        self.remaining = self.args.total_num_tasks - number
        self.selection: dict = {}

    @cached_property
    def baseline(self) -> float:
        """Accuracy of the task's scratch network."""
        return self.run.baseline()

    @property
    def chosen(self) -> Path:
        """The network that the next task starts from."""
        return self.pruned / checkpoint_name(self.args.prune_epochs)

    def learn(self, before: dict | None) -> dict:
        """Learn the task after those in `before`; returns the chosen network's payload.

        Args:
            before: the payload that the task before this one left; None for a first task.
        """
        logging.info("Task %d of %d: %s", self.number, self.args.total_num_tasks, self.name)
        recipe = self.recipe(before)
        payload = self.finished(recipe)
        if payload is None:
            payload = self.choose(before, recipe=recipe)
        self.selection = payload["selection"]
        if not self.args.keep_checkpoints:
            self.clear()
        return payload

    def recipe(self, before: dict | None) -> dict:
        """All that decides the task's result, but for the room that later tasks are left."""
        return deciding(
            self.args,
            **{name: getattr(self.args, name) for name in _DECIDING},
            **self.run.build.sizes,
            config=self.run.table.name,
            task=self.name,
            baseline=self.baseline,
            data=self.run.data.fingerprint,
            **self.origins(before),
        )

    def origins(self, before: dict | None) -> dict:
        """What the task's weights start from."""
        return {
            "parent": None if before is None else fingerprint(before),
            "pretrained": self.run.origin if before is None else None,
        }

    def finished(self, recipe: dict) -> dict | None:
        """The chosen network's payload; None if there is none or it is to be redone.

        Raises:
            UserError: if other arguments made it.
        """
        found = checkpoints_in(self.pruned)
        if self.args.overwrite or not found:
            return None
        path = found[max(found)]
        payload = self.run.load(path)
        made = payload.get("selection", {}).get("recipe", {})
        # Only where a ratio was forced did the number of tasks to come decide anything.
        forced = None if made.get("forced_ratio") is None else ratio_for_room(self.remaining)
        require_same(made, recipe | {"forced_ratio": forced}, where=path)
        logging.info("%s is finished: skipped (--overwrite redoes it)", path)
        return payload

    def choose(self, before: dict | None, *, recipe: dict) -> dict:
        """Train, prune, choose a ratio and put its network in place; returns its payload."""
        width, payload = self.train(before)
        accuracy = payload["metrics"]["validation_accuracy"]
        forced = None
        if rounded(accuracy) < self.baseline:
            forced = ratio_for_room(self.remaining)
            logging.info(
                "%s stays under its baseline: %d tasks to come take sparsity %s",
                *(self.name, self.remaining, forced),
            )
        record = self.prune(payload, accuracy=accuracy, width=width, forced=forced)
        if forced is None:
            ratio = choose_ratio(record, baseline=self.baseline, allow_acc_loss=self.args.allow_acc_loss)
        else:
            ratio = max(record)
        log_choice(ratio, task=self.name, accuracy=record[ratio], baseline=self.baseline)
        folder = sparsity_folder(self.pruned, ratio) if ratio else width_folder(self.scratch, width)
        path = checkpoint_in(folder, remedy="run the same command again")
        payload = self.run.load(path)
        selection = {
            "task": self.name,
            "ratio": ratio,
            "accuracy": record[ratio],
            "test_accuracy": self.evaluate(self.restore(payload, path), epoch=payload["epoch"]),
            "width_multiplier": width,
            "network": fingerprint(payload),
            "recipe": recipe | {"forced_ratio": forced},
        }
        payload |= {"selection": selection}
        save_checkpoint(self.chosen, payload)
        for stale in checkpoints_in(self.pruned).values():
            if stale != self.chosen:
                stale.unlink()
        return payload

    def train(self, before: dict | None) -> tuple[float, dict]:
        """Train the task, wider and wider until it reaches its baseline; the last width and its payload.

        Each width starts from `before`, the first from that network's own.

        Raises:
            UserError: if the network is wider already than it may grow.
        """
        args = self.args
        first = args.network_width_multiplier if before is None else before["selection"]["width_multiplier"]
        widest = args.max_allowed_network_width_multiplier
        if first > widest:
            raise UserError(
                f"the network's width multiplier is {first} before task {self.name}, over "
                f"--max_allowed_network_width_multiplier {widest}: raise it"
            )
        widths = {}
        multipliers = width_multipliers(first, widest)
        for multiplier in multipliers:
            payload = self.train_at(multiplier, before=before)
            metrics = payload["metrics"]
            grow = rounded(metrics["validation_accuracy"]) < self.baseline
            widths[str(multiplier)] = metrics | {"grow": grow}
            write_changed(widths_file(self.scratch), json_text(widths))
            if not grow:
                break
            if multiplier != multipliers[-1]:
                logging.info("It's time to expand the Network")
        return multiplier, payload

    def train_at(self, multiplier: float, *, before: dict | None) -> dict:
        """Train the task at one width; returns the finished payload."""

        def begin() -> SharedNetwork:
            if before is None:
                return self.run.new_network(width=multiplier**0.5)
            shared = self.restore(before, self.folder)
            task = self.run.task
            shared.begin_task(
                task.name, num_classes=task.num_classes, width=multiplier**0.5, modality=task.modality
            )
            return shared

        return self.run.learn(
            folder=width_folder(self.scratch, multiplier),
            stage=f"in sequence, width {multiplier}",
            epochs=self.args.epochs,
            begin=begin,
            learner=self.run.learner,
            lr=self.args.lr,
            lr_mask=self.args.lr_mask,
            width_multiplier=multiplier,
            **self.origins(before),
        )

    def prune(
        self, parent: dict, *, accuracy: float, width: float, forced: float | None
    ) -> dict[float, float]:
        """Prune to ratio after ratio; returns sparsity → accuracy, the unpruned network's under 0.0.

        Args:
            parent: the trained network, of this `accuracy` and at this `width` multiplier.
            forced: the last ratio, to make room for later tasks, where the task misses its baseline.
        """
        record = {0.0: accuracy}
        ratios = self.args.target_sparsity
        if forced is not None:
            ratios = [ratio for ratio in ratios if 0 < ratio < forced] + [forced] * (forced > 0)
        if not any((owner == self.number).any() for owner in parent["masks"].values()):
            logging.info("%s owns no weight: there is nothing to prune", self.name)
            ratios = []
        source, initial = width_folder(self.scratch, width), 0.0
        for ratio in ratios:
            folder = sparsity_folder(self.pruned, ratio)
            parent = self.run.prune_from(parent, source=source, folder=folder, initial=initial, final=ratio)
            source, initial = folder, ratio
            record[ratio] = parent["metrics"]["validation_accuracy"]
            write_changed(record_file(self.pruned), json_text(record))
            logging.info("Accuracy of %s at sparsity %s: %.4f", self.name, ratio, record[ratio])
            missed = rounded(record[ratio]) + self.args.allow_acc_loss < self.baseline
            if missed and forced is None and self.args.stop_pruning_early:
                break
        return record

    def restore(self, payload: dict, source: Path) -> SharedNetwork:
        """The network in a checkpoint, on the device."""
        shared = SharedNetwork.from_payload(payload, build=self.run.build, source=source)
        return shared.to(self.run.device)

    def evaluate(self, shared: SharedNetwork, *, epoch: int) -> float:
        """Test accuracy of the network as this task."""
        batches = self.run.batches.test()
        return evaluate_as(
            shared, self.name, batches=batches, precision=self.args.precision, epoch=epoch
        ).accuracy

    def clear(self) -> None:
        """Remove the networks that were tried on the way to the chosen one; logs and records stay."""
        tried = [*self.scratch.glob("width-*"), *(path for path in self.pruned.glob("*") if path.is_dir())]
        for path in (path for folder in tried for path in checkpoints_in(folder).values()):
            path.unlink()


def report(steps: Sequence[TaskInSequence], payload: dict, *, paths: Paths, config: str) -> None:
    """Evaluate the final network as every task; write and print the table."""
    shared = steps[-1].restore(payload, steps[-1].chosen)
    owned = shared.owned_shares()
    logging.info("The network after its last task, as every task:")
    rows = []
    for step in steps:
        end = step.evaluate(shared, epoch=payload["epoch"])
        folder = paths.baselines(config) / step.name
        scratch = control(folder, arch=step.args.arch, layers="plain")
        rows.append(
            {
                "id": step.run.task.id,
                "task": step.name,
                "scratch": scratch,
                "learned": step.selection["test_accuracy"],
                "end": end,
                "gain": None if scratch is None else end - scratch,
                "ratio": step.selection["ratio"],
                "width": step.selection["width_multiplier"],
                "owned": owned[step.name],
            }
        )
    columns = list(rows[0])
    path = paths.in_sequence_report(config)
    write_atomically(path, csv_text(rows, columns))
    sys.stdout.write(f"{as_text(rows, columns)}\n{NOTES}\nThe same table: {path}\n")
