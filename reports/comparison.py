"""Several groups of runs side by side: paired differences, tests, and the arguments that differ."""

from collections.abc import Sequence

from reports import charts
from reports.figures import Figure, Numbers, Section
from reports.fleet_runs import OWN, PRUNED, SCRATCH, TARGET
from reports.groups import LABELS, Group, by_samples, interval_text
from reports.statistics import paired

_COMPARED = {
    SCRATCH: LABELS[SCRATCH],
    OWN: LABELS[OWN],
    PRUNED: LABELS[PRUNED],
    TARGET: "on its backbone, last width",
}


def comparison_section(groups: Sequence[Group]) -> Section:
    """The groups compared with the first of them."""
    figures = (differences(groups), by_samples(groups, slug="comparison"), arguments(groups))
    return Section(
        id="comparison",
        title="Comparison",
        text=f"Every group of runs is compared with {groups[0].name}, task by task; each value is a mean "
        "over seeds.",
        figures=[figure for figure in figures if figure is not None],
    )


def _values(group: Group, network: str) -> dict[str, float]:
    """Task → test accuracy, mean over seeds."""
    return group.means(
        {
            (index, task.name): accuracy
            for index, run in enumerate(group.runs)
            for task in group.tasks
            for accuracy in [run.accuracy(task.name, network)]
            if accuracy is not None
        }
    )


def differences(groups: Sequence[Group]) -> Figure | None:
    """Paired differences from the first group, with tests over tasks."""
    first, *others = groups
    rows, table, drawn = [], [], []
    for network, label in _COMPARED.items():
        reference = _values(first, network)
        for group in others:
            values = _values(group, network)
            common = [task.name for task in first.tasks if task.name in reference and task.name in values]
            if not common:
                continue
            found = [
                {
                    **{"network": label, "run": group.name, "id": first.ids[task], "task": task},
                    **{"accuracy": values[task], "reference": reference[task]},
                    "difference": values[task] - reference[task],
                }
                for task in common
            ]
            rows += found
            test = paired([row["difference"] for row in found])
            table.append(
                {
                    **{"network": label, "run": group.name, "tasks": len(common)},
                    **{"mean difference": f"{test.difference.value:+.4f}"},
                    "95 % interval": interval_text(test.difference),
                    **{"p (paired t)": test.t, "p (permutation)": test.permutation},
                }
            )
    for row in rows:
        if row["network"] == _COMPARED[TARGET] or not any(r["network"] == _COMPARED[TARGET] for r in rows):
            name = row["run"] if row["network"] == _COMPARED[TARGET] else f"{row['network']}: {row['run']}"
            if len(others) == 1:
                name = row["network"]
            drawn.append(
                {"task": first.labels[row["task"]], "series": name, "mean": row["difference"], "seeds": 1}
                | {"low": None, "high": None}
            )
    if not rows:
        return None
    series = list(dict.fromkeys(row["series"] for row in drawn))
    return Figure(
        id="comparison-differences",
        title=f"Differences from {first.name}",
        text="Test accuracy minus that of the first group, task by task; the chart shows targets on their "
        "backbones, or own networks where no target is trained in both. Tests and intervals are over tasks.",
        chart=charts.dots(
            drawn,
            x="difference in test accuracy",
            series=series,
            tasks=first.shown,
            zero_line=True,
            format="+.3f",
        ),
        table=Numbers(
            (
                *("network", "run", "tasks", "mean difference", "95 % interval"),
                *("p (paired t)", "p (permutation)"),
            ),
            table,
        ),
        data=Numbers(("network", "run", "id", "task", "accuracy", "reference", "difference"), rows),
    )


def arguments(groups: Sequence[Group]) -> Figure | None:
    """The recorded arguments whose values differ between groups."""
    recorded = {
        group.name: {
            name: set().union(*(run.arguments.get(name, set()) for run in group.runs))
            for run in group.runs
            for name in run.arguments
        }
        for group in groups
    }
    names = sorted({name for found in recorded.values() for name in found})
    rows = []
    for name in names:
        values = [" ".join(sorted(recorded[group.name].get(name, set()))) or "-" for group in groups]
        if len(set(values)) > 1:
            rows.append(
                {"argument": name} | {group.name: value for group, value in zip(groups, values, strict=True)}
            )
    return Figure(
        id="comparison-arguments",
        title="Arguments that differ",
        text="Recorded in the checkpoints; several values belong to different stages or seeds."
        if rows
        else "None of the recorded arguments differ.",
        table=Numbers(("argument", *(group.name for group in groups)), rows),
    )
