"""The campaign's results: a line of JSON per attempt, and the table that sums them up."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "results.jsonl"


@dataclass
class Line:
    """One attempt.

    Attributes:
        part: part of the campaign.
        what: row of the table.
        number: number of the attempt within the row; with the campaign's seed, it determines the attempt.
        detail: what exactly was tried, where attempts are listed in advance.
        tried: how often something was tried in it: kills, inputs, files.
        lost: finished work that was gone, or a command that could no longer finish.
        differing: files that are not what an undisturbed run writes.
        tracebacks: tracebacks and crashes.
        silent: damage accepted without a word.
        notes: counts of interest, such as how many kills came after the start of the work.
    """

    part: str
    what: str
    number: int
    detail: str = ""
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.differing or self.tracebacks or self.silent)


class Results:
    """The lines in a folder. A campaign that continues adds to them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        texts = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.lines = [Line(**json.loads(text)) for text in texts]

    def add(self, line: Line) -> None:
        """Append a line."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    def attempts(self, part: str, what: str) -> int:
        """The number of attempts of a row."""
        return sum(line.part == part and line.what == what for line in self.lines)

    def has(self, part: str, detail: str) -> bool:
        """Whether something listed in advance was tried."""
        return any(line.part == part and line.detail == detail for line in self.lines)

    def tried(self, part: str, what: str | None = None) -> int:
        """How often a part of the campaign, or one of its rows, has tried something."""
        return sum(line.tried for line in self.lines if line.part == part and what in (None, line.what))


def table(results: Results) -> str:
    """All results as a Markdown table: a row per kind, in the order in which they were first tried."""
    rows: dict[tuple[str, str], list[Line]] = {}
    for line in results.lines:
        rows.setdefault((line.part, line.what), []).append(line)
    text = ["| | what | tried | lost | differing | tracebacks | accepted in silence |", "|---" * 7 + "|"]
    for (part, what), lines in rows.items():
        text.append(_row(part, what, lines))
    for part in dict.fromkeys(part for part, _ in rows):
        text.append(_row(part, "**all**", [line for line in results.lines if line.part == part]))
    return "\n".join(text)


def _row(part: str, what: str, lines: list[Line]) -> str:
    notes: dict[str, int] = {}
    for line in lines:
        for name, count in line.notes.items():
            notes[name] = notes.get(name, 0) + count
    shown = "".join(f"; {name}: {count}" for name, count in notes.items())
    counts = [
        sum(len(getattr(line, name)) for line in lines)
        for name in ("lost", "differing", "tracebacks", "silent")
    ]
    return (
        f"| {part} | {what}{shown} | {sum(line.tried for line in lines)} | {' | '.join(map(str, counts))} |"
    )
