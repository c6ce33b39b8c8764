"""How the figures of a report came about: arguments, data, versions, and what could not be read."""

import platform
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata

from reports.continual_runs import ContinualRun
from reports.figures import Figure, Numbers, Section
from reports.fleet_runs import OWN, PRUNED, SCRATCH, TARGET
from reports.groups import Group
from reports.reading import Problem

_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "altair", "vl-convert-python")
# Recorded arguments that differ between seeds by themselves.
_BY_SEED = {"seed", "data"}
_MISSING = {
    SCRATCH: ("scratch network", "baseline.sh"),
    OWN: ("own network", "wo_backbone.sh"),
    PRUNED: ("chosen pruned network", "select_pruning_ratio_of_backbone.sh"),
    TARGET: ("target on a backbone", "w_backbone.sh"),
}


def provenance_section(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Section:
    """Arguments, commands, data and versions."""
    figures = (recorded(groups, continual), commands(groups, continual), data(groups), versions(groups))
    return Section(
        id="provenance",
        title="How the figures came about",
        text="Arguments as the checkpoints record them. The same arguments, data and versions give the same "
        "numbers on the CPU.",
        figures=[figure for figure in figures if figure is not None],
    )


def recorded(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Figure | None:
    """The recorded arguments of every run."""
    by_run = {
        run.run.name: {name: ", ".join(sorted(values)) for name, values in run.arguments.items()}
        for group in groups
        for run in group.runs
    } | {run.run.name: {name: str(value) for name, value in run.arguments.items()} for run in continual}
    rows = [
        {"run": run, "argument": name, "values": values}
        for run, found in by_run.items()
        for name, values in sorted(found.items())
    ]
    return _table(
        "arguments",
        title="Recorded arguments",
        text="Several values belong to different stages.",
        rows=list(_by_value(by_run)),
        data=rows,
    )


def _by_value(by_run: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """One row per argument and value, with the runs that recorded it."""
    for name in sorted({name for found in by_run.values() for name in found}):
        runs: dict[str, list[str]] = {}
        for run, found in by_run.items():
            if name in found:
                runs.setdefault(found[name], []).append(run)
        for values, named in runs.items():
            shown = "all" if len(named) == len(by_run) else ", ".join(named)
            yield {"argument": name, "values": values, "runs": shown}


def commands(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Figure | None:
    """The last command of each stage; where none is recorded, the arguments in its log."""
    rows = [
        {"run": run.run.name, "stage": stage, "command or arguments": text}
        for group in groups
        for run in group.runs
        for stage, text in sorted(run.commands.items())
        if text
    ]
    rows += [
        {"run": run.run.name, "stage": run.approach, "command or arguments": run.command}
        for run in continual
        if run.command
    ]
    return _table(
        "commands",
        title="Commands",
        text="The last one of each stage; where none is recorded, the arguments that its log begins with.",
        rows=rows,
    )


def data(groups: Sequence[Group]) -> Figure | None:
    """The fingerprints of the data that networks were trained on."""
    rows = [
        {"run": run.run.name, "task": task, "fingerprint": value}
        for group in groups
        for run in group.runs
        for task, value in run.fingerprints.items()
    ]
    return _table(
        "data",
        title="Fingerprints of the data",
        text="SHA-256 of the samples and of how they were split and drawn.",
        rows=rows,
    )


def versions(groups: Sequence[Group]) -> Figure | None:
    """Versions of what trained the networks and of what made the report."""
    trained: dict[str, list[str]] = {}
    for group in groups:
        for run in group.runs:
            for version in sorted(run.versions):
                trained.setdefault(version, []).append(run.run.name)
    count = sum(len(group.runs) for group in groups)
    rows = [
        {"of": "training" if len(runs) == count else f"training, {', '.join(runs)}"}
        | dict(zip(("package", "version"), version.split(" ", 1), strict=True))
        for version, runs in trained.items()
    ]
    rows += [
        {"of": "this report", "package": name, "version": version}
        for name, version in (("python", platform.python_version()), *_installed())
    ]
    return _table(
        "versions", title="Versions", text="Of training, as recorded, and of this report.", rows=rows
    )


def _table(
    name: str,
    *,
    title: str,
    text: str,
    rows: Sequence[Mapping[str, str]],
    data: Sequence[Mapping[str, str]] = (),
) -> Figure | None:
    """A figure that is a table of `rows`, with other rows to download if given; None without any."""
    if not rows:
        return None
    return Figure(
        id=f"provenance-{name}",
        title=title,
        text=text,
        table=Numbers(tuple(rows[0]), rows),
        data=Numbers(tuple(data[0]), data) if data else None,
    )


def _installed() -> Iterable[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def problems_of(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> list[Problem]:
    """What is missing or damaged, by run, and which runs of a group do not belong together."""
    found = []
    for group in groups:
        for run in group.runs:
            found += run.problems
            found += _unlike(run.run.name, run.stamps, group.runs[0].run.name, group.runs[0].stamps)
            for network, tasks in run.missing.items():
                what, script = _MISSING[network]
                every = len(tasks) == len(group.tasks)
                if every and run.in_sequence:
                    continue  # cpg_sequence.sh makes none of these
                if every and network == TARGET and group.serves:
                    continue  # its targets are the other group's
                if network == PRUNED and run.fleet:
                    continue  # its backbones are the fleet's
                named = "any task" if every else ", ".join(tasks)
                found.append(Problem(run.run.name, f"no {what} of {named}: {script} makes it"))
    first: dict[str, ContinualRun] = {}
    for run in continual:
        found += run.problems
        other = first.setdefault(run.run.group, run)
        found += _unlike(run.run.name, {"": run.arguments}, other.run.name, {"": other.arguments})
    return found


def _unlike(
    run: str,
    stamps: Mapping[Hashable, Mapping[str, object]],
    first: str,
    expected: Mapping[Hashable, Mapping[str, object]],
) -> Iterator[Problem]:
    """A problem if two runs that should differ in their seed alone recorded other arguments.

    Args:
        stamps, expected: by network and training stage, what each run recorded; those that only one has,
            like the ratio that it chose, do not count.
    """
    differing = {}
    for key in stamps.keys() & expected.keys():
        mine, others = stamps[key], expected[key]
        if not mine or not others:
            continue
        for name in (mine.keys() | others.keys()) - _BY_SEED:
            if mine.get(name) != others.get(name):
                differing[name] = f"{name} {mine.get(name)} instead of {others.get(name)}"
    if differing:
        listed = ", ".join(text for _, text in sorted(differing.items()))
        yield Problem(run, f"counts as a repetition of {first}, but was made with other arguments: {listed}")
