"""Watch what is running under the roots: task, epoch, accuracy, time left, and what stopped.

On a terminal the view is live (it needs Rich: pip install 'rich>=13'); elsewhere it is plain lines.
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import csv
import importlib.util
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import flags
from utils.errors import UserError
from utils.folders import is_held
from utils.logs import STOPPED
from utils.paths import LOCK_NAME, RESUME_NAME, Paths, Place, checkpoints_in, place_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LIVE_INTERVAL = 2.0
# Bytes at the end of a log that are read: thousands of epochs.
_TAIL = 1 << 20
_SHOWN = 10
_LABELS = {
    "baseline_scratch": "scratch",
    "CPG_single_scratch_woexp": "own and pruned",
    "CPG_fromsingle_scratch_woexp_target": "on backbones",
    "CPG_fromsingle_scratch_woexp_target_no_kv_transfer": "on backbones without K/V transfer",
    "CPG_control_scratch": "controls",
    "CPG_sequence": "in sequence",
}


# Logs


@dataclass
class LogState:
    """What a log says about the newest run in it.

    Attributes:
        title: what is being trained.
        epochs, epoch: the maximum number of epochs, and the last finished one.
        accuracy: validation accuracy after that epoch, in percent.
        began, latest: times of the beginning of training in this process, and of the last epoch.
        counted: epochs finished since `began`.
        task, tasks: number of the task being learned in a sequence, from 1, and of all tasks.
        error: the error that ended the run.
    """

    title: str = ""
    epochs: int = 0
    epoch: int = 0
    accuracy: float | None = None
    began: datetime | None = None
    latest: datetime | None = None
    counted: int = 0
    task: int = 0
    tasks: int = 0
    error: str = ""

    @property
    def left(self) -> timedelta | None:
        """Time until the last epoch at the mean speed so far; None before the first epoch."""
        if not self.counted or self.began is None:
            return None
        return (self.latest - self.began) / self.counted * (self.epochs - self.epoch)


_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - root - (\w+) - (.*)")
_TRAINING = re.compile(r"Training (.+), for at most (\d+) epochs")
_EPOCH = re.compile(r"In validate\(\)-> Val Ep\. #(\d+) .*?accuracy: ([\d.]+)")
_RESUMING = re.compile(r"Resuming .* after epoch (\d+)")
_SEQUENCE = re.compile(r".* on .*, seed \d+: (\d+) tasks")
_TASKS_DONE = re.compile(r"Tasks 1 to (\d+) are finished|Accuracy after task (\d+) of \d+")
_TASK = re.compile(r"Task (\d+) of (\d+): ")


def state_of(lines: Iterable[str]) -> LogState:
    """Read the lines of a log."""
    state, resumed = LogState(), 0
    for line in lines:
        found = _LINE.match(line)
        if not found:
            continue
        stamp, level, message = found.groups()
        state.error = message.removeprefix(STOPPED) if level == "ERROR" else ""
        if message.startswith("Configuration: "):
            state = LogState()
        elif match := _RESUMING.match(message):
            resumed = int(match[1])
        elif match := _TRAINING.match(message):
            state.title, state.epochs, state.epoch = match[1], int(match[2]), resumed
            state.accuracy, state.counted, resumed = None, 0, 0
            state.began = state.latest = _time(stamp)
        elif (match := _EPOCH.match(message)) and state.counted < state.epochs:
            state.epoch, state.accuracy = int(match[1]), float(match[2])
            state.latest, state.counted = _time(stamp), state.counted + 1
        elif match := _SEQUENCE.match(message):
            state.task, state.tasks = 1, int(match[1])
        elif match := _TASKS_DONE.match(message):
            state.task = min(int(match[1] or match[2]) + 1, state.tasks)
        elif match := _TASK.match(message):
            state.task, state.tasks = int(match[1]), int(match[2])
    return state


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f")


def read_log(path: Path) -> LogState:
    """The state of a log; an empty one if it cannot be read."""
    try:
        status = path.stat()
        return _read_log(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return LogState()


@lru_cache(maxsize=4096)
def _read_log(path: Path, size: int, _changed: int) -> LogState:
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        return state_of(file.read().decode(errors="replace").splitlines())


# A view


@dataclass(frozen=True)
class Item:
    """A training run that is running or has stopped."""

    run: str
    title: str
    state: LogState

    @property
    def epoch(self) -> str:
        """Epochs done of the maximum."""
        return f"{self.state.epoch}/{self.state.epochs}" if self.state.epochs else "-"

    @property
    def accuracy(self) -> str:
        """Validation accuracy in percent."""
        return "-" if self.state.accuracy is None else f"{self.state.accuracy:.2f}"

    @property
    def left(self) -> str:
        """Time left."""
        left = self.state.left
        return "-" if left is None else shown_time(left)

    @property
    def reason(self) -> str:
        """Why it stopped."""
        if self.state.error:
            return self.state.error
        return f"stopped after epoch {self.epoch}" if self.state.epoch else "stopped before the first epoch"


@dataclass(frozen=True)
class View:
    """What is under the roots at one moment.

    Attributes:
        finished: by run, the number of finished networks by kind as one line.
    """

    running: Sequence[Item]
    stopped: Sequence[Item]
    finished: dict[str, str]


def shown_time(duration: timedelta) -> str:
    """A duration in its largest units."""
    seconds = max(0, round(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def take_view(*, checkpoints: Path, logs: Path, run: str | None = None) -> View:
    """Look at everything under the roots.

    Args:
        run: only this run and those below it.
    """
    folders = list(_folders(checkpoints, wanted=(LOCK_NAME, RESUME_NAME, flags.LOG_NAME)))
    held = {folder for folder in folders if is_held(folder)}
    running: dict[tuple, Item] = {}
    stopped: dict[tuple, Item] = {}
    counts: dict[str, Counter] = {}
    for folder in folders:
        place = place_of(folder, checkpoints=checkpoints)
        if not place.stage:
            place = _continual_place(place, logs=logs)
        if run is not None and not f"{place.run}/".startswith(f"{run}/"):
            continue
        if place.stage and checkpoints_in(folder):
            counts.setdefault(place.run, Counter())[_LABELS.get(place.stage, place.stage)] += 1
        state = read_log(_log_of(folder, place, checkpoints=checkpoints, logs=logs))
        title = _title(state) or _rest(folder, place, checkpoints=checkpoints)
        item = Item(place.run, title, state)
        # A stage logs into its own folder and into that of each training run.
        key = (place.run, place.stage, title)
        if folder in held:
            running[key] = item
        elif not held.isdisjoint(folder.parents):
            continue
        elif state.error or (folder / RESUME_NAME).exists() or _left_unfinished(folder, place, logs=logs):
            stopped.setdefault(key, item)
    finished = {name: _counted(counts[name]) for name in counts}
    for name, text in _sequences(logs):
        if run is None or f"{name}/".startswith(f"{run}/"):
            finished[name] = text
    return View(
        running=list(running.values()),
        stopped=[item for key, item in stopped.items() if key not in running],
        finished=dict(sorted(finished.items())),
    )


def _folders(root: Path, *, wanted: Sequence[str]) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names.sort()
        if not set(wanted).isdisjoint(files):
            yield Path(folder)


def _continual_place(place: Place, *, logs: Path) -> Place:
    """The place of a folder of SPG: its run is the nearest folder above that has a log."""
    parts = place.run.split("/")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        if (logs / name / flags.LOG_NAME).exists():
            return Place(name, "", "")
    return place


def _log_of(folder: Path, place: Place, *, checkpoints: Path, logs: Path) -> Path:
    paths = Paths(checkpoints=checkpoints, logs=logs, data=Path(), run=place.run)
    if not place.stage:
        return paths.continual_log()
    if (folder / flags.LOG_NAME).exists():
        return folder / flags.LOG_NAME
    return paths.stage_log(place.config, "cpg_sequence")


def _left_unfinished(folder: Path, place: Place, *, logs: Path) -> bool:
    """Whether a run stopped in `folder` before it saved anything."""
    if not place.stage:
        paths = Paths(checkpoints=Path(), logs=logs, data=Path(), run=place.run)
        return paths.continual_log().exists() and not paths.metrics_file().exists()
    # Of a sequence in one network, only the chosen networks are kept.
    logged = (folder / flags.LOG_NAME).exists() and place.stage != "CPG_sequence"
    return logged and not checkpoints_in(folder)


def _rest(folder: Path, place: Place, *, checkpoints: Path) -> str:
    """The folder below its run, stage and table."""
    above = [part for part in (place.stage, place.config) if part]
    parts = folder.relative_to(checkpoints).parts[len(place.run.split("/")) + len(above) :]
    return "/".join(parts) or place.stage


def _title(state: LogState) -> str:
    position = f"task {state.task} of {state.tasks}" if state.tasks else ""
    return ": ".join(part for part in (position, state.title) if part)


def _counted(counts: Counter) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def _sequences(logs: Path) -> Iterator[tuple[str, str]]:
    """The runs of SPG and its comparisons, with the number of tasks learned."""
    for path in sorted(logs.rglob("accuracy_matrix.csv")):
        with suppress(OSError, UnicodeDecodeError, csv.Error), path.open(newline="") as file:
            rows = list(csv.reader(file))
            tasks = len(rows[0]) - 1 if rows else 0
            name = path.parent.relative_to(logs).as_posix()
            done = tasks if len(rows) == 2 and all(rows[1]) else len(rows) - 1
            yield name, f"{done} of {tasks} tasks"


# Output


def as_lines(view: View) -> list[str]:
    """The view as plain lines."""
    lines = [datetime.now().strftime("%H:%M:%S") + f"  {_headline(view)}"]
    for item in view.running:
        lines.append(
            f"running   {item.run}  {item.title}  epoch {item.epoch}  accuracy {item.accuracy}  "
            f"left {item.left}"
        )
    lines += [f"stopped   {item.run}  {item.title}  {item.reason}" for item in view.stopped]
    return lines + [f"finished  {run}  {text}" for run, text in view.finished.items()]


def _headline(view: View) -> str:
    if not (view.running or view.stopped or view.finished):
        return "nothing has started yet"
    return f"{len(view.running)} running, {len(view.stopped)} stopped"


def as_tables(view: View, *, height: int) -> "RenderableType":
    """The view as Rich tables.

    Args:
        height: lines of the terminal; longer tables are cut.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(*columns: str) -> Table:
        made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            right = column in ("epoch", "accuracy", "left")
            made.add_column(column, justify="right" if right else "left", no_wrap=right)
        return made

    parts: list[RenderableType] = [Text(f"{datetime.now():%H:%M:%S}  {_headline(view)}", style="bold")]
    room = max(_SHOWN, height // 2)
    if view.running:
        running = table("running", "", "epoch", "accuracy", "left")
        for item in view.running[:room]:
            cells = (item.run, item.title, item.epoch, item.accuracy, item.left)
            running.add_row(*map(Text, cells))
        parts += [running, *_more(view.running, room)]
    if view.stopped:
        stopped = table("stopped", "", "")
        for item in view.stopped[:_SHOWN]:
            stopped.add_row(Text(item.run), Text(item.title), Text(item.reason, style="red"))
        parts += [stopped, *_more(view.stopped, _SHOWN)]
    if view.finished:
        finished = table("finished", "")
        for run, text in list(view.finished.items())[-_SHOWN:]:
            finished.add_row(Text(run), Text(text))
        parts.append(finished)
    return Group(*parts)


def _more(items: Sequence[Item], shown: int) -> list[str]:
    return [f"and {len(items) - shown} more"] if len(items) > shown else []


def watch(args: argparse.Namespace, console: "Console") -> None:
    """Show the view on a terminal until Ctrl-C."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(as_tables(_view(args), height=console.height), refresh=True)
            time.sleep(args.interval or LIVE_INTERVAL)


def _view(args: argparse.Namespace) -> View:
    return take_view(checkpoints=args.checkpoints_root, logs=args.logs_root, run=args.run)


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_watching(parser)
    args = parser.parse_args(argv)
    if args.once and args.interval:
        parser.error("--once excludes --interval")
    for name in ("checkpoints_root", "logs_root"):
        if not getattr(args, name).is_dir():
            raise UserError(f"--{name} {getattr(args, name)} is not a folder: name the one of the runs")
    try:
        if sys.stdout.isatty() and not args.once and importlib.util.find_spec("rich"):
            from rich.console import Console

            watch(args, Console())
        print("\n".join(as_lines(_view(args))), flush=True)
        while args.interval:
            time.sleep(args.interval)
            print("\n".join(as_lines(_view(args))), flush=True)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader, such as head, has ended; nor can the interpreter flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    errors.run(main)
