"""One run of spg_main.py: an approach on a sequence of tasks, with one seed."""

import argparse
import hashlib
import json
import logging
import shutil
import time
from functools import cached_property
from pathlib import Path

from data.loading import Batches, TaskData
from data.sequences import Sequence, joint_task, load_sequence, load_task
from methods.approaches import APPROACHES
from methods.sequence import Naive, Settings, TaskPasses
from models import BUILDERS
from models.network import Network
from packnet_models import ARCHITECTURES
from tools.learning import EpochReport, learn, train_line, validation_line
from utils import logs, metrics
from utils.errors import UserError
from utils.files import csv_text, read_json, write_atomically
from utils.paths import Paths, checkpoints_in
from utils.runs import Output, require_same
from utils.runtime import autocast, resolve_device
from utils.seeds import derive_seed
from utils.training import PLATEAU_THRESHOLD, Evaluation, evaluate

LAYERS = "plain"
TUNED = "alexnet"  # the backbone that the sequences' dropouts are tuned for, and the only one that takes them
BACKBONES = ("lenet5", *BUILDERS)  # the convolutional ones
JOINT = "all_tasks"

# Flags that decide what any approach computes, and those that only one looks at.
_DECIDING = (
    *(
        "precision",
        "epochs",
        "batch_size",
        "lr",
        "lr_factor",
        "lr_patience",
        "lr_floor",
        "stop_after",
        "clip",
    ),
)
_OF_APPROACH = {"ewc": ("ewc_lambda",), "packnet": ("packnet_share",)}


class SequenceReport(EpochReport):
    """What the history and the log say of an epoch of a sequence's task; the network counts its own cost."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def row(self, learned: Naive, validation: Evaluation) -> dict:
        now = time.perf_counter()
        learned.seconds += now - self._since
        learned.epochs += 1
        self._since = now
        return {"val_loss": validation.loss, "val_accuracy": validation.accuracy}

    def lines(self, learned: Naive, row: dict) -> tuple[str, ...]:
        return train_line(row), validation_line(row, epoch=row["epoch"])


class SequenceRun:
    """One approach on one sequence, with one seed.

    Args:
        args: the flags of spg_main.py.
        seed, approach: instead of the flags'.
        decide_on: the samples that the accuracies are of: "test", or "validation" to tune on them.

    Raises:
        UserError: for an unknown approach, backbone or sequence (the message lists the known ones), one whose
            raw files are not prepared, or dropouts for a backbone that takes none.
    """

    def __init__(
        self, args: argparse.Namespace, *, seed: int, approach: str | None = None, decide_on: str = "test"
    ) -> None:
        self.args = args
        self.seed = seed
        self.approach = approach or args.appr
        if self.approach not in APPROACHES:
            raise UserError(f"unknown approach {self.approach!r}: choose from {', '.join(APPROACHES)}")
        self.kind = APPROACHES[self.approach]
        self.sequence: Sequence = load_sequence(args.seq, data_root=args.data_root, seed=seed)
        self.names = [task.name for task in self.sequence.table.tasks]
        if args.backbone not in BACKBONES:
            raise UserError(f"unknown backbone {args.backbone!r}: choose from {', '.join(BACKBONES)}")
        if args.dropout and args.backbone != TUNED:
            raise UserError(f"--dropout is for --backbone {TUNED}: {args.backbone} has its own, or none")
        self.dropout = list(args.dropout or self.sequence.dropout) if args.backbone == TUNED else None
        self.architecture = {"name": args.backbone, "layers": LAYERS}
        self.device = resolve_device(args.device)
        self.autocast = autocast(self.device, args.precision)
        run = args.run or Paths.sequence_run_name(
            sequence=args.seq, approach=self.approach, seed=seed, arch=args.backbone
        )
        if decide_on == "validation":
            run = Paths.tuning_run_name(run, dropout=self.dropout)
        self.decide_on = decide_on
        self.paths = Paths(
            checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run
        )
        self._data: dict[int, TaskData] = {}

    # What is learned, and how.

    @cached_property
    def settings(self) -> Settings:
        """What the approach is told."""
        flags = (
            "lr",
            "lr_factor",
            "lr_patience",
            "lr_floor",
            "stop_after",
            "clip",
            "ewc_lambda",
            "packnet_share",
        )
        return Settings(
            build=self.build,
            total=len(self.names),
            **{name: getattr(self.args, name) for name in flags},
        )

    def build(self, *, width: float) -> Network:
        """The sequence's network, without heads, its channels multiplied by `width`."""
        table = self.sequence.table
        dropout = {} if self.dropout is None else {"dropout": tuple(self.dropout)}
        try:
            network = ARCHITECTURES[self.args.backbone](
                width=width * self.sequence.width, size=table.size, in_channels=table.channels, **dropout
            )
        except ValueError as error:
            raise UserError(
                f"--backbone {self.args.backbone} cannot learn {self.args.seq}: {error}: choose another"
            ) from error
        # The heads are linear (SphereNet's own are not).
        return Network(features=network.features, feature_width=network.feature_width)

    def configuration(self) -> dict:
        """Every flag as it was resolved for this run."""
        resolved = vars(self.args) | {
            "appr": self.approach,
            "seed": self.seed,
            "device": str(self.device),
            "dropout": self.dropout,
            "run": self.paths.run,
        }
        return {name: str(value) if isinstance(value, Path) else value for name, value in resolved.items()}

    def arguments(self, approach: str) -> dict:
        """What decides a run's result, but for the data."""
        names = (*_DECIDING, *_OF_APPROACH.get(approach, ()))
        return {name: getattr(self.args, name) for name in names} | {
            "arch": self.args.backbone,
            "seq": self.args.seq,
            "appr": approach,
            "seed": self.seed,
            "dropout": self.dropout,
            "lr_threshold": PLATEAU_THRESHOLD,
        }

    def data(self, number: int) -> TaskData:
        """The samples of task `number`, from 1, on the device; each is read once."""
        if number not in self._data:
            self._data[number] = load_task(
                self.sequence, number, data_root=self.args.data_root, device=self.device
            )
        return self._data[number]

    def data_until(self, number: int) -> str:
        """Fingerprint of the data of tasks 1 to `number`.

        Of the tasks before it only what accuracies are of stays in memory, so that it does not grow with
        what was learned.
        """
        for earlier in range(1, number):
            self._data[earlier] = self.data(earlier).only(self.decide_on)
        fingerprints = [self.data(task).fingerprint for task in range(1, number + 1)]
        return hashlib.sha256("".join(fingerprints).encode()).hexdigest()

    def batches(self, data: TaskData, *, size: int | None = None) -> Batches:
        """Batches of a task's samples, in fixed order."""
        return Batches(
            data,
            batch_size=size or self.args.batch_size,
            val_batch_size=self.args.val_batch_size,
            shuffle=False,
            augment=False,
        )

    def output(self, number: int, stage: str) -> Output:
        """Where a stage of learning a task goes; all tasks at once are learned as the last one."""
        name = JOINT if self.kind.joint else self.names[number - 1]
        deciders = {"task": name, "stage": stage, "data": self.data_until(number)}
        return Output(
            folder=self.paths.sequence_task(name, stage),
            epochs=self.args.epochs,
            architecture=self.architecture,
            arguments=self.arguments(self.approach) | deciders,
            task_table={
                "config": self.args.seq,
                "name": name,
                "classes": {task.name: list(task.classes) for task in self.sequence.table.tasks},
                "size": self.sequence.table.size,
                "channels": self.sequence.table.channels,
            },
        )

    # The run.

    def run(self) -> dict:
        """Learn what is not learned yet; returns what stands in `metrics.json`."""
        if self.args.overwrite:
            self.clear()
        with logs.to_file(self.paths.sequence_log()):
            logs.configuration(self.configuration())
            logging.info(
                "%s on %s, seed %d: %d tasks", self.approach, self.args.seq, self.seed, len(self.names)
            )
            past = self.learn_jointly() if self.kind.joint else self.learn_in_turn()
            figures = self.figures(past)
            write_atomically(self.paths.metrics_file(), json.dumps(figures, indent=1) + "\n")
            write_atomically(
                self.paths.configuration_file(), json.dumps(self.configuration(), indent=1) + "\n"
            )
        return figures

    def clear(self) -> None:
        """Remove what an earlier run left."""
        shutil.rmtree(self.paths.sequence_checkpoints(), ignore_errors=True)
        for name in ("accuracy_matrix", "metrics_file", "configuration_file"):
            getattr(self.paths, name)().unlink(missing_ok=True)

    def learn_in_turn(self) -> list[dict]:
        """Learn task after task and evaluate on all so far after each; returns the notes of every task."""
        past: list[dict] = []
        done, payload = self.newest_finished()
        if done:
            logging.info("Tasks 1 to %d are finished: skipped (--overwrite redoes them)", done)
        for number in range(max(done, 1), len(self.names) + 1):
            if number > done:
                payload = self.learn_task(number, before=payload, past=past)
            learned = self.restore(payload, self.output(number, "train").checkpoint)
            past = [*learned.past, self.note(number, learned)]
            self.write_matrix([note["accuracies"] for note in past])
            if number > 1 and not self.args.keep_checkpoints:
                shutil.rmtree(self.paths.sequence_checkpoints() / self.names[number - 2], ignore_errors=True)
        return past

    def newest_finished(self) -> tuple[int, dict | None]:
        """The last task that is learned, from 1, and its checkpoint; 0 and None if there is none.

        Raises:
            UserError: if other arguments made it.
        """
        for number in range(len(self.names), 0, -1):
            stage = self.stages(number)[-1]
            if checkpoints_in(self.paths.sequence_task(self.names[number - 1], stage)):
                return number, self.output(number, stage).finished()
        return 0, None

    def stages(self, number: int) -> tuple[str, ...]:
        """The stages of learning a task."""
        return self.kind.stages(remaining=len(self.names) - number)

    def learn_task(self, number: int, *, before: dict | None, past: list[dict]) -> dict:
        """Learn one task, on what was learned before; returns its checkpoint's payload."""
        data = self.data(number)
        task = data.task

        def begin() -> Naive:
            fresh = before is None or self.kind.independent
            learned = self.kind(self.settings) if fresh else self.restore(before, self.paths.run)
            learned.begin_task(task.name, task.num_classes)
            learned.past = past
            return learned

        first, *others = self.stages(number)
        payload = self.learn_stage(number, first, begin=begin, data=data)
        for stage in others:
            parent = payload
            payload = self.learn_stage(
                number, stage, begin=lambda parent=parent: self.restore(parent, self.paths.run), data=data
            )
        return payload

    def learn_jointly(self) -> list[dict]:
        """Learn all tasks at once; returns the notes of every task."""
        total = len(self.names)
        parts = [self.data(number) for number in range(1, total + 1)]

        def begin() -> Naive:
            learned = self.kind(self.settings)
            for part in parts:
                learned.begin_task(part.task.name, part.task.num_classes)
            return learned

        payload = self.learn_stage(
            total, "train", begin=begin, data=joint_task(self.sequence, parts, name=JOINT)
        )
        learned = self.restore(payload, self.output(total, "train").checkpoint)
        note = self.note(total, learned) | {"task": JOINT}
        self.write_matrix([note["accuracies"]], after=[JOINT])
        return [note]

    def learn_stage(self, number: int, stage: str, *, begin, data: TaskData) -> dict:
        """Train the newest task of a network; skipped if finished, resumed if half done."""
        batches = self.batches(data)
        passes = TaskPasses(
            batches=lambda size: self.batches(data, size=size).epoch(None), autocast=self.autocast
        )
        name = data.task.name
        return learn(
            output=self.output(number, stage),
            restore=self.restore,
            begin=begin,
            learner=lambda learned: learned.learner(stage, passes),
            batches=batches,
            seed=derive_seed(self.seed, self.args.seq, name, stage),
            device=self.device,
            precision=self.args.precision,
            title=f"{name}, {stage}",
            report=SequenceReport(),
        )

    def restore(self, payload: dict, source: object) -> Naive:
        """The network in a checkpoint."""
        return self.kind.from_payload(payload, source, settings=self.settings).to(self.device)

    def note(self, number: int, learned: Naive) -> dict:
        """Evaluate on tasks 1 to `number` and say what the newest one took."""
        known = [note["accuracies"][-1] for note in learned.past] if self.kind.independent else []
        for index in range(len(known), number):
            result = evaluate(
                learned.as_task(self.names[index]),
                getattr(self.batches(self.data(index + 1)), self.decide_on)(),
                autocast=self.autocast,
            )
            known.append(result.accuracy)
        name = self.names[number - 1]
        shown = " ".join(f"{accuracy:.3f}" for accuracy in known)
        logging.info("Accuracy after task %d of %d, %s: %s", number, len(self.names), name, shown)
        return {
            "task": name,
            "epochs": learned.epochs,
            "seconds": round(learned.seconds, 1),
            "accuracies": known,
        }

    # What is reported.

    def write_matrix(self, rows: list[list[float]], *, after: list[str] | None = None) -> None:
        """Write the accuracy matrix: a row after each task learned, a column for each task."""
        table = [
            {"after": name} | {task: f"{value:.6f}" for task, value in zip(self.names, row, strict=False)}
            for name, row in zip(after or self.names, rows, strict=False)
        ]
        write_atomically(self.paths.accuracy_matrix(), csv_text(table, ["after", *self.names]))

    def figures(self, past: list[dict]) -> dict:
        """The metrics of a finished run; None where one is not defined or lacks its reference."""
        rows = [note["accuracies"] for note in past]
        counts = [self.sequence.counts["test"]] * len(self.names)
        in_turn = not self.kind.joint
        figures = {
            "sequence": self.args.seq,
            "approach": self.approach,
            "seed": self.seed,
            "accuracies_of": self.decide_on,
            "average_accuracy": metrics.average_accuracy(rows, counts),
            "average_over_time": metrics.average_over_time(rows, counts) if in_turn else None,
            "backward_transfer": metrics.backward_transfer(rows, counts) if in_turn else None,
            "forgetting": metrics.forgetting(rows) if in_turn else None,
            "forward_transfer": None,
            "epochs": sum(note["epochs"] for note in past),
            "seconds": round(sum(note["seconds"] for note in past), 1),
            "tasks": [
                {"task": note["task"], "epochs": note["epochs"], "seconds": note["seconds"]} for note in past
            ],
            "accuracy_matrix": rows,
            "arguments": self.arguments(self.approach) | {"data": self.data_until(len(self.names))},
        }
        alone = self.reference() if in_turn else None
        if alone is not None:
            figures["forward_transfer"] = metrics.forward_transfer(rows, counts, alone)
        return figures

    def reference(self) -> list[float] | None:
        """Accuracy of a network trained on each task alone; None, and said so, if there is no such run.

        It is of test samples, so accuracies of validation samples have none.
        """
        if self.approach == "one" or self.decide_on != "test":
            return None
        run = Paths.sequence_run_name(
            sequence=self.args.seq, approach="one", seed=self.seed, arch=self.args.backbone
        )
        path = Paths(
            checkpoints=self.paths.checkpoints, logs=self.paths.logs, data=self.paths.data, run=run
        ).metrics_file()
        command = f"python spg_main.py --seq {self.args.seq} --appr one --seed {self.seed}"
        if self.args.backbone != TUNED:
            command += f" --backbone {self.args.backbone}"
        if not path.exists():
            logging.info("No forward transfer: its reference is missing (`%s` makes it)", command)
            return None
        found = read_json(path, remedy=f"run `{command} --overwrite`")
        asked = self.arguments("one") | {"data": self.data_until(len(self.names))}
        try:
            require_same(found["arguments"], asked, where=path)
        except UserError as error:
            logging.info("No forward transfer: %s", error)
            return None
        return [row[-1] for row in found["accuracy_matrix"]]
