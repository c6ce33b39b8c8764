"""Kills of the real bash stages: of the outer script alone, or of its whole process group."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import REPOSITORY
from tests.robustness.campaign.children import PATIENCE_ON_THE_CLOCK, TRACEBACK
from tests.robustness.campaign.lines import Line
from tests.robustness.campaign.stages import copy, differences

PART = "kills of bash scripts"
MOST = 3
# How long the processes of a killed script may go on, in seconds.
GRACE = 120
VARIABLES = {
    "EPOCHS": "3",
    "PRUNE_EPOCHS": "2",
    "SPARSITIES": "0.3 0.8",
    "BATCH_SIZE": "10",
    "MAX_ITERATIONS": "20",
    "MAX_WIDTH": "1.5",
    "ALLOW_ACC_LOSS": "1",
    "JOBS": "1",
    "THREADS": "1",
    "DEVICE": "cpu",
}
CONTINUAL = {"THREADS": "1", "DEVICE": "cpu", "EXTRA_SPG_ARGS": "--epochs 3 --batch_size 8"}


@dataclass(frozen=True)
class Script:
    """A bash script with its arguments and variables."""

    name: str
    arguments: tuple[str, ...]
    variables: dict[str, str]

    def start(self, root: Path, *, data: Path, output: Path) -> subprocess.Popen:
        """Start it in a session of its own."""
        roots = {"DATA_ROOT": data, "CHECKPOINTS_ROOT": root / "checkpoints", "LOGS_ROOT": root / "logs"}
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        with output.open("wb") as file:
            return subprocess.Popen(
                ["bash", str(REPOSITORY / "run_pickaback" / self.name), *self.arguments],
                env=kept
                | {"PYTHON": sys.executable}
                | self.variables
                | {k: str(v) for k, v in roots.items()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


SCRIPTS = (
    Script("run_all.sh", ("digits", "1-2"), VARIABLES),
    Script(
        "cpg_sequence.sh", ("digits", "1-2"), {k: v for k, v in VARIABLES.items() if k != "MAX_ITERATIONS"}
    ),
    Script("spg.sh", (), CONTINUAL),
)


def reference(script: Script, *, data: Path, folder: Path) -> tuple[Path, float]:
    """The roots that the undisturbed script leaves, made once, and the seconds that it took."""
    root, times = folder / f"reference_{script.name}", folder / f"{script.name}.seconds"
    if not times.exists():
        for _ in range(2):  # the second finds the data prepared
            copy(Path("nowhere"), root)
            begun = time.monotonic()
            process = script.start(root, data=data, output=folder / "output")
            if process.wait() != 0:
                raise RuntimeError(f"{script.name} failed: {(folder / 'output').read_text()[-2000:]}")
        times.write_text(str(time.monotonic() - begun))
    return root, float(times.read_text())


def attempt(script: Script, *, data: Path, number: int, seed: int, folder: Path) -> Line:
    """Run a script, kill it at random moments, and repeat the command until it ends; compare the results."""
    draw = random.Random(f"{seed} {script.name} {number}")
    line = Line(part=PART, what=script.name, number=number, notes={"of the outer script alone": 0})
    expected, seconds = reference(script, data=data, folder=folder)
    root, output = folder / "root", folder / "output"
    copy(Path("nowhere"), root)
    while True:
        process = script.start(root, data=data, output=output)
        killed = False
        if line.tried < MOST:
            try:
                process.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                killed = True
                alone = draw.random() < 0.5
                sent = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                (os.kill if alone else os.killpg)(process.pid, sent)
                line.tried += 1
                line.notes["of the outer script alone"] += alone
        try:
            status = process.wait(PATIENCE_ON_THE_CLOCK if not killed else GRACE)
        except subprocess.TimeoutExpired:
            status = None
        where = f"{script.name} {number}, kill {line.tried}"
        if killed and not _session_ends(process.pid):
            line.lost.append(f"{where}: a process survived its script")
        text = output.read_text(errors="replace")
        if TRACEBACK in text:
            line.tracebacks.append(f"{where}: {text[-1500:]}")
        if killed and status != 0:
            continue
        if status != 0:
            line.lost.append(f"{where}: status {status}: {text[-1500:]}")
        break
    _end_session(process.pid)
    if status == 0:
        line.differing += [f"{script.name} {number}: {name}" for name in differences(expected, root)]
    if line.is_clean:
        shutil.rmtree(root)
    else:
        shutil.move(root, folder / f"kept_{script.name}_{number}")
    return line


def _members(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def _session_ends(session: int) -> bool:
    until = time.monotonic() + GRACE
    while _members(session):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _end_session(session: int) -> None:
    for process in _members(session):
        os.kill(process, signal.SIGKILL)
