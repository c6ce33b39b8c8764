"""From the runs that flags name to the sections of a report."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from data.tables import load_table
from pipeline.flags import SEED_PLACE
from pipeline.fleet import paths_of
from reports.comparison import comparison_section
from reports.continual_figures import continual_section
from reports.continual_runs import ContinualRun, has_continual, read_continual
from reports.figures import Section
from reports.fleet_figures import fleet_section
from reports.fleet_runs import FleetRun, has_fleet, read_fleet
from reports.groups import Group
from reports.page import Report
from reports.provenance import problems_of, provenance_section
from reports.runs import Run, find_runs
from utils.errors import UserError
from utils.runtime import set_threads


def build(args: argparse.Namespace, *, now: datetime) -> Report:
    """Read the runs that `--run` names, and make the figures.

    Raises:
        UserError: if a run does not exist, or if none holds anything of the task table.
    """
    set_threads(1)
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = table.select(args.dataset)
    by_default = paths_of(argparse.Namespace(**vars(args) | {"run": None}))
    asked = (
        [
            name.replace(SEED_PLACE, str(seed))
            for seed in args.seeds or ()
            for name in args.run
            or [paths_of(argparse.Namespace(**vars(args) | {"run": None, "seed": seed})).run]
        ]
        or args.run
        or [by_default.run]
    )
    runs = find_runs(asked, checkpoints=args.checkpoints_root, logs=args.logs_root)
    fleets: list[FleetRun] = []
    continual: list[ContinualRun] = []
    for run in runs:
        paths = replace(by_default, run=run.name)
        if has_continual(paths):
            continual.append(read_continual(run, paths=paths))
        elif has_fleet(run, paths=paths, table=table):
            fleets.append(read_fleet(run, paths=paths, table=table, tasks=tasks))
        elif len(runs) == 1:
            raise UserError(f"run {run.name} holds nothing of table {table.name}: give --dataset_config")
    if not fleets and not continual:
        raise UserError(f"no run of {', '.join(asked)} holds anything of {table.name}: give --dataset_config")
    providers = {run.fleet for run in fleets}
    groups = [
        Group(
            name=name,
            slug=f"run-{number}",
            runs=found,
            tasks=tasks,
            serves=all(run.run.name in providers for run in found),
        )
        for number, (name, found) in enumerate(_grouped(fleets).items(), 1)
    ]
    sections: list[Section] = [comparison_section(groups)] if len(groups) > 1 else []
    sections += [fleet_section(group, table=table.name) for group in groups]
    sequences: dict[str, list[ContinualRun]] = {}
    for run in continual:
        sequences.setdefault(run.sequence or run.run.name, []).append(run)
    sections += [
        continual_section(found, sequence=sequence, slug=f"sequence-{number}")
        for number, (sequence, found) in enumerate(sequences.items(), 1)
    ]
    sections.append(provenance_section(groups, continual))
    names = [*(group.name for group in groups), *sequences]
    return Report(
        title=f"Report: {', '.join(names)}",
        made=f"Made on {now:%Y-%m-%d at %H:%M} from {_count(runs)}.",
        sections=sections,
        problems=problems_of(groups, continual),
        folder=args.logs_root / runs[0].name,
        table=table.name if fleets else next(iter(sequences)),
    )


def _grouped(runs: Sequence[FleetRun]) -> dict[str, list[FleetRun]]:
    """Name → the runs that differ in their seed alone; a single run keeps its own name."""
    groups: dict[str, list[FleetRun]] = {}
    for run in runs:
        groups.setdefault(run.run.group, []).append(run)
    return {found[0].run.name if len(found) == 1 else name: found for name, found in groups.items()}


def _count(runs: Sequence[Run]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"
