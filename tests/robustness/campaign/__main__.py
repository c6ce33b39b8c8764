"""Try for hours what may go wrong, and print one table of what was tried and what came of it."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.robustness.campaign import damage, fuzz, inputs, kills, shell, surroundings
from tests.robustness.campaign.lines import Line, Results, table
from tests.robustness.campaign.stages import BY_NAME, STAGES, References, Stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="campaign.sh", description=__doc__)
    parser.add_argument("folder", type=Path, help="Folder of the results; a campaign in it is continued.")
    parser.add_argument("--part", choices=list(PARTS), nargs="+", default=list(PARTS), help="Parts to run.")
    parser.add_argument("--hours", type=float, default=1.0, help="Time for all parts together.")
    parser.add_argument("--count", type=int, help="Stop a part once it has tried so many.")
    parser.add_argument(
        "--stage",
        choices=list(BY_NAME),
        nargs="+",
        help="Stages to run; name also those whose results they need (default: all).",
    )
    parser.add_argument("--seed", type=int, default=1, help="Random seed.")
    parser.add_argument("--table", action="store_true", help="Only print the table of the results so far.")
    args = parser.parse_args()
    stages = [stage for stage in STAGES if args.stage is None or stage.name in args.stage]
    campaign = Campaign(args.folder.resolve(), stages=stages, seed=args.seed, count=args.count)
    if not args.table:
        total = sum(PARTS[part][1] for part in args.part)
        for part in args.part:
            run, share = PARTS[part]
            campaign.until = time.monotonic() + 3600 * args.hours * share / total
            run(campaign)
    sys.stdout.write(table(campaign.results) + "\n")
    sys.exit(0 if all(line.is_clean for line in campaign.results.lines) else 1)


class Campaign:
    """The folder, the stages, the seed and the time of a campaign.

    Attributes:
        until: when the part that is running must stop.
    """

    def __init__(self, folder: Path, *, stages: Sequence[Stage], seed: int, count: int | None) -> None:
        self.folder = folder
        self.stages = stages
        self.seed = seed
        self.count = count
        self.until = 0.0
        self.results = Results(folder)

    def lacks(self, part: str) -> bool:
        """Whether a part has tried less than its count."""
        return self.count is None or self.results.tried(part) < self.count

    def goes_on(self, part: str) -> bool:
        """Whether a part has time left, and has tried less than its count."""
        return self.lacks(part) and time.monotonic() < self.until

    def next(self, part: str, what: str) -> dict[str, Any]:
        """The arguments of the next attempt of a row: its number, the seed and a folder to work in."""
        folder = self.folder / part.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        return {"number": self.results.attempts(part, what), "seed": self.seed, "folder": folder}

    def add(self, line: Line) -> None:
        """Keep a line, and show the attempts that found something."""
        self.results.add(line)
        if not line.is_clean:
            found = line.lost or line.differing or line.tracebacks or line.silent
            self.say(f"{line.part}, {line.what} {line.number}: {found}")

    def say(self, text: str) -> None:
        """Print a line of progress."""
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stderr.flush()

    def references(self) -> References:
        """The results of undisturbed runs, made once."""
        found = References(self.folder / "references", stages=self.stages)
        found.folder.mkdir(exist_ok=True)
        found.prepare(report=self.say)
        return found


def kill(campaign: Campaign) -> None:
    """Kill forked commands; the stages take turns, those with larger shares more often."""
    references = campaign.references()
    spent = {stage.name: campaign.results.tried(kills.PART, stage.name) for stage in campaign.stages}
    while campaign.goes_on(kills.PART):
        stage = min(campaign.stages, key=lambda stage: spent[stage.name] / stage.share)
        line = kills.attempt(stage, references=references, **campaign.next(kills.PART, stage.name))
        spent[stage.name] += max(line.tried, 1)
        campaign.add(line)


def kill_scripts(campaign: Campaign) -> None:
    """Kill bash scripts, in turn."""
    data = campaign.references().data
    while campaign.goes_on(shell.PART):
        for script in shell.SCRIPTS:
            if campaign.goes_on(shell.PART):
                campaign.add(shell.attempt(script, data=data, **campaign.next(shell.PART, script.name)))


def give_inputs(campaign: Campaign) -> None:
    """Give hostile inputs of every kind, in turn."""
    references = campaign.references()
    while campaign.goes_on(inputs.PART):
        for kind in inputs.KINDS:
            campaign.add(inputs.attempt(kind, references=references, **campaign.next(inputs.PART, kind)))


def fuzz_files(campaign: Campaign) -> None:
    """Fuzz every kind of file, in turn."""
    while campaign.goes_on(fuzz.PART):
        for kind in fuzz.KINDS:
            if campaign.goes_on(fuzz.PART):
                cases = fuzz.cases_of(kind, FUZZED)
                campaign.add(fuzz.attempt(kind, cases=cases, **campaign.next(fuzz.PART, kind)))


def damage_files(campaign: Campaign) -> None:
    """Damage every file that a stage reads, once in each way; the end of the time does not end this part."""
    references = campaign.references()
    folder = campaign.next(damage.PART, "")["folder"]
    for stage in (stage for stage in campaign.stages if stage.name in damage.STAGES):
        for case in list(damage.cases(stage, references=references, folder=folder)):
            for kind in damage.DAMAGES:
                if kind == damage.MISPRINT and not case.name.endswith(damage.TEXTS):
                    continue
                known = campaign.results.has(damage.PART, f"{kind}, {case.label}")
                if known or not campaign.lacks(damage.PART):
                    continue
                arguments = campaign.next(damage.PART, f"{stage.name}, {kind}")
                campaign.add(damage.attempt(case, kind, references=references, **arguments))
    damage.clean(folder)


def change_surroundings(campaign: Campaign) -> None:
    """Run every stage in each of the odd surroundings, once."""
    references = campaign.references()
    for kind in surroundings.KINDS:
        stages = [stage for stage in campaign.stages if stage.name in surroundings.STAGES]
        for stage in stages[campaign.results.tried(surroundings.PART, kind) :]:
            line = campaign.next(surroundings.PART, kind)
            campaign.add(
                surroundings.attempt(
                    kind, stage, references=references, number=line["number"], folder=line["folder"]
                )
            )


# Each part with its share of the time.
PARTS: dict[str, tuple[Callable[[Campaign], None], float]] = {
    kills.PART: (kill, 0.5),
    inputs.PART: (give_inputs, 0.1),
    fuzz.PART: (fuzz_files, 0.1),
    damage.PART: (damage_files, 0.15),
    surroundings.PART: (change_surroundings, 0.05),
    shell.PART: (kill_scripts, 0.1),
}
# Files of a kind in one turn.
FUZZED = 500

if __name__ == "__main__":
    main()
