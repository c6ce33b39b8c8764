"""Kills at random moments, after which the same command must finish with the same bits."""

import random
import shutil
import signal
from pathlib import Path

from tests.robustness.campaign.children import Child
from tests.robustness.campaign.lines import Line
from tests.robustness.campaign.stages import References, Stage, copy, differences

PART = "kills"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# How a killed command may end. A signal may also come when everything is done.
STATUSES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM,),
    signal.SIGINT: (-signal.SIGINT, 130),
}
# The most kills of one run. Each moment is drawn from the whole duration, so most runs end before.
MOST = 8


def attempt(stage: Stage, *, references: References, number: int, seed: int, folder: Path) -> Line:
    """Run a stage, kill it at random moments, and repeat the command until it ends; compare the results.

    The moments are uniform over the processor time of the undisturbed command.
    """
    draw = random.Random(f"{seed} {stage.name} {number}")
    line = Line(part=PART, what=stage.name, number=number, notes={"after its first log line": 0})
    root = folder / "root"
    copy(references.before(stage), root)
    argv = stage.argv(root, references.data)
    finished = False
    while not finished:
        child = Child(stage.entry, argv, output=folder / "output")
        sent = None
        if line.tried < MOST and not child.ends_before(draw.uniform(0, references.seconds(stage))):
            sent = draw.choice(SIGNALS)
            child.kill(sent)
        ended = child.end()
        where = f"{stage.name} {number}, kill {line.tried}"
        if sent is not None:
            line.tried += 1
            line.notes["after its first log line"] += " - root - INFO - " in ended.output
        if ended.tracebacks:
            line.tracebacks.append(f"{where}: {ended.output[-1000:]}")
        if sent is not None and ended.status in STATUSES[sent]:
            continue
        finished = ended.status == 0
        if not finished:
            line.lost.append(f"{where}: status {ended.status}: {ended.output[-1000:]}")
            break
    if finished:
        line.differing += [
            f"{stage.name} {number}: {name}" for name in differences(references.after(stage), root)
        ]
    if line.is_clean:
        shutil.rmtree(root)
    else:
        shutil.move(root, folder / f"kept_{stage.name.replace(' ', '_')}_{number}")
    return line
