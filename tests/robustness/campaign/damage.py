"""Every file of finished runs, damaged in turn: the stages that read it must notice."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.robustness.campaign import children
from tests.robustness.campaign.inputs import misreported
from tests.robustness.campaign.lines import Line
from tests.robustness.campaign.stages import References, Stage, copy, differences

PART = "damage"
STAGES = (
    *("stage 1", "stage 2-1", "stage 2-2", "stage 3-1", "stage 3-2, with growth", "cpg_sequence.sh"),
    *("spg_main.py, spg", "K/V transfer", "multimodal, stage 3-2"),
)
_SAYS_SO = ("damaged", "WARNING", "not valid", "not found")


def flip(content: bytes, draw: random.Random) -> bytes:
    """Change one bit."""
    damaged = bytearray(content)
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    """Keep the first half."""
    return content[: len(content) // 2]


def empty(content: bytes, draw: random.Random) -> bytes:
    """Keep nothing."""
    return b""


def misprint(content: bytes, draw: random.Random) -> bytes:
    """Replace a digit by another: a text file stays readable."""
    damaged = bytearray(content)
    place = draw.choice([place for place, byte in enumerate(content) if byte in b"0123456789"])
    damaged[place] = draw.choice([digit for digit in b"0123456789" if digit != content[place]])
    return bytes(damaged)


MISPRINT = "another digit"
TEXTS = (".txt", ".csv", ".json")
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit": flip,
    "cut": cut,
    "emptied": empty,
    MISPRINT: misprint,
}


@dataclass(frozen=True)
class Case:
    """A file to damage, and the stage to run then.

    Attributes:
        finished: run the stage where it has finished, instead of where its work is still to be done.
    """

    stage: Stage
    name: str
    finished: bool

    @property
    def label(self) -> str:
        return f"{self.stage.name}, {'finished' if self.finished else 'to do'}: {self.name}"


def cases(stage: Stage, *, references: References, folder: Path) -> Iterator[Case]:
    """The files that a stage opens for reading, where its work is to be done and where it has finished."""
    for finished in (False, True):
        root = folder / "root"
        copy((references.after if finished else references.before)(stage), root)
        copy(references.data, folder / "data")
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        opened = folder / "opened"
        opened.unlink(missing_ok=True)
        children.run(
            stage.entry,
            stage.argv(root, folder / "data"),
            output=folder / "output",
            before=partial(_record_reads, opened),
        )
        read = {json.loads(text) for text in opened.read_text().splitlines()} if opened.exists() else set()
        for name in sorted(present):
            if str(folder / name) in read and not name.endswith((".lock", "output", "opened")):
                yield Case(stage, name, finished)


def _record_reads(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(event: str, arguments: tuple) -> None:
        if (
            event == "open"
            and isinstance(arguments[0], str)
            and not arguments[2] & (os.O_WRONLY | os.O_APPEND)
        ):
            os.write(descriptor, (json.dumps(str(Path(arguments[0]).absolute())) + "\n").encode())

    sys.addaudithook(record)


def attempt(case: Case, kind: str, *, references: References, number: int, seed: int, folder: Path) -> Line:
    """Damage a file, run the stage, and judge what came of it."""
    draw = random.Random(f"{seed} {case.label} {kind}")
    detail = f"{kind}, {case.label}"
    line = Line(part=PART, what=f"{case.stage.name}, {kind}", number=number, detail=detail, tried=1)
    root, data = folder / "root", folder / "data"
    copy((references.after if case.finished else references.before)(case.stage), root)
    copy(references.data, data)
    path = folder / case.name
    damaged = DAMAGES[kind](path.read_bytes(), draw)
    path.write_bytes(damaged)
    ended = children.run(case.stage.entry, case.stage.argv(root, data), output=folder / "output")
    if problem := misreported(ended):
        line.tracebacks.append(f"{detail}: {problem}: {ended.output[-1500:]}")
        return line
    if ended.status != 0:
        named = path.name in ended.output.splitlines()[-1]
        line.notes["refused" if named else "refused without the file's name"] = 1
        return line
    found = [
        text
        for text in differences(references.after(case.stage), root)
        if not text.endswith(".damaged: unexpected")
    ]
    own = f"{case.name.removeprefix('root/')}: "
    others = [text for text in found if not text.startswith(own)]
    said = any(word in ended.output for word in _SAYS_SO)
    if others and not said:
        line.silent.append(f"{detail}: {others}")
    elif others:
        line.notes["differs, with a warning"] = 1
    elif found and path.exists() and path.read_bytes() == damaged:
        line.notes["no effect on a result, left as it is"] = 1
    else:
        line.notes["rebuilt" if said else "rewritten with the same content"] = 1
    return line


def clean(folder: Path) -> None:
    """Remove the working copies."""
    for name in ("root", "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
