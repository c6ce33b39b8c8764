"""Learn all tasks of a table in sequence in one network (CPG, Hung et al. 2019)."""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from data.tables import load_table
from methods.cpg import choose_ratio, ratio_for_room, reasons_to_grow, rounded, width_multipliers
from methods.ownership import SharedNetwork
from pipeline.architectures import PLAIN, SHARABLE
from pipeline.cpg import grow, log_choice, on_top_of, prune_gradually, widths_text
from pipeline.flags import changed
from pipeline.fleet import paths_of, selected_tasks, test_accuracy
from pipeline.named_files import check_named_files
from pipeline.recipe import (
    InSequenceRecipe,
    PruningSchedule,
    SequenceTaskRecipe,
    recorded_freed,
    text_entries,
)
from pipeline.train_task import TaskRun
from training.checkpoints import fingerprint, save_checkpoint
from training.outputs import remove_stale, require_same
from training.trackers import require_trackers
from utils import logs
from utils.errors import UserError
from utils.files import csv_text, json_text, write_atomically, write_changed
from utils.folders import alone_in
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
from utils.runtime import set_up_process
from utils.tables import as_text

NOTES = """\
scratch, learned, end: test accuracy of the task's scratch network, of the sequence's network right after
learning the task, and after its last task. gain: end minus scratch. ratio: chosen pruning ratio. width:
network width when the task was learned. owned: share of the final network's weights. ±: standard error."""


def run(args: argparse.Namespace) -> None:
    """Learn the tasks in `--dataset`, in that order, in one network; print the results.

    Raises:
        UserError: if a task has no scratch baseline, or another recipe made a finished output.
    """
    require_trackers(args.log_to)
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = selected_tasks(args, table)
    if len(tasks) > args.total_num_tasks:
        raise UserError(f"--total_num_tasks {args.total_num_tasks}: --dataset names {len(tasks)} tasks")
    paths = paths_of(args)
    check_named_files(args)
    log = args.log_path / args.logfile if args.log_path else paths.stage_log(table.name, "cpg_sequence")
    folder = paths.in_sequence(table.name, 1, tasks[0].name).parent
    runs = [TaskRun(args, table=table, task=task, layers=SHARABLE) for task in tasks]
    steps = [TaskInSequence(run, number=number) for number, run in enumerate(runs, 1)]
    for step in steps:
        _ = step.baseline  # report a missing one before any training
    with alone_in(folder), logs.to_file(log, shared=bool(args.log_path)):
        logs.configuration(changed(args))
        logs.protocol(args.protocol)
        payload = None
        for step in steps:
            payload = step.learn(payload)
        report(steps, payload, paths=paths, config=table.name)


class TaskInSequence:
    """One task of the sequence.

    Args:
        run: the task with its data and flags.
        number: position of the task in the sequence, from 1.

    Attributes:
        selection: chosen ratio, width and accuracies, once the task is learned.
    """

    def __init__(self, run: TaskRun, *, number: int) -> None:
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
        """Learn the task on top of `before`; return the chosen network's payload.

        Args:
            before: the previous task's payload; None for the first task.
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

    def recipe(self, before: dict | None) -> SequenceTaskRecipe:
        """The task's recipe, without the room left for later tasks."""
        args = self.args
        return SequenceTaskRecipe(
            run=self.run.recipe,
            samples=self.run.samples,
            epochs=args.epochs,
            lr=args.lr,
            lr_mask=args.lr_mask,
            pruning=PruningSchedule.from_args(args),
            target_sparsity=tuple(args.target_sparsity),
            allow_acc_loss=args.allow_acc_loss,
            stop_pruning_early=args.stop_pruning_early,
            network_width_multiplier=args.network_width_multiplier,
            max_allowed_network_width_multiplier=args.max_allowed_network_width_multiplier,
            baseline=self.baseline,
            parent=None if before is None else fingerprint(before),
            pretrained=self.run.origin if before is None else None,
            freed=recorded_freed(args.freed),
        )

    def finished(self, recipe: SequenceTaskRecipe) -> dict | None:
        """The chosen network's payload; None if there is none or it is to be redone.

        Raises:
            UserError: if another recipe made it.
        """
        found = checkpoints_in(self.pruned)
        if self.args.overwrite or not found:
            return None
        path = found[max(found)]
        payload = self.run.load(path)
        made = payload.get("selection", {}).get("recipe", {})
        # The number of remaining tasks matters only if a ratio was forced.
        forced = None if made.get("forced_ratio") is None else ratio_for_room(self.remaining)
        require_same(made, recipe.stamp() | {"forced_ratio": forced}, where=path, implied=self.implied)
        logging.info("%s is finished: skipped (--overwrite redoes it)", path)
        return payload

    @property
    def implied(self) -> dict:
        """Recipe entries that older selections do not record, with their values then."""
        encoder = self.run.data.encoder
        texts = {} if encoder is None else text_entries(encoder.identity)
        return {"clip_grad_norm": self.run.build.clip_grad_norm, **texts}

    def choose(self, before: dict | None, *, recipe: SequenceTaskRecipe) -> dict:
        """Train, prune, choose a ratio and save its network; return its payload."""
        width, payload = self.train(before, recipe=recipe)
        accuracy = payload["metrics"]["validation_accuracy"]
        forced = None
        if rounded(accuracy) < recipe.baseline:
            forced = ratio_for_room(self.remaining)
            logging.info(
                "%s misses its baseline: pruning it to sparsity %s to leave room for %d more tasks",
                *(self.name, forced, self.remaining),
            )
        record = self.prune(payload, recipe=recipe, accuracy=accuracy, width=width, forced=forced)
        if forced is None:
            ratio = choose_ratio(record, baseline=recipe.baseline, allow_acc_loss=recipe.allow_acc_loss)
        else:
            ratio = max(record)
        log_choice(ratio, task=self.name, accuracy=record[ratio], baseline=recipe.baseline)
        folder = sparsity_folder(self.pruned, ratio) if ratio else width_folder(self.scratch, width)
        path = checkpoint_in(folder, remedy="run the same command again")
        payload = self.run.load(path)
        shared = self.run.restore(payload, path)
        selection = {
            "task": self.name,
            "ratio": ratio,
            "accuracy": record[ratio],
            "test_accuracy": self.run.evaluate(shared, epoch=payload["epoch"]).accuracy,
            "width_multiplier": width,
            "network": fingerprint(payload),
            "recipe": recipe.stamp() | {"forced_ratio": forced},
        }
        payload |= {"selection": selection}
        save_checkpoint(self.chosen, payload)
        remove_stale(self.chosen, made_by={"config": self.run.table.name, "task": self.name})
        return payload

    def train(self, before: dict | None, *, recipe: SequenceTaskRecipe) -> tuple[float, dict]:
        """Train at increasing widths until the task reaches its baseline; return the last width and payload.

        Every width starts from `before`, the first at that network's own width.

        Raises:
            UserError: if the network is already wider than it may grow.
        """
        first = recipe.network_width_multiplier if before is None else before["selection"]["width_multiplier"]
        widest = recipe.max_allowed_network_width_multiplier
        if first > widest:
            raise UserError(
                f"the network's width multiplier is {first} before task {self.name}, above "
                f"--max_allowed_network_width_multiplier {widest}: raise it"
            )
        payload, widths = grow(
            width_multipliers(first, widest),
            train_at=lambda multiplier: self.train_at(recipe.at_width(multiplier), before=before),
            too_small=lambda metrics: reasons_to_grow(
                accuracy=metrics["validation_accuracy"], baseline=recipe.baseline
            ),
            task=self.name,
        )
        write_changed(widths_file(self.scratch), widths_text(widths))
        return max(widths), payload

    def train_at(self, recipe: InSequenceRecipe, *, before: dict | None) -> dict:
        """Train the task at one width; return the finished payload."""

        def begin() -> SharedNetwork:
            if before is None:
                return self.run.new_network(width=recipe.width)
            return on_top_of(
                before, source=self.folder, task=self.run.task, build=self.run.build, recipe=recipe
            )

        folder = width_folder(self.scratch, recipe.width_multiplier)
        return self.run.train(recipe, folder=folder, begin=begin)

    def prune(
        self,
        parent: dict,
        *,
        recipe: SequenceTaskRecipe,
        accuracy: float,
        width: float,
        forced: float | None,
    ) -> dict[float, float]:
        """Prune to each ratio in turn; return accuracy by sparsity, with 0.0 for the unpruned network.

        Args:
            parent: payload of the trained network, with its `accuracy` and `width` multiplier.
            forced: last ratio, if the task misses its baseline: it leaves room for later tasks.
        """
        record = {0.0: accuracy}
        ratios: Sequence[float] = recipe.target_sparsity
        if forced is not None:
            ratios = [ratio for ratio in ratios if 0 < ratio < forced] + [forced] * (forced > 0)
        if not any((owner == self.number).any() for owner in parent["masks"].values()):
            logging.info("%s owns no weights: nothing to prune", self.name)
            ratios = []
        source = width_folder(self.scratch, width)
        for ratio, payload in prune_gradually(
            self.run,
            parent,
            schedule=recipe.pruning,
            source=source,
            pruned=self.pruned,
            ratios=ratios,
        ):
            record[ratio] = payload["metrics"]["validation_accuracy"]
            write_changed(record_file(self.pruned), json_text(record))
            missed = rounded(record[ratio]) + recipe.allow_acc_loss < recipe.baseline
            if missed and forced is None and recipe.stop_pruning_early:
                break
        return record

    def clear(self) -> None:
        """Remove all networks but the chosen one; keep logs and records."""
        tried = [*self.scratch.glob("width-*"), *(path for path in self.pruned.glob("*") if path.is_dir())]
        for path in (path for folder in tried for path in checkpoints_in(folder).values()):
            path.unlink()


def report(steps: Sequence[TaskInSequence], payload: dict, *, paths: Paths, config: str) -> None:
    """Evaluate the final network as every task; write and print the table."""
    shared = steps[-1].run.restore(payload, steps[-1].chosen)
    owned = shared.owned_shares()
    logging.info("The final network, evaluated as every task:")
    rows = []
    for step in steps:
        end = step.run.evaluate(shared, epoch=payload["epoch"]).accuracy
        scratch = test_accuracy(paths.baselines(config) / step.name, arch=step.args.arch, layers=PLAIN)
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
