"""What the stages of Pick-a-back left in one run: accuracies, choices, pairs, ownership, curves and cost."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.tables import Table, Task
from pipeline.fleet import accuracy as checked_accuracy
from pipeline.fleet import read_arguments, read_baseline, read_control, read_widths
from reports.reading import (
    LayerShares,
    Problem,
    Reader,
    configuration_of,
    header_of,
    number,
    seconds_of,
)
from reports.runs import Run
from utils.errors import UserError
from utils.files import read_json
from utils.paths import CONFIG_JSON, TRAIN_CSV, Paths, arguments_file, control_file, record_file, widths_file

# Which network an accuracy belongs to.
SCRATCH, OWN, PRUNED = "scratch", "own", "pruned"
TARGET, SCRATCH_AT, OWN_AT = "target", "scratch at its width", "own at its width"
COPY, PROBE = "copy", "probe"
REUSES = {TARGET: "on the backbone", COPY: "a copy, fine-tuned", PROBE: "linear probe"}

# Which candidates a target of a table with several modalities chose among.
SAME, OTHER, UNTRANSFERRED = "same modality", "other modality", "other, no K/V transfer"

_AMONG = ("all", "same", "other")
# Recorded arguments that differ between the tasks of a run, or name networks.
PER_TASK = {"task", "data", "parent", "networks", "stage", "backbone", "text", "pretrained"}


@dataclass(frozen=True)
class Reached:
    """The test accuracy of one network on one task.

    Attributes:
        network: SCRATCH, OWN, …
        width: width multiplier of the network.
        backbone: its name; empty for networks without one.
    """

    task: str
    network: str
    accuracy: float
    width: float = 1.0
    backbone: str = ""


@dataclass(frozen=True)
class Pair:
    """A target that reuses a backbone's network.

    Attributes:
        how: TARGET, COPY or PROBE.
        validation: accuracy on the samples that decide.
    """

    target: str
    backbone: str
    how: str
    accuracy: float
    validation: float
    width: float = 1.0


@dataclass(frozen=True)
class Pruning:
    """Accuracy by sparsity on the samples that decide, the baseline to reach, and the chosen ratio."""

    task: str
    accuracies: dict[float, float]
    baseline: float | None
    chosen: float | None


@dataclass(frozen=True)
class Score:
    """What a rule gives to a candidate."""

    rule: str
    target: str
    candidate: str
    value: float


@dataclass(frozen=True)
class Pick:
    """The backbone that a rule chose."""

    rule: str
    target: str
    backbone: str


@dataclass(frozen=True)
class Epoch:
    """A row of train.csv."""

    task: str
    network: str
    epoch: int
    train_accuracy: float | None
    accuracy: float | None
    loss: float | None
    lr: float | None


@dataclass(frozen=True)
class Ownership:
    """Shares of a network's layers, after its newest task was learned.

    Attributes:
        newest: the newest task.
        network: TARGET or "sequence".
    """

    newest: str
    network: str
    layers: tuple[LayerShares, ...]


@dataclass(frozen=True)
class Bytes:
    """Bytes of one network.

    Attributes:
        what: "stored" or "sent".
    """

    task: str
    network: str
    what: str
    count: int


@dataclass(frozen=True)
class Crossing:
    """The test accuracy of a target, at its last width, on the best backbone among some candidates.

    Attributes:
        among: SAME, OTHER or UNTRANSFERRED.
    """

    target: str
    among: str
    backbone: str
    accuracy: float


@dataclass(frozen=True)
class InSequence:
    """A task of the sequence that one network learned: its accuracy when learned and at the end."""

    task: str
    scratch: float | None
    learned: float
    end: float


@dataclass
class FleetRun:
    """Everything that a report shows of one run.

    Attributes:
        choice: target → the backbone that stage 3-1 chose last.
        crossings: of tasks with several modalities, the best backbones within a modality and across.
        fleet: the run that provides the backbones, if it is another one.
        per_class: task → training samples per class; None: all.
        arguments: recorded argument → its values in any network of the run.
        stamps: (kind of network, task, its training stage) → the recorded arguments of that network.
        commands: stage → its last command, or the arguments that its log has.
        fingerprints: task → the fingerprint of its data.
        versions: of Python and torch, of the processes that trained.
        missing: stage → names of the tasks that lack it.
        seconds: stage → seconds of its processes, summed.
    """

    run: Run
    reached: list[Reached] = field(default_factory=list)
    pruning: list[Pruning] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    choice: dict[str, str] = field(default_factory=dict)
    crossings: list[Crossing] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    ownership: list[Ownership] = field(default_factory=list)
    bytes: list[Bytes] = field(default_factory=list)
    in_sequence: list[InSequence] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    fleet: str = ""
    per_class: dict[str, int | None] = field(default_factory=dict)
    arguments: dict[str, set[str]] = field(default_factory=dict)
    stamps: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    missing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def accuracy(self, task: str, network: str) -> float | None:
        """Test accuracy of one network; None if it was not trained."""
        found = [item.accuracy for item in self.reached if (item.task, item.network) == (task, network)]
        return found[-1] if found else None


def has_fleet(run: Run, *, paths: Paths, table: Table) -> bool:
    """Whether a run holds anything of a task table."""
    return any(folder.is_dir() for folder in _stages(paths, table).values()) or any(
        (paths.logs / run.name).glob(f"*_{table.name}_*.*")
    )


def read_fleet(run: Run, *, paths: Paths, table: Table, tasks: Sequence[Task]) -> FleetRun:
    """Read a run. What is damaged or missing is listed in it.

    Args:
        tasks: the tasks of the table to show.
    """
    return _FleetReader(run, paths=paths, table=table, tasks=tasks).read()


def _stages(paths: Paths, table: Table) -> dict[str, Path]:
    """Stage → the folder that holds its tasks."""
    config = table.name
    task = table.tasks[0].name
    return {
        "1 scratch networks": paths.baselines(config),
        "2-1 own networks, pruning": paths.single(config, task).parent,
        "3-2 targets": paths.target(config, task, task).parents[2],
        "3-2 without K/V transfer": paths.target(config, task, task, kv_transfer=False).parents[2],
        "control: alone at its width": paths.control(config, task, width_multiplier=1.0).parents[1],
        "control: copy": paths.reused(config, task, task, how=COPY).parents[1],
        "control: probe": paths.reused(config, task, task, how=PROBE).parents[1],
        "all tasks in one network": paths.in_sequence(config, 1, task).parent,
    }


class _FleetReader:
    def __init__(self, run: Run, *, paths: Paths, table: Table, tasks: Sequence[Task]) -> None:
        self.run = run
        self.paths = paths
        self.table = table
        self.config = table.name
        self.tasks = tasks
        self.reader = Reader(run.name)
        self.found = FleetRun(run, problems=self.reader.problems)

    def read(self) -> FleetRun:
        self.read_choices()
        for task in self.tasks:
            self.read_own_networks(task)
            self.read_pairs(task)
            self.read_target(task)
            self.read_crossings(task)
        self.read_sequence()
        self.read_cost()
        return self.found

    def names(self, value: str, *, where: Path) -> str:
        """The name of the task with this id.

        Raises:
            UserError: if the table has no such task.
        """
        try:
            return self.table.task(value).name
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    # Stages 1 and 2

    def read_own_networks(self, task: Task) -> None:
        found, name = self.found, task.name
        scratch = self.reader.trained(self.paths.baselines(self.config) / name)
        own = self.reader.trained(self.paths.single_scratch(self.config, name))
        chosen = self.reader.trained(self.paths.pruned(self.config, name), table=self.table)
        for network, trained in ((SCRATCH, scratch), (OWN, own), (PRUNED, chosen)):
            if trained is None:
                found.missing.setdefault(network, []).append(name)
                continue
            found.reached.append(Reached(name, network, trained.metrics["test_accuracy"]))
            self.record(trained.arguments, task=name, network=network)
        if scratch is not None or own is not None:
            found.per_class[name] = (scratch or own).arguments.get("train_per_class")
        if chosen is not None and chosen.layers:
            found.bytes.append(Bytes(name, PRUNED, "stored", chosen.stored))
            found.bytes.append(Bytes(name, PRUNED, "sent", chosen.packed))
        self.read_curve(self.paths.baselines(self.config) / name, task=name, network=SCRATCH)
        self.read_curve(self.paths.single_scratch(self.config, name), task=name, network=OWN)
        path = record_file(self.paths.pruned(self.config, name))
        record = self.reader.existing(path, _read_record)
        if record:
            baselines = self.paths.baseline_file(self.config)
            baseline = self.reader.attempt(lambda: read_baseline(baselines, task=name))
            ratio = None if chosen is None else chosen.selection.get("ratio")
            found.pruning.append(Pruning(name, record, baseline, ratio))

    def record(self, arguments: dict, *, task: str, network: str) -> None:
        """Collect the recorded arguments of a network."""
        self.found.stamps[network, task, str(arguments.get("stage"))] = {
            name: value for name, value in arguments.items() if name not in PER_TASK
        }
        for name, value in arguments.items():
            if name not in PER_TASK:
                self.found.arguments.setdefault(name, set()).add(str(value))
        if isinstance(arguments.get("data"), str):
            self.found.fingerprints[task] = arguments["data"]

    def read_curve(self, folder: Path, *, task: str, network: str) -> None:
        columns = ("epoch", "loss", "accuracy", "lr", "val_accuracy")
        for row in self.reader.rows(folder / TRAIN_CSV, columns=columns):
            if row["epoch"].isdigit():
                values = (number(row[name]) for name in ("accuracy", "val_accuracy", "loss", "lr"))
                self.found.epochs.append(Epoch(task, network, int(row["epoch"]), *values))

    # Stage 3-1

    def read_choices(self) -> None:
        shown = {task.name for task in self.tasks}
        seen: set[tuple[str, str, str]] = set()
        for among in _AMONG:
            path = self.paths.table_csv(self.config, among=among)
            for score in self.reader.existing(path, lambda file: list(self.scores_in(file))) or []:
                key = (score.rule, score.target, score.candidate)
                if score.target in shown and key not in seen:
                    seen.add(key)
                    self.found.scores.append(score)
        published = self.paths.result_csv(self.config)
        others = sorted(published.parent.glob(f"{published.stem}_*.csv"))
        known: set[tuple[str, str]] = set()
        for path in (published, *others):
            by_name = path.stem.removeprefix(published.stem).removeprefix("_")
            for pick in self.reader.existing(path, lambda file: list(self.picks_in(file))) or []:
                rule = by_name or pick.rule
                if path == published:
                    self.found.choice[pick.target] = pick.backbone
                if pick.target in shown and (rule, pick.target) not in known:
                    known.add((rule, pick.target))
                    self.found.picks.append(replace(pick, rule=rule))

    def scores_in(self, path: Path) -> Iterator[Score]:
        rules = [name for name in header_of(path) if name not in ("target_id", "task_id")]
        for row in self.reader.rows(path, columns=("target_id", "task_id")):
            target = self.names(row["target_id"], where=path)
            candidate = self.names(row["task_id"], where=path)
            for rule in rules:
                value = number(row[rule])
                if value is not None:
                    yield Score(rule, target, candidate, value)

    def picks_in(self, path: Path) -> Iterator[Pick]:
        for row in self.reader.rows(path, columns=("target_id", "task_id")):
            made_with = read_arguments(arguments_file(path), row["target_id"])
            yield Pick(
                str(made_with.get("select", "chosen")),
                self.names(row["target_id"], where=path),
                self.names(row["task_id"], where=path),
            )

    # Stage 3-2 and its controls

    def read_pairs(self, target: Task) -> None:
        for backbone in self.table.tasks:
            names = {"target": target.name, "backbone": backbone.name}
            folder = self.paths.target(self.config, backbone.name, target.name)
            if widths_file(folder).exists():
                widths = self.reader.attempt(lambda folder=folder: read_widths(folder)) or {}
                for width, metrics in widths.items():
                    self.found.pairs.append(
                        Pair(
                            **names,
                            how=TARGET,
                            accuracy=metrics["test_accuracy"],
                            validation=metrics["validation_accuracy"],
                            width=width,
                        )
                    )
            for how in (COPY, PROBE):
                folder = self.paths.reused(self.config, backbone.name, target.name, how=how)
                metrics = self.reader.attempt(lambda folder=folder: _read_control(folder))
                if metrics:
                    accuracies = {"accuracy": metrics["test_accuracy"]}
                    self.found.pairs.append(
                        Pair(**names, how=how, validation=metrics["validation_accuracy"], **accuracies)
                    )

    def read_target(self, task: Task) -> None:
        """The target on its chosen backbone; without a choice, on the best by validation."""
        found, name = self.found, task.name
        backbone = self.backbone_of(task)
        if backbone is None:
            found.missing.setdefault(TARGET, []).append(name)
            return
        pairs = [pair for pair in found.pairs if (pair.target, pair.backbone) == (name, backbone)]
        for pair in pairs:
            found.reached.append(Reached(name, pair.how, pair.accuracy, pair.width, backbone))
        widest = max((pair.width for pair in pairs if pair.how == TARGET), default=None)
        folder = self.paths.target(self.config, backbone, name)
        self.read_curve(folder, task=name, network=TARGET)
        trained = self.reader.trained(folder, table=self.table)
        if trained is not None:
            self.record(trained.arguments, task=name, network=TARGET)
            found.ownership.append(Ownership(name, TARGET, trained.layers))
            found.bytes.append(Bytes(name, TARGET, "stored", trained.stored))
        copied = self.paths.reused(self.config, backbone, name, how=COPY)
        metrics = self.reader.attempt(lambda: _read_control(copied))
        if metrics and isinstance(metrics.get("bytes"), int):
            found.bytes.append(Bytes(name, COPY, "stored", metrics["bytes"]))
        if widest in (None, 1.0):
            return
        plain = self.paths.baselines(self.config, width_multiplier=widest) / name
        sharable = self.paths.control(self.config, name, width_multiplier=widest)
        for network, folder in ((SCRATCH_AT, plain), (OWN_AT, sharable)):
            trained = self.reader.trained(folder)
            if trained is not None:
                found.reached.append(Reached(name, network, trained.metrics["test_accuracy"], widest))

    def read_crossings(self, task: Task) -> None:
        """The target on the best backbone of its own modality, and of another with and without transfer."""
        for among, kv_transfer in ((SAME, True), (OTHER, True), (UNTRANSFERRED, False)):
            pairs = self.paths.result_csv(self.config, among="same" if among == SAME else "other")
            picks = self.reader.existing(pairs, lambda file: list(self.picks_in(file))) or []
            backbone = next((pick.backbone for pick in picks if pick.target == task.name), None)
            if backbone is None:
                continue
            folder = self.paths.target(self.config, backbone, task.name, kv_transfer=kv_transfer)
            if widths_file(folder).exists():
                widths = self.reader.attempt(lambda folder=folder: read_widths(folder)) or {}
                if widths:
                    accuracy = widths[max(widths)]["test_accuracy"]
                    self.found.crossings.append(Crossing(task.name, among, backbone, accuracy))

    def backbone_of(self, task: Task) -> str | None:
        """The backbone to show: the last choice if it was trained, else the best by validation."""
        trained = [pair for pair in self.found.pairs if pair.target == task.name]
        chosen = self.found.choice.get(task.name)
        if any(pair.backbone == chosen for pair in trained):
            return chosen
        best = max(trained, key=lambda pair: (pair.how == TARGET, pair.validation), default=None)
        return None if best is None else best.backbone

    # All tasks in one network

    def read_sequence(self) -> None:
        path = self.paths.in_sequence_report(self.config)
        for row in self.reader.rows(path, columns=("task", "learned", "end")):
            learned, end = number(row["learned"]), number(row["end"])
            if learned is not None and end is not None:
                self.found.in_sequence.append(
                    InSequence(row["task"], number(row.get("scratch")), learned, end)
                )
        pruned = self.paths.pruned(self.config, "x").name
        folders = self.paths.in_sequence(self.config, 1, "x").parent.glob("[0-9][0-9]*_*")
        for folder in sorted(folders, key=lambda path: (path.name.find("_"), path.name)):
            trained = self.reader.trained(folder / pruned, table=self.table)
            if trained is not None and trained.layers:
                self.found.ownership.append(Ownership(trained.tasks[-1], "sequence", trained.layers))

    # Cost

    def read_cost(self) -> None:
        for stage, folder in _stages(self.paths, self.table).items():
            files = list(_files(folder))
            logs = [path for path in files if path.suffix == ".log"]
            if logs:
                self.read_logs(stage, logs)
            self.read_calls(stage, [path for path in files if path.name == CONFIG_JSON])
        search = self.paths.stage_log(self.config, "find_backbone")
        if search.exists():
            self.read_logs("3-1 choice of backbones", [search])

    def read_logs(self, stage: str, logs: Sequence[Path]) -> None:
        """The seconds of a stage, and its last process's arguments."""
        attempt = self.reader.attempt
        self.found.seconds[stage] = sum(attempt(lambda log=log: seconds_of(log)) or 0.0 for log in logs)
        newest = max(logs, key=lambda log: log.stat().st_mtime)
        arguments = attempt(lambda: configuration_of(newest)) or ""
        self.found.commands[stage] = arguments
        fleet = re.search(r"(?:^| )fleet=(\S+)", arguments)
        if fleet and fleet[1] not in ("None", self.run.name):
            self.found.fleet = fleet[1]

    def read_calls(self, stage: str, files: Sequence[Path]) -> None:
        """The last command of a stage, and the versions that trained. Earlier versions recorded neither."""
        calls = []
        for path in files:
            call = self.reader.attempt(lambda path=path: read_json(path, remedy="redo its stage")) or {}
            self.found.versions |= {f"{name} {call[name]}" for name in ("python", "torch") if name in call}
            if isinstance(call.get("command"), list):
                calls.append((path.stat().st_mtime, list(map(str, call["command"]))))
        if calls:
            self.found.commands[stage] = shlex.join(["python", *max(calls)[1]])


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    for where, below, names in os.walk(folder):
        below.sort()
        yield from (Path(where, name) for name in sorted(names))


def _read_record(path: Path) -> dict[float, float]:
    """Sparsity → accuracy, in the order of sparsity.

    Raises:
        UserError: if the file is damaged.
    """
    remedy = "redo wo_backbone.sh"
    record = {}
    for name, value in read_json(path, remedy=remedy).items():
        sparsity = number(name)
        if sparsity is None:
            raise UserError(f"{path}: the sparsity {name!r} is not a number: {remedy}")
        record[sparsity] = checked_accuracy(value, entry=f"{path}: the entry {name}", remedy=remedy)
    return dict(sorted(record.items()))


def _read_control(folder: Path) -> dict:
    """The metrics of a control; {} if it was not run.

    Raises:
        UserError: if the file is damaged.
    """
    metrics = read_control(folder)
    for name in ("validation_accuracy", "test_accuracy") if metrics else ():
        remedy = "delete it, and run its stage again"
        checked_accuracy(metrics.get(name), entry=f"{control_file(folder)}: {name}", remedy=remedy)
    return metrics
