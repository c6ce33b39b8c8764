"""Figures of tables with several modalities: backbones of the same and of the other, and the K/V transfer."""

from reports import charts
from reports.figures import Figure, Numbers
from reports.fleet_runs import OTHER, SAME, UNTRANSFERRED
from reports.groups import ACROSS, Group, interval_text, wide_table
from reports.statistics import mean_by, paired, spread

_SERIES = (SAME, OTHER, UNTRANSFERRED)
_DIFFERENCES = {
    "other modality − same": (OTHER, SAME),
    "K/V transfer − none": (OTHER, UNTRANSFERRED),
}


def crossings(group: Group) -> Figure | None:
    """Accuracy of each target on the best backbone of its own modality and of the other one."""
    rows = [
        {
            **{"seed": run.run.seed, "id": group.ids[item.target], "task": item.target},
            **{"modality": group.modalities[item.target], "candidates": item.among},
            **{"backbone": item.backbone, "accuracy": item.accuracy},
        }
        for run in group.runs
        for item in run.crossings
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["task"], row["candidates"]), value=lambda row: row["accuracy"])
    order = [name for name in _SERIES if any(row["candidates"] == name for row in rows)]
    drawn = [
        {"task": group.labels[task], "series": among} | spread(mean) for (task, among), mean in means.items()
    ]
    return Figure(
        id=f"{group.slug}-modalities",
        title="Backbones of the same and of the other modality",
        text="Test accuracy of each target, at its last width, on the best backbone of its own modality, on "
        "the best one of the other, and on the latter without the K/V transfer.",
        chart=charts.dots(drawn, x="test accuracy", series=order, tasks=group.shown),
        table=wide_table(group, means, order),
        data=Numbers((*ACROSS, "modality", "candidates", "backbone", "accuracy"), rows),
    )


def differences_across(group: Group) -> Figure | None:
    """What crossing modalities and the K/V transfer change, by target."""
    rows = []
    for run in group.runs:
        reached = {(item.target, item.among): item.accuracy for item in run.crossings}
        for task in group.tasks:
            for name, (first, second) in _DIFFERENCES.items():
                pair = (reached.get((task.name, first)), reached.get((task.name, second)))
                if None not in pair:
                    entry = {"seed": run.run.seed, "id": task.id, "task": task.name}
                    entry |= {"modality": task.modality, "difference of": name}
                    rows.append(entry | {"difference": pair[0] - pair[1]})
    if not rows:
        return None
    means = mean_by(
        rows, key=lambda row: (row["difference of"], row["task"]), value=lambda row: row["difference"]
    )
    drawn = [
        {"task": group.labels[task], "series": name} | spread(mean) for (name, task), mean in means.items()
    ]
    table = []
    for name in _DIFFERENCES:
        for modality in ("all", *dict.fromkeys(task.modality for task in group.tasks)):
            found = [
                mean.value
                for (of, task), mean in means.items()
                if of == name and modality in ("all", group.modalities[task])
            ]
            if found:
                test = paired(found)
                mean = test.difference
                table.append(
                    {"difference of": name, "targets": modality, "count": mean.count}
                    | {"mean": f"{mean.value:+.4f}", "95 % interval": interval_text(mean)}
                    | {"p (paired t)": test.t, "p (permutation)": test.permutation}
                )
    columns = ("difference of", "targets", "count", "mean", "95 % interval")
    return Figure(
        id=f"{group.slug}-modality-differences",
        title="What crossing modalities and the K/V transfer change",
        text="Differences in test accuracy, by target. Right of the line, the other modality's backbone was "
        "better than one of the same modality, or the transfer helped. Tests and intervals are over targets.",
        chart=charts.dots(
            drawn,
            x="difference in test accuracy",
            series=[name for name in _DIFFERENCES if any(row["difference of"] == name for row in rows)],
            tasks=group.shown,
            zero_line=True,
            format="+.3f",
        ),
        table=Numbers((*columns, "p (paired t)", "p (permutation)"), table),
        data=Numbers((*ACROSS, "modality", "difference of", "difference"), rows),
    )
