"""How the figures of a report came about: arguments, data, versions, and what could not be read."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from reports.continual_runs import ContinualRun
from reports.figures import Figure, Numbers, Section
from reports.fleet_figures import Group
from reports.fleet_runs import OWN, PRUNED, SCRATCH, TARGET
from reports.reading import Problem

_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "altair", "vl-convert-python")
_MISSING = {
    SCRATCH: ("scratch network", "baseline.sh"),
    OWN: ("own network", "wo_backbone.sh"),
    PRUNED: ("chosen pruned network", "select_pruning_ratio_of_backbone.sh"),
    TARGET: ("target on a backbone", "w_backbone.sh"),
}


def provenance_section(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Section:
    """Arguments, commands, data and versions."""
    figures = (recorded(groups, continual), commands(groups, continual), data(groups), versions())
    return Section(
        id="provenance",
        title="How the figures came about",
        text="Arguments as the checkpoints record them. The same arguments, data and versions give the same "
        "numbers on the CPU.",
        figures=[figure for figure in figures if figure is not None],
    )


def recorded(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Figure | None:
    """The recorded arguments of every run."""
    rows = [
        {"run": run.run.name, "argument": name, "values": ", ".join(sorted(values))}
        for group in groups
        for run in group.runs
        for name, values in sorted(run.arguments.items())
    ]
    rows += [
        {"run": run.run.name, "argument": name, "values": str(value)}
        for run in continual
        for name, value in sorted(run.arguments.items())
    ]
    return _table(
        "arguments",
        title="Recorded arguments",
        text="Several values belong to different stages.",
        rows=rows,
    )


def commands(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> Figure | None:
    """The resolved arguments of each stage's last process, as its log has them."""
    rows = [
        {"run": run.run.name, "stage": stage, "arguments": text}
        for group in groups
        for run in group.runs
        for stage, text in sorted(run.commands.items())
        if text
    ]
    rows += [
        {"run": run.run.name, "stage": run.approach, "arguments": run.command}
        for run in continual
        if run.command
    ]
    return _table(
        "commands",
        title="Resolved arguments of each stage",
        text="Of the last process of each stage, as logged.",
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


def versions() -> Figure | None:
    """Versions of what made the report."""
    rows = [{"package": "Python", "version": platform.python_version()}]
    rows += [{"package": name, "version": version} for name, version in _installed()]
    return _table("versions", title="Versions", text="Of the installation that made this report.", rows=rows)


def _table(name: str, *, title: str, text: str, rows: Sequence[Mapping[str, str]]) -> Figure | None:
    """A figure that is a table of `rows`; None without any."""
    if not rows:
        return None
    return Figure(id=f"provenance-{name}", title=title, text=text, table=Numbers(tuple(rows[0]), rows))


def _installed() -> Iterable[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def problems_of(groups: Sequence[Group], continual: Sequence[ContinualRun]) -> list[Problem]:
    """What is missing or damaged, by run."""
    found = []
    for group in groups:
        for run in group.runs:
            found += run.problems
            for network, tasks in run.missing.items():
                what, script = _MISSING[network]
                every = len(tasks) == len(group.tasks)
                if every and run.in_sequence:
                    continue  # cpg_sequence.sh makes none of these
                named = "any task" if every else ", ".join(tasks)
                found.append(Problem(run.run.name, f"no {what} of {named}: {script} makes it"))
    for run in continual:
        found += run.problems
    return found
