"""Several groups of runs side by side: paired differences, tests, and the arguments that differ."""

from collections.abc import Sequence

from reports import charts
from reports.figures import Figure, Numbers, Section
from reports.fleet_figures import LABELS, Group, gain_rows
from reports.fleet_runs import OWN, PRUNED, SCRATCH, TARGET
from reports.statistics import mean_by, paired, spread

_COMPARED = {
    SCRATCH: LABELS[SCRATCH],
    OWN: LABELS[OWN],
    PRUNED: LABELS[PRUNED],
    TARGET: "on its backbone, last width",
}


def comparison_section(groups: Sequence[Group]) -> Section:
    """The groups compared with the first of them."""
    figures = (differences(groups), by_samples(groups), arguments(groups))
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
                    "95 % interval": "-"
                    if test.difference.low is None
                    else f"{test.difference.low:+.4f} to {test.difference.high:+.4f}",
                    **{"p (paired t)": test.t, "p (permutation)": test.permutation},
                }
            )
    for row in rows:
        if row["network"] == _COMPARED[TARGET] or not any(r["network"] == _COMPARED[TARGET] for r in rows):
            name = row["run"] if row["network"] == _COMPARED[TARGET] else f"{row['run']}: {row['network']}"
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


def by_samples(groups: Sequence[Group]) -> Figure | None:
    """Gain over training alone by the number of training samples per class."""
    counts = {group.name: {run.samples_per_class for run in group.runs} for group in groups}
    if len(set().union(*counts.values())) < 2:
        return None
    rows = [
        {"run": group.name, "per class": _shown(counts[group.name])} | row
        for group in groups
        for row in gain_rows(group)
    ]
    if not rows:
        return None
    by_task = mean_by(
        rows, key=lambda row: (row["per class"], row["network"], row["task"]), value=lambda row: row["gain"]
    )
    means = mean_by(by_task.items(), key=lambda item: item[0][:2], value=lambda item: item[1].value)
    order = sorted({row["per class"] for row in rows}, key=lambda name: (not name.isdigit(), name.zfill(9)))
    series = sorted({row["network"] for row in rows}, key=lambda name: (not name.startswith("on "), name))
    drawn = [{"task": count, "series": network} | spread(mean) for (count, network), mean in means.items()]
    table = [
        {
            **{
                "per class": count,
                "network": network,
                "tasks": mean.count,
                "mean gain": f"{mean.value:+.4f}",
            },
            "95 % interval": "-" if mean.low is None else f"{mean.low:+.4f} to {mean.high:+.4f}",
        }
        for (count, network), mean in sorted(means.items(), key=lambda item: order.index(item[0][0]))
    ]
    return Figure(
        id="comparison-samples",
        title="Gain by the number of training images",
        text="Gain over training alone at the same width by training samples per class; mean and 95 % "
        "interval over tasks.",
        chart=charts.dots(
            drawn, x="gain in test accuracy", series=series, tasks=order, zero_line=True, format="+.3f"
        ),
        table=Numbers(("per class", "network", "tasks", "mean gain", "95 % interval"), table),
        data=Numbers(("run", "per class", "seed", "id", "task", "network", "backbone", "gain"), rows),
    )


def _shown(counts: set[int | None]) -> str:
    return ", ".join(
        "all" if count is None else str(count) for count in sorted(counts, key=lambda n: n or 10**9)
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
