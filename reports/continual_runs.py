"""What SPG, or an approach compared with it, left in one run on a sequence of tasks."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.fleet import accuracy as checked_accuracy
from reports.reading import Problem, Reader, configuration_of, number, seconds_of
from reports.runs import Run
from training.checkpoints import read_checkpoint
from utils.files import read_csv, read_json
from utils.metrics import Matrix
from utils.paths import Paths, checkpoints_in

METRICS = {
    "average_accuracy": "average accuracy",
    "average_over_time": "average over time",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "forgetting": "forgetting",
}
_TRAINED = re.compile(rb"In train\(\)-> Train Ep\. #(\d+) .*?lr: ([\d.e+-]+)")
_LEARNED = re.compile(rb"Accuracy after task \d+ of \d+, (.+?): ")
_REMEDY = "redo the run with --overwrite"


@dataclass(frozen=True)
class Importance:
    """Mean importance Γ of a layer's weights after a task was learned."""

    after: str
    layer: str
    mean: float


@dataclass(frozen=True)
class Rate:
    """The learning rate of an epoch, counted over all tasks; `task` is the one being learned."""

    task: str
    epoch: int
    lr: float


@dataclass
class ContinualRun:
    """Everything that a report shows of one run.

    Attributes:
        tasks: in the order learned.
        matrix: R[i][j], the accuracy on task j after learning task i; a single row for joint training.
        metrics: name in METRICS → value, None where it is undefined.
        seconds, epochs: task → cost of learning it.
        bytes: stored after the last task; None if that is not recorded.
        arguments: the recorded arguments; of an unfinished run, none.
        command: the resolved arguments of the last process.
        total_seconds: of all processes, evaluation included.
    """

    run: Run
    sequence: str = ""
    approach: str = ""
    tasks: list[str] = field(default_factory=list)
    matrix: Matrix = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    bytes: int | None = None
    importance: list[Importance] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    total_seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def has_continual(paths: Paths) -> bool:
    """Whether a run is one on a sequence of tasks."""
    return paths.accuracy_matrix().exists() or paths.continual_log().exists()


def read_continual(run: Run, *, paths: Paths) -> ContinualRun:
    """Read a run. What is damaged or missing is listed in it."""
    reader = Reader(run.name)
    found = ContinualRun(run, problems=reader.problems)
    matrix = reader.existing(paths.accuracy_matrix(), _read_matrix)
    if matrix:
        found.tasks, found.matrix = matrix
    log = paths.continual_log()
    found.command = reader.existing(log, configuration_of) or ""
    found.total_seconds = reader.existing(log, seconds_of) or 0.0
    found.rates = reader.existing(log, _read_rates) or []
    configured = dict(part.split("=", 1) for part in found.command.split() if "=" in part)
    found.sequence, found.approach = configured.get("seq", ""), configured.get("appr", "")
    metrics = reader.existing(paths.metrics_file(), lambda path: read_json(path, remedy=_REMEDY))
    if metrics is None:
        if not paths.metrics_file().exists():
            reader.note(f"{paths.metrics_file()} not found: the run is not finished")
    else:
        _add_metrics(found, metrics)
    if not found.importance:  # an earlier version, or a run that is not finished
        for number_, task in enumerate(found.tasks, 1):
            _add_importance(found, reader, paths.continual_task(task, "train"), after=f"{number_} {task}")
    return found


def _add_metrics(found: ContinualRun, metrics: dict) -> None:
    found.sequence = str(metrics.get("sequence", found.sequence))
    found.approach = str(metrics.get("approach", found.approach))
    for name in METRICS:
        value = metrics.get(name)
        found.metrics[name] = float(value) if isinstance(value, int | float) else None
    if isinstance(metrics.get("arguments"), dict):
        found.arguments = metrics["arguments"]
    if isinstance(metrics.get("bytes"), int):
        found.bytes = metrics["bytes"]
    for number_, entry in enumerate(metrics.get("tasks", []), 1):
        if isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float):
            task = str(entry.get("task"))
            found.seconds[task] = float(entry["seconds"])
            found.epochs[task] = int(entry.get("epochs", 0))
            found.importance += [
                Importance(f"{number_} {task}", layer, float(mean))
                for layer, mean in entry.get("importance", {}).items()
            ]


def _add_importance(found: ContinualRun, reader: Reader, folder: Path, *, after: str) -> None:
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        return
    payload = reader.attempt(lambda: read_checkpoint(checkpoints[max(checkpoints)]))
    for name, values in (payload or {}).get("importance", {}).items():
        if name.endswith(".weight"):
            found.importance.append(Importance(after, name.removesuffix(".weight"), float(values.mean())))


def _read_matrix(path: Path) -> tuple[list[str], Matrix]:
    """The tasks and R.

    Raises:
        UserError: if the file is damaged.
    """
    rows = read_csv(path, columns=("after",), remedy=_REMEDY)
    tasks = [name for name in (rows[0] if rows else {}) if name != "after"]
    matrix = []
    for row in rows:
        filled = [(task, row[task]) for task in tasks if number(row[task]) is not None]
        matrix.append(
            [
                checked_accuracy(value, entry=f"{path}: task {task} after {row['after']}", remedy=_REMEDY)
                for task, value in filled
            ]
        )
    return tasks, matrix


def _read_rates(log: Path) -> list[Rate]:
    """Learning rates by epoch; a task's epochs precede the line that reports its accuracies."""
    rates: list[Rate] = []
    pending: dict[int, float] = {}
    done = 0
    for line in log.read_bytes().splitlines():
        trained, learned = _TRAINED.search(line), _LEARNED.search(line)
        if trained:
            lr = number(trained[2].decode())
            if lr is not None:
                pending[int(trained[1])] = lr
        elif learned:
            task = learned[1].decode(errors="replace")
            rates += [Rate(task, done + epoch, lr) for epoch, lr in sorted(pending.items())]
            done += max(pending, default=0)
            pending = {}
    return rates
