"""Read what runs left behind. A file that cannot be read becomes a problem, and the rest is read on."""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from data.tables import Table
from methods.footprint import packed_bytes, stored_bytes
from methods.ownership import SharedNetwork
from pipeline.architectures import architecture
from training.checkpoints import read_checkpoint
from utils.errors import UserError
from utils.files import read_csv
from utils.paths import checkpoints_in

_CONFIGURATION = b" - INFO - Configuration: "
_T = TypeVar("_T")
_TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Problem:
    """Something that the report cannot show.

    Attributes:
        run: name of the run.
        text: what is missing or damaged, and where.
    """

    run: str
    text: str


@dataclass(frozen=True)
class LayerShares:
    """Who owns the weights of a layer at the width of the newest task.

    Attributes:
        owned: task → number of weights that it owns.
        free: number of weights that no task owns.
        picked: number of the earlier tasks' weights that the newest task picks.
    """

    layer: str
    owned: dict[str, int]
    free: int
    picked: int


@dataclass(frozen=True)
class Trained:
    """What a checkpoint tells about a network.

    Attributes:
        tasks: in the order in which they were learned.
        layers, stored, packed: shares by layer; bytes of the network in memory with packed masks; bytes that
            send it to another device. Empty and 0 unless asked for.
    """

    metrics: dict[str, float]
    arguments: dict[str, Any]
    selection: dict[str, Any]
    tasks: tuple[str, ...]
    layers: tuple[LayerShares, ...] = ()
    stored: int = 0
    packed: int = 0


@dataclass
class Reader:
    """Reads one run's files.

    Attributes:
        run: name of the run, for the problems.
        problems: what could not be read so far.
    """

    run: str
    problems: list[Problem] = field(default_factory=list)

    def attempt(self, read: Callable[[], _T]) -> _T | None:
        """What `read` returns; None, and a problem, if the file is damaged or cannot be opened."""
        try:
            return read()
        except UserError as error:
            self.note(str(error))
        except OSError as error:
            self.note(f"{error.filename}: {error.strerror}")
        return None

    def note(self, text: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(self.run, text))

    def existing(self, path: Path, read: Callable[[Path], _T]) -> _T | None:
        """What `read` makes of a file; None if the file does not exist or is damaged."""
        return self.attempt(lambda: read(path)) if path.exists() else None

    def trained(self, folder: Path, *, table: Table | None = None) -> Trained | None:
        """The finished network in a folder; None if there is none.

        Args:
            table: the task table; if given, shares by layer and bytes are computed, too.
        """
        found = checkpoints_in(folder)
        if not found:
            return None
        path = found[max(found)]
        return self.attempt(lambda: read_trained(path, table=table))

    def rows(self, path: Path, *, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
        """The rows of a CSV file; none if it does not exist or is damaged."""
        return (
            self.existing(path, lambda file: read_csv(file, columns=columns, remedy="redo its stage")) or []
        )


def read_trained(path: Path, *, table: Table | None) -> Trained:
    """Read a checkpoint.

    Raises:
        UserError: if it is damaged or does not record its accuracy.
    """
    payload = read_checkpoint(path)
    if "metrics" not in payload:
        raise UserError(f"{path} does not record its accuracy: redo its stage")
    facts = {
        "metrics": payload["metrics"],
        "arguments": payload.get("arguments", {}),
        "selection": payload.get("selection", {}),
        "tasks": tuple(payload["dataset_history"]),
    }
    if table is None or "architecture" not in payload:
        return Trained(**facts)
    entry = payload["architecture"]
    build = architecture(
        entry["name"],
        layers=entry["layers"],
        in_channels=table.channels,
        size=table.size,
        sizes=entry.get("sizes"),
    )
    shared = SharedNetwork.from_payload(payload, build=build, source=path)
    return Trained(
        **facts,
        layers=tuple(_shares(shared)),
        stored=stored_bytes(shared)["total"],
        packed=packed_bytes(shared),
    )


def _shares(shared: SharedNetwork) -> Iterator[LayerShares]:
    newest = shared.tasks[-1].name
    picked = shared.picked_as(newest)
    for name, owner in shared.owners_as(newest).items():
        counts = owner.flatten().bincount(minlength=len(shared.tasks) + 1).tolist()
        owned = {record.name: counts[number] for number, record in enumerate(shared.tasks, 1)}
        yield LayerShares(name, owned, counts[0], int(picked[name].sum()))


def seconds_of(log: Path) -> float:
    """Seconds that the processes that wrote a log ran, from each one's first line to its last."""
    content = log.read_bytes()
    starts = [match.start() for match in re.finditer(re.escape(_CONFIGURATION), content)]
    begins = [content.rfind(b"\n", 0, start) + 1 for start in starts] or [0]
    total = 0.0
    for begin, end in zip(begins, [*begins[1:], len(content)], strict=True):
        first = _time(content[begin : begin + 23])
        last = _time(content[content.rfind(b"\n", begin, max(end - 1, begin)) + 1 :][:23]) or first
        if first and last:
            total += max((last - first).total_seconds(), 0.0)
    return total


def _time(stamp: bytes) -> datetime | None:
    try:
        return datetime.strptime(stamp.decode()[:19], _TIME).replace(microsecond=int(stamp[20:23]) * 1000)
    except ValueError:
        return None


def configuration_of(log: Path) -> str:
    """The arguments of the last process that wrote a log; empty if it does not say."""
    content = log.read_bytes()
    start = content.rfind(_CONFIGURATION)
    if start < 0:
        return ""
    return content[start + len(_CONFIGURATION) :].split(b"\n", 1)[0].decode(errors="replace")


def number(text: str | None) -> float | None:
    """A number in a CSV file; None for an empty field, and for one that is not a finite number."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def header_of(path: Path) -> list[str]:
    """The column names of a CSV file."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])
