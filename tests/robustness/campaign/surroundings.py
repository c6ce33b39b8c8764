"""Odd surroundings: clocks set back, other users, read-only data, names of folders that need quoting."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.robustness.campaign import children
from tests.robustness.campaign.inputs import misreported
from tests.robustness.campaign.lines import Line
from tests.robustness.campaign.stages import References, Stage, copy, differences

PART = "surroundings"
NOBODY = 65534
ODD = "a b\nä日本'\"$x;*"
STAGES = (
    "stage 1",
    "stage 2-1",
    "stage 2-2",
    "stage 3-1",
    "stage 3-2, with growth",
    "cpg_sequence.sh",
    "spg_main.py, spg",
)


def attempt(kind: str, stage: Stage, *, references: References, number: int, folder: Path) -> Line:
    """Run a stage in odd surroundings, twice: the second run must find it finished."""
    line = Line(part=PART, what=kind, number=number)
    if KINDS[kind] in (read_only_data, another_user) and not reachable(folder):
        line.notes["skipped: other users cannot reach the folder"] = 1
        return line
    line.tried = 1
    work = folder / "work"
    _writable(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    root, data, before = KINDS[kind](stage, references=references, work=work)
    output = folder / "output"
    for run in (1, 2):
        output.unlink(missing_ok=True)
        output.touch()
        output.chmod(0o666)
        ended = children.run(stage.entry, stage.argv(root, data), output=output, before=before)
        if problem := misreported(ended):
            line.tracebacks.append(f"{kind}, {stage.name}, run {run}: {problem}: {ended.output[-1500:]}")
        elif ended.status != 0:
            line.lost.append(f"{kind}, {stage.name}, run {run}: {ended.output[-1500:]}")
        else:
            line.differing += [
                f"{kind}, {stage.name}: {text}" for text in differences(references.after(stage), root)
            ]
    _writable(work)
    return line


def _writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def reachable(folder: Path) -> bool:
    """Whether this process can run commands as another user, who can reach the folder."""
    others = 0o005
    return os.geteuid() == 0 and all(
        path.stat().st_mode & others == others for path in folder.resolve().parents
    )


def clock_set_back(stage: Stage, *, references: References, work: Path) -> tuple:
    """Every file is a year older than now says, and the clock goes back by an hour as the run begins."""
    root = work / "root"
    copy(references.before(stage), root)
    future = time.time() + 365 * 86400
    for path in root.rglob("*"):
        os.utime(path, (future, future))

    def set_back() -> None:
        begun, now = time.time(), time.time
        time.time = lambda: now() - 3600 if now() > begun + 0.5 else now()

    return root, references.data, set_back


def read_only_data(stage: Stage, *, references: References, work: Path) -> tuple:
    """Nobody may write to the data root; the files were prepared before."""
    root, data = work / "root", work / "data"
    copy(references.before(stage), root)
    copy(references.data, data)
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    _give(root)
    return root, data, _become_nobody


def another_user(stage: Stage, *, references: References, work: Path) -> tuple:
    """The folders belong to another user, whose earlier results are only readable."""
    root = work / "root"
    copy(references.before(stage), root)
    _give(root, files=False)
    return root, references.data, _become_nobody


def odd_names(stage: Stage, *, references: References, work: Path) -> tuple:
    """Spaces, quotes, a line break, a wildcard and non-ASCII letters in the paths of all roots."""
    root, data = work / ODD / "root", work / ODD / "data"
    copy(references.before(stage), root)
    copy(references.data, data)
    return root, data, None


def _give(folder: Path, *, files: bool = True) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
        elif files or path.name.endswith((".log", ".lock")):
            path.chmod(0o666)


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


KINDS: dict[str, Callable[..., tuple]] = {
    "a clock set back": clock_set_back,
    "a read-only data root": read_only_data,
    "two users": another_user,
    "odd names of folders": odd_names,
}
