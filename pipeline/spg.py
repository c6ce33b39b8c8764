"""Run an approach on a sequence of tasks, and evaluate after each task."""

import argparse
import hashlib
import json
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.loading import Batches, TaskData
from data.sequences import Sequence as TaskSequence
from data.sequences import joint_task, known_sequences, load_sequence, load_task, require_enough_images
from methods.approaches import APPROACHES
from methods.approaches.base import Approach, Settings
from models import CONVOLUTIONAL
from models.network import Network
from pipeline.architectures import PLAIN, architecture
from pipeline.flags import SEED_PLACE, add_settings, changed, settings_from
from pipeline.fleet import read_reference, trackers_of
from pipeline.recipe import ContinualRecipe, ContinualStageRecipe
from pipeline.train_task import EpochLog, train_into, train_line, validation_line
from training.loop import Compute, evaluate
from training.outputs import Output, remove_output, require_same
from training.trackers import Tracking, require_trackers
from utils import logs, metrics
from utils.architecture_names import FileArchitecture
from utils.errors import UserError
from utils.files import csv_text, write_atomically
from utils.folders import alone_in
from utils.paths import Paths, checkpoints_in
from utils.runtime import resolve_device, set_up_process, synchronised_clock
from utils.tables import aligned, plus_minus

TUNED = "alexnet"  # the only architecture with dropout; the sequences' dropouts are tuned for it
JOINT = "all_tasks"
SEQUENCE = "sequence"  # name of the sequence as a whole in trackers

# Columns of the final table: the key in metrics.json, the heading, the format.
_COLUMNS = (
    ("average_accuracy", "accuracy", ".3f"),
    ("average_over_time", "over time", ".3f"),
    ("backward_transfer", "backward", "+.3f"),
    ("forward_transfer", "forward", "+.3f"),
    ("forgetting", "forgetting", ".3f"),
    ("epochs", "epochs", ".0f"),
    ("seconds_per_task", "s/task", ".1f"),
)


def run(args: argparse.Namespace) -> None:
    """Run an approach with one or several seeds, and print its metrics."""
    require_trackers(args.log_to)
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=args.nondeterministic)
    seeds = args.seeds or range(args.seed, args.seed + args.trials)
    results = [ContinualRun(args, seed=seed).run() for seed in seeds]
    sys.stdout.write(table(results) + "\n")


def add_approaches(parser: argparse.ArgumentParser) -> None:
    """Add the settings of all approaches as flags, and name approaches and sequences in the help."""
    add_settings(parser, "all approaches", Settings)
    names: dict[type, list[str]] = {}
    for name, approach in APPROACHES.items():
        names.setdefault(approach.Options, []).append(name)
    for options, users in names.items():
        add_settings(parser, f"{' and '.join(users)} only", options)
    parser.epilog = (
        f"Sequences: {', '.join(known_sequences())}. Approaches: {', '.join(APPROACHES)}. "
        "Settings may also be written `appr=spg seq=cifar100_10`."
    )


class ContinualLog(EpochLog):
    """Logs the epochs of an approach, and counts the epochs and seconds of its newest task."""

    def __init__(self, model: Approach, *, output: Output, compute: Compute, tracking: Tracking) -> None:
        super().__init__(model, output=output, compute=compute, tracking=tracking)
        self._clock = synchronised_clock(compute.device)
        self._since = self._clock()

    def metrics(self) -> dict:
        self._count_time()
        self.model.epochs += 1
        return {}

    def after_task(self) -> None:
        logging.info("After the last epoch, the approach took another %.1f s", self._count_time())

    def _count_time(self) -> float:
        now = self._clock()
        seconds, self._since = now - self._since, now
        self.model.seconds += seconds
        return seconds

    def lines(self, row: dict) -> Sequence[str]:
        return train_line(row), validation_line(row, epoch=row["epoch"])


class ContinualRun:
    """One approach on one sequence of tasks, with one seed.

    Args:
        args: the flags of spg_main.py.
        seed, approach: override the flags.
        decide_on: the samples that accuracies are measured on: "test", or "validation" for tuning.

    Raises:
        UserError: for an unknown approach, architecture or sequence (the message lists the known ones), a
            sequence whose raw files are not prepared, or dropouts for another architecture than `TUNED`.
    """

    def __init__(
        self, args: argparse.Namespace, *, seed: int, approach: str | None = None, decide_on: str = "test"
    ) -> None:
        self.args = args
        self.approach = approach or args.appr
        if self.approach not in APPROACHES:
            raise UserError(f"unknown approach {self.approach!r}: choose from {', '.join(APPROACHES)}")
        self.kind = APPROACHES[self.approach]
        self.sequence: TaskSequence = load_sequence(args.seq, data_root=args.data_root, seed=seed)
        self.names = [task.name for task in self.sequence.table.tasks]
        if not isinstance(args.arch, FileArchitecture) and args.arch not in CONVOLUTIONAL:
            raise UserError(f"unknown --arch {args.arch!r}: choose from {', '.join(CONVOLUTIONAL)}")
        self.architecture = architecture(
            args.arch, layers=PLAIN, in_channels=self.sequence.table.channels, size=self.sequence.table.size
        )
        if args.dropout and args.arch != TUNED:
            raise UserError(f"--dropout requires --arch {TUNED}: {args.arch} has its own, or none")
        dropout = tuple(args.dropout or self.sequence.dropout) if args.arch == TUNED else None
        self.recipe = ContinualRecipe(
            seq=self.sequence.name,
            appr=self.approach,
            arch=str(args.arch),
            arch_file=self.architecture.file,
            seed=seed,
            precision=args.precision,
            nondeterministic=args.nondeterministic,
            epochs=args.epochs,
            batch_size=args.batch_size,
            width=self.sequence.width,
            dropout=dropout,
            settings=settings_from(args, Settings),
            options=settings_from(args, self.kind.Options),
            definition=self.sequence.definition,
        )
        self.compute = Compute(device=resolve_device(args.device), precision=args.precision)
        self.decide_on = decide_on
        run = (args.run or self.run_name(self.approach)).replace(SEED_PLACE, str(seed))
        if decide_on == "validation":
            run = Paths.tuning_run_name(run, dropout=dropout)
        self.paths = self.paths_of(run)
        self.trackers = trackers_of(args, self.paths)
        self._data: dict[int, TaskData] = {}

    def run_name(self, approach: str) -> str:
        """The default name of an approach's run on the same sequence, seed and architecture."""
        return Paths.continual_run_name(
            sequence=self.recipe.seq, approach=approach, seed=self.recipe.seed, arch=self.recipe.arch
        )

    def paths_of(self, run: str) -> Paths:
        """Where the files of a run are."""
        args = self.args
        return Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)

    # Networks, data and recipes

    @property
    def setup(self) -> dict[str, Any]:
        """The arguments of the approach's constructor."""
        return {
            "build": self.build,
            "total": len(self.names),
            "settings": self.recipe.settings,
            "options": self.recipe.options,
        }

    def build(self, *, width: float) -> Network:
        """The sequence's network, without heads, its channels multiplied by `width`."""
        dropout = {} if self.recipe.dropout is None else {"dropout": self.recipe.dropout}
        try:
            network = self.architecture.make(width=width * self.recipe.width, **dropout)
        except ValueError as error:
            raise UserError(
                f"--arch {self.recipe.arch} cannot learn {self.recipe.seq}: {error}: choose another"
            ) from error
        # The heads are linear (SphereNet's own are not).
        return Network(features=network.features, feature_width=network.feature_width)

    def configuration(self) -> dict:
        """All flags, as resolved for this run."""
        resolved = vars(self.args) | {
            "appr": self.approach,
            "seed": self.recipe.seed,
            "device": str(self.compute.device),
            "dropout": None if self.recipe.dropout is None else list(self.recipe.dropout),
            "run": self.paths.run,
        }
        return {name: str(value) if isinstance(value, Path) else value for name, value in resolved.items()}

    def data(self, number: int) -> TaskData:
        """The samples of task `number`, from 1, on the device; read once and kept."""
        if number not in self._data:
            self._data[number] = load_task(
                self.sequence, number, data_root=self.args.data_root, device=self.compute.device
            )
        return self._data[number]

    def data_until(self, number: int) -> str:
        """Fingerprint of the data of tasks 1 to `number`.

        Earlier tasks keep only the samples that accuracies are measured on, so that memory does not grow with
        their training data.
        """
        for earlier in range(1, number):
            self._data[earlier] = self.data(earlier).only(self.decide_on)
        fingerprints = [self.data(task).fingerprint for task in range(1, number + 1)]
        return hashlib.sha256("".join(fingerprints).encode()).hexdigest()

    def batches(self, data: TaskData) -> Batches:
        """Batches of a task's samples, in fixed order."""
        return Batches(
            data,
            batch_size=self.recipe.batch_size,
            val_batch_size=self.args.val_batch_size,
            shuffle=False,
            augment=False,
        )

    def stage_recipe(self, number: int, stage: str) -> ContinualStageRecipe:
        """The recipe of one training stage of a task. Joint training counts as the last task."""
        name = JOINT if self.kind.joint else self.names[number - 1]
        return ContinualStageRecipe(run=self.recipe, task=name, stage=stage, data=self.data_until(number))

    def output(self, recipe: ContinualStageRecipe) -> Output:
        """The output folder of a stage."""
        return Output(
            folder=self.paths.continual_task(recipe.task, recipe.stage),
            epochs=self.recipe.epochs,
            architecture=self.architecture.entry,
            stamp=recipe.stamp(),
            task_table={
                "config": self.recipe.seq,
                "name": recipe.task,
                "classes": {task.name: list(task.classes) for task in self.sequence.table.tasks},
                "size": self.sequence.table.size,
                "channels": self.sequence.table.channels,
            },
        )

    # The run

    def run(self) -> dict:
        """Learn the unfinished tasks; return the content of `metrics.json`."""
        with alone_in(self.paths.continual_checkpoints()):
            return self._run()

    def _run(self) -> dict:
        if self.args.overwrite:
            self.clear()
        with logs.to_file(self.paths.continual_log()):
            logs.configuration(changed(self.args) | {"appr": self.approach, "seed": self.recipe.seed})
            logging.info(
                "%s on %s, seed %d: %d tasks",
                *(self.approach, self.recipe.seq, self.recipe.seed, len(self.names)),
            )
            for note in self.sequence.notes:
                logging.info("%s", note)
            require_enough_images(self.sequence, data_root=self.args.data_root)
            history = self.learn_jointly() if self.kind.joint else self.learn_in_turn()
            result = self.metrics(history)
            write_atomically(self.paths.metrics_file(), json.dumps(result, indent=1) + "\n")
            write_atomically(
                self.paths.configuration_file(), json.dumps(self.configuration(), indent=1) + "\n"
            )
            self.track(result)
        return result

    def clear(self) -> None:
        """Delete the files of earlier runs of the same approach under this name."""
        for task in (JOINT, *self.names):
            self.forget(task)
        for name in ("accuracy_matrix", "metrics_file", "configuration_file"):
            getattr(self.paths, name)().unlink(missing_ok=True)

    def forget(self, task: str) -> None:
        """Delete the checkpoints of one task."""
        made_by = {"seq": self.recipe.seq, "appr": self.approach, "task": task}
        for stage in self.kind.stages(remaining=1):
            folder = self.paths.continual_task(task, stage)
            remove_output(folder, root=self.paths.checkpoints, made_by=made_by)

    def learn_in_turn(self) -> list[dict]:
        """Learn the tasks in order, evaluating on all tasks so far after each.

        Returns:
            One entry per task: its cost, and the accuracies after it.
        """
        history: list[dict] = []
        done, payload = self.newest_finished()
        if done:
            logging.info("Tasks 1 to %d are finished: skipped (--overwrite redoes them)", done)
        for number in range(max(done, 1), len(self.names) + 1):
            if number > done:
                payload = self.learn_task(number, before=payload, history=history)
            approach = self.restore(payload, self.output(self.stage_recipe(number, "train")).checkpoint)
            history = [*approach.history, self.evaluate_after(number, approach)]
            self.write_matrix([entry["accuracies"] for entry in history])
            if number > 1 and not self.args.keep_checkpoints:
                self.forget(self.names[number - 2])
        return history

    def newest_finished(self) -> tuple[int, dict | None]:
        """The number (from 1) and payload of the last finished task; 0 and None if there is none.

        Raises:
            UserError: if another recipe made it.
        """
        for number in range(len(self.names), 0, -1):
            stage = self.stages(number)[-1]
            if checkpoints_in(self.paths.continual_task(self.names[number - 1], stage)):
                return number, self.output(self.stage_recipe(number, stage)).finished()
        return 0, None

    def stages(self, number: int) -> tuple[str, ...]:
        """The training stages of a task."""
        return self.kind.stages(remaining=len(self.names) - number)

    def learn_task(self, number: int, *, before: dict | None, history: list[dict]) -> dict:
        """Learn one task on top of the earlier ones; return its checkpoint's payload."""
        data = self.data(number)
        task = data.task

        def begin() -> Approach:
            fresh = before is None or self.kind.independent
            approach = self.kind(**self.setup) if fresh else self.restore(before, self.paths.run)
            approach.begin_task(task.name, task.num_classes)
            approach.history = history
            return approach

        first, *others = self.stages(number)
        payload = self.learn_stage(number, first, begin=begin, data=data)
        for stage in others:
            parent = payload
            payload = self.learn_stage(
                number, stage, begin=lambda parent=parent: self.restore(parent, self.paths.run), data=data
            )
        return payload

    def learn_jointly(self) -> list[dict]:
        """Learn all tasks at once; return their cost and the accuracies as a single entry."""
        total = len(self.names)
        parts = [self.data(number) for number in range(1, total + 1)]

        def begin() -> Approach:
            approach = self.kind(**self.setup)
            for part in parts:
                approach.begin_task(part.task.name, part.task.num_classes)
            return approach

        data = joint_task(self.sequence, parts, name=JOINT)
        payload = self.learn_stage(total, "train", begin=begin, data=data)
        approach = self.restore(payload, self.output(self.stage_recipe(total, "train")).checkpoint)
        entry = self.evaluate_after(total, approach) | {"task": JOINT}
        self.write_matrix([entry["accuracies"]], after=[JOINT])
        return [entry]

    def learn_stage(self, number: int, stage: str, *, begin: Callable[[], Approach], data: TaskData) -> dict:
        """Train the newest task of a network; skipped if finished, resumed if unfinished."""
        recipe = self.stage_recipe(number, stage)
        return train_into(
            self.output(recipe),
            recipe=recipe,
            begin=begin,
            restore=self.restore,
            batches=self.batches(data),
            compute=self.compute,
            trackers=self.trackers,
            log=ContinualLog,
        )

    def restore(self, payload: dict, source: Path | str) -> Approach:
        """The network in a checkpoint."""
        return self.kind.from_payload(payload, source, **self.setup).to(self.compute.device)

    def evaluate_after(self, number: int, approach: Approach) -> dict:
        """Evaluate on tasks 1 to `number`; return the accuracies and the cost of the newest task."""
        known = [entry["accuracies"][-1] for entry in approach.history] if self.kind.independent else []
        for index in range(len(known), number):
            result = evaluate(
                approach.as_task(self.names[index]),
                getattr(self.batches(self.data(index + 1)), self.decide_on)(),
                autocast=self.compute.autocast,
            )
            known.append(result.accuracy)
        name = self.names[number - 1]
        shown = " ".join(f"{accuracy:.3f}" for accuracy in known)
        logging.info("Accuracy after task %d of %d, %s: %s", number, len(self.names), name, shown)
        importance = approach.layer_importance()
        return {
            "task": name,
            "epochs": approach.epochs,
            "seconds": round(approach.seconds, 1),
            "bytes": approach.stored_bytes(),
            "accuracies": known,
            **({"importance": importance} if importance else {}),
        }

    # Reports

    def write_matrix(self, rows: list[list[float]], *, after: list[str] | None = None) -> None:
        """Write the accuracy matrix: a row after each task learned, a column for each task."""
        entries = [
            {"after": name} | {task: f"{value:.6f}" for task, value in zip(self.names, row, strict=False)}
            for name, row in zip(after or self.names, rows, strict=False)
        ]
        write_atomically(self.paths.accuracy_matrix(), csv_text(entries, ["after", *self.names]))

    def metrics(self, history: list[dict]) -> dict:
        """The metrics of a finished run; None for those that are undefined or lack a reference run."""
        rows = [entry["accuracies"] for entry in history]
        counts = [len(getattr(self.data(number + 1), self.decide_on)) for number in range(len(self.names))]
        in_turn = not self.kind.joint
        result = {
            "sequence": self.recipe.seq,
            "approach": self.approach,
            "seed": self.recipe.seed,
            "accuracies_of": self.decide_on,
            "average_accuracy": metrics.average_accuracy(rows, counts),
            "average_over_time": metrics.average_over_time(rows, counts) if in_turn else None,
            "backward_transfer": metrics.backward_transfer(rows, counts) if in_turn else None,
            "forgetting": metrics.forgetting(rows) if in_turn else None,
            "forward_transfer": None,
            "epochs": sum(entry["epochs"] for entry in history),
            "seconds": round(sum(entry["seconds"] for entry in history), 1),
            "bytes": self.stored_bytes(history),
            "tasks": [
                {name: entry[name] for name in ("task", "epochs", "seconds", "importance") if name in entry}
                for entry in history
            ],
            "accuracy_matrix": rows,
            "arguments": self.recipe.stamp() | {"data": self.data_until(len(self.names))},
        }
        alone = self.reference() if in_turn else None
        if alone is not None:
            result["forward_transfer"] = metrics.forward_transfer(rows, counts, alone)
        return result

    def stored_bytes(self, history: list[dict]) -> int | None:
        """Bytes stored after the last task; None if an earlier version made one of several networks."""
        stored = [entry.get("bytes") for entry in history]
        if not self.kind.independent:
            return stored[-1]
        return None if None in stored else sum(stored)

    def track(self, result: Mapping) -> None:
        """Send the accuracies after each task, and the metrics, to the trackers."""
        rows = [
            {
                "task": number,
                **{f"accuracy/{name}": value for name, value in zip(self.names, row, strict=False)},
            }
            for number, row in enumerate(result["accuracy_matrix"], 1)
        ]
        # A repeated command finds the sequence already tracked.
        resumed = not self.args.overwrite
        with self.trackers.follow(SEQUENCE, configuration=result["arguments"], resumed=resumed) as tracking:
            tracking.log(rows, step="task")
            tracking.finish({key: result.get(key) for key, *_ in _COLUMNS})

    def reference(self) -> list[float] | None:
        """Accuracy of a network trained on each task alone; None, with a log line, if there is no such run.

        It is measured on test samples, so accuracies on validation samples have no reference.
        """
        if self.approach == "one" or self.decide_on != "test":
            return None
        path = self.paths_of(self.run_name("one")).metrics_file()
        command = f"python spg_main.py --seq {self.args.seq} --appr one --seed {self.recipe.seed}"
        if self.recipe.arch != TUNED:
            command += f" --arch {getattr(self.args.arch, 'flag', self.args.arch)}"
        if not path.exists():
            logging.info("No forward transfer: the reference run is missing: run `%s`", command)
            return None
        made_with, accuracies = read_reference(
            path, tasks=len(self.names), remedy=f"run `{command} --overwrite`"
        )
        alone = ContinualRun(self.args, seed=self.recipe.seed, approach="one").recipe
        asked = alone.stamp() | {"data": self.data_until(len(self.names))}
        try:
            require_same(made_with, asked, where=path)
        except UserError as error:
            logging.info("No forward transfer: %s", error)
            return None
        return accuracies


def table(results: Sequence[Mapping]) -> str:
    """The metrics of one or several runs as aligned text; several runs end with mean ± standard deviation."""
    rows = [result | {"seconds_per_task": result["seconds"] / len(result["tasks"])} for result in results]
    cells = [
        [
            f"{row['approach']} {row['sequence']} seed {row['seed']}",
            *("-" if row[key] is None else format(row[key], spec) for key, _, spec in _COLUMNS),
        ]
        for row in rows
    ]
    footer = None
    if len(rows) > 1:
        footer = ["mean ± deviation", *(_mean([row[key] for row in rows], spec) for key, _, spec in _COLUMNS)]
    headings = ["run", *(heading for _, heading, _ in _COLUMNS)]
    return aligned(headings, cells, footer=footer, ruled=False)


def _mean(values: Sequence[float | None], spec: str) -> str:
    if None in values:
        return "-"
    return plus_minus(statistics.fmean(values), statistics.stdev(values), spec=spec)
