"""Which runs a report shows, and which of them differ in their seed alone."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.flags import SEED_PLACE
from utils.errors import UserError

_SEED = re.compile(r"(?<![^/_.-])seed(\d+)(?![^/_.-])")
# Files that a run has in its folder of logs.
_SUFFIXES = (".txt", ".csv", ".json", ".log")
# More names than these do not fit in a message.
_LISTED = 40


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: under the roots.
        group: its name with `{seed}` in place of the seed; runs of one group are repetitions.
        seed: None if the name holds none.
    """

    name: str
    group: str
    seed: int | None


def known_runs(logs: Path) -> list[str]:
    """Names of all runs that have written logs or results."""
    found = []
    for folder, below, files in os.walk(logs):
        below.sort()
        name = Path(folder).relative_to(logs).as_posix()
        if name != "." and any(Path(file).suffix in _SUFFIXES for file in files):
            found.append(name)
            below.clear()  # tuning and tracking have folders inside their run's
    return sorted(found, key=_natural)


def find_runs(asked: Sequence[str], *, checkpoints: Path, logs: Path) -> list[Run]:
    """The runs that names, folders of runs and patterns with `{seed}` mean, without repetitions.

    Raises:
        UserError: for a name that means no run; the message lists the runs.
    """
    known = known_runs(logs)
    runs: dict[str, Run] = {}
    for pattern in asked:
        names = [name for name in known if _means(pattern, name)]
        if not names and SEED_PLACE not in pattern and (checkpoints / pattern).is_dir():
            names = [pattern]
        if not names:
            listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
            raise UserError(f"there is no run {pattern} in {logs}: choose from {listed or 'none'}")
        for name in names:
            seed = _seed_in(name, pattern)
            group = pattern if SEED_PLACE in pattern else _SEED.sub("seed" + SEED_PLACE, name)
            runs.setdefault(name, Run(name, group, seed))
    return list(runs.values())


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(re.escape(SEED_PLACE), r"(\d+)")


def _means(pattern: str, name: str) -> bool:
    if SEED_PLACE in pattern:
        return re.fullmatch(_expression(pattern), name) is not None
    return name == pattern or name.startswith(f"{pattern}/")


def _seed_in(name: str, pattern: str) -> int | None:
    found = re.fullmatch(_expression(pattern), name) if SEED_PLACE in pattern else _SEED.search(name)
    return int(found[1]) if found else None


def _natural(name: str) -> list:
    """Sort key that orders numbers inside names by value."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]
