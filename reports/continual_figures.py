"""The section of a report about SPG and the approaches compared with it, on one sequence of tasks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from reports import charts
from reports.continual_runs import METRICS, ContinualRun, Rate
from reports.figures import Fact, Figure, Numbers, Section
from reports.groups import interval_text
from reports.statistics import Mean, mean_by, paired, spread
from utils.metrics import mean_and_error
from utils.tables import plus_minus

ALONE = "one"  # the approach that trains a network per task, the reference of forward transfer


def continual_section(runs: Sequence[ContinualRun], *, sequence: str, slug: str) -> Section:
    """The figures of all runs on a sequence; runs of one group are repetitions with other seeds."""
    names = _names(runs)
    built = [
        metrics(runs, names, slug=slug),
        learned(runs, names, slug=slug),
        differences(runs, names, slug=slug),
        *by_task(runs, names, slug=slug),
        *matrices(runs, names, slug=slug),
        importance(runs, names, slug=slug),
        rates(runs, names, slug=slug),
        cost(runs, names, slug=slug),
        stored(runs, names, slug=slug),
        arguments(runs, names, slug=slug),
    ]
    averages = mean_by(
        runs,
        key=lambda run: names[run.run.name],
        value=lambda run: run.metrics.get("average_accuracy"),
    )
    return Section(
        id=slug,
        title=f"Sequence {sequence}",
        text="One network learns the tasks in turn. Intervals are 95 % (Student t) over seeds, if "
        "there are several; the charts cut long ones.",
        facts=[
            Fact(f"Average accuracy: {name}", f"{mean.value:.3f}", _note(mean))
            for name, mean in averages.items()
        ],
        figures=[figure for figure in built if figure is not None],
    )


def _names(runs: Sequence[ContinualRun]) -> dict[str, str]:
    """Run → what the legends call its group: the approach, or the whole name if that is ambiguous."""
    groups: dict[str, set[str]] = {}
    for run in runs:
        groups.setdefault(run.approach, set()).add(run.run.group)
    return {
        run.run.name: run.approach if run.approach and len(groups[run.approach]) == 1 else run.run.group
        for run in runs
    }


def _note(mean: Mean) -> str:
    return "1 seed" if mean.low is None else f"{mean.count} seeds: {mean.low:.3f} to {mean.high:.3f}"


def _plain(values: Sequence[float]) -> str:
    return plus_minus(*mean_and_error(values))


def _order(names: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(names.values()))


def metrics(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """All metrics of all approaches."""
    rows = [
        {"approach": names[run.run.name], "seed": run.run.seed, "metric": title, "value": run.metrics[name]}
        for run in runs
        for name, title in METRICS.items()
        if run.metrics.get(name) is not None
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["metric"], row["approach"]), value=lambda row: row["value"])
    order = _order(names)
    drawn = [
        {"task": metric, "series": approach} | spread(mean) for (metric, approach), mean in means.items()
    ]
    table = []
    for approach in order:
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["approach"] == approach:
                values.setdefault(row["metric"], []).append(row["value"])
        if values:
            table.append({"approach": approach} | {metric: _plain(found) for metric, found in values.items()})
    return Figure(
        id=f"{slug}-metrics",
        title="Approaches side by side",
        text="Higher is better, except for forgetting. The table shows mean ± standard error over seeds.",
        chart=charts.dots(drawn, x="value", series=order, tasks=[*METRICS.values()], zero_line=True),
        table=Numbers(("approach", *METRICS.values()), table),
        data=Numbers(("approach", "seed", "metric", "value"), rows),
    )


def differences(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """Accuracy at the end, task by task, minus that of one approach, with paired tests over tasks."""
    order = _order(names)
    first = "spg" if "spg" in order else order[0]
    ends = mean_by(
        (
            (names[run.run.name], f"{number} {task}", accuracy)
            for run in runs
            if run.matrix
            for number, (task, accuracy) in enumerate(zip(run.tasks, run.matrix[-1], strict=False), 1)
        ),
        key=lambda item: item[:2],
        value=lambda item: item[2],
    )
    rows = [
        {
            **{"approach": approach, "task": task, "accuracy": mean.value},
            **{"reference": ends[first, task].value, "difference": mean.value - ends[first, task].value},
        }
        for (approach, task), mean in ends.items()
        if approach != first and (first, task) in ends
    ]
    if not rows:
        return None
    others = [name for name in order if any(row["approach"] == name for row in rows)]
    drawn = [
        {"task": row["task"], "series": row["approach"], "mean": row["difference"], "low": None, "high": None}
        | {"seeds": ends[row["approach"], row["task"]].count}
        for row in rows
    ]
    table = []
    for name in others:
        test = paired([row["difference"] for row in rows if row["approach"] == name])
        mean = test.difference
        table.append(
            {"approach": name, "tasks": mean.count, "mean difference": f"{mean.value:+.4f}"}
            | {"95 % interval": interval_text(mean)}
            | {"p (paired t)": test.t, "p (permutation)": test.permutation}
        )
    columns = ("approach", "tasks", "mean difference", "95 % interval", "p (paired t)", "p (permutation)")
    return Figure(
        id=f"{slug}-differences",
        title=f"Differences from {first}",
        text=f"Test accuracy after the last task minus that of {first}, task by task; each value is a mean "
        "over seeds. Tests and intervals are over tasks.",
        chart=charts.dots(
            drawn,
            x="difference in test accuracy",
            series=others,
            tasks=list(dict.fromkeys(row["task"] for row in rows)),
            zero_line=True,
            format="+.3f",
        ),
        table=Numbers(columns, table),
        data=Numbers(("approach", "task", "accuracy", "reference", "difference"), rows),
    )


def _cells(runs: Sequence[ContinualRun], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """All entries R[i][j]."""
    return [
        {
            **{"approach": names[run.run.name], "seed": run.run.seed, "after": after, "task": task},
            "accuracy": value,
        }
        for run in runs
        if len(run.matrix) == len(run.tasks)
        for after, row in enumerate(run.matrix, 1)
        for task, value in enumerate(row, 1)
    ]


def learned(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """Mean accuracy on all tasks so far, after each task."""
    cells = _cells(runs, names)
    if not cells:
        return None
    by_seed = mean_by(
        cells, key=lambda row: (row["approach"], row["seed"], row["after"]), value=lambda row: row["accuracy"]
    )
    rows = [
        {"approach": approach, "seed": seed, "after task": after, "accuracy": mean.value}
        for (approach, seed, after), mean in by_seed.items()
    ]
    means = mean_by(
        rows, key=lambda row: (row["approach"], row["after task"]), value=lambda row: row["accuracy"]
    )
    drawn = [{"series": approach, "x": after} | spread(mean) for (approach, after), mean in means.items()]
    order = [name for name in _order(names) if any(row["approach"] == name for row in rows)]
    table = [
        {"after task": after} | {name: means[name, after].value for name in order if (name, after) in means}
        for after in sorted({row["after task"] for row in rows})
    ]
    return Figure(
        id=f"{slug}-learned",
        title="Accuracy on the tasks so far",
        text="Mean test accuracy on all tasks learned so far, after each task.",
        chart=charts.lines(
            drawn, x="tasks learned", y="mean accuracy", series=order, marked=True, x_format="d"
        ),
        table=Numbers(("after task", *order), table),
        data=Numbers(("approach", "seed", "after task", "accuracy"), rows),
    )


def by_task(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> list[Figure]:
    """What was lost of each task since its best, and what the earlier tasks gave when it was learned."""
    alone = _alone(runs)
    rows = []
    for run in runs:
        if len(run.matrix) != len(run.tasks) or not run.matrix:
            continue
        last = run.matrix[-1]
        for task, name in enumerate(run.tasks):
            if task >= len(last):
                continue
            best = max(row[task] for row in run.matrix[task:])
            reference = alone.get((run.run.seed, task))
            transfer = None if reference is None else run.matrix[task][task] - reference
            rows.append(
                {
                    **{"approach": names[run.run.name], "seed": run.run.seed, "task": f"{task + 1} {name}"},
                    **{"forgetting": best - last[task]},
                    # The reference has none from itself.
                    "forward transfer": None if run.approach == ALONE else transfer,
                }
            )
    return [
        figure
        for name, text in _BY_TASK.items()
        for figure in [_one_by_task(name, text, rows=rows, order=_order(names), slug=slug)]
        if figure is not None
    ]


_BY_TASK = {
    "forgetting": "The best accuracy on a task minus the accuracy at the end.",
    "forward transfer": "The accuracy on a task when it was learned minus that of a network trained on it "
    "alone (approach one, same seed). Right of the line, the earlier tasks helped.",
}


def _one_by_task(
    value: str, text: str, *, rows: Sequence[Mapping[str, Any]], order: Sequence[str], slug: str
) -> Figure | None:
    means = mean_by(rows, key=lambda row: (row["task"], row["approach"]), value=lambda row: row[value])
    if not means:
        return None
    shown = [name for name in order if any(key[1] == name for key in means)]
    tasks = list(dict.fromkeys(task for task, _ in means))
    drawn = [{"task": task, "series": approach} | spread(mean) for (task, approach), mean in means.items()]
    table = [
        {"task": task} | {name: means[task, name].value for name in shown if (task, name) in means}
        for task in tasks
    ]
    return Figure(
        id=f"{slug}-{value.replace(' ', '-')}",
        title=f"{value.capitalize()} by task",
        text=text,
        chart=charts.dots(drawn, x=value, series=shown, tasks=tasks, zero_line=True, format="+.3f"),
        table=Numbers(("task", *shown), table),
        data=Numbers(("approach", "seed", "task", value), rows),
    )


def _alone(runs: Sequence[ContinualRun]) -> dict[tuple[int | None, int], float]:
    """(Seed, index of the task) → accuracy of a network trained on that task alone."""
    return {
        (run.run.seed, task): row[task]
        for run in runs
        if run.approach == ALONE
        for task, row in enumerate(run.matrix)
        if len(row) > task
    }


def matrices(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> list[Figure]:
    """The accuracy matrices of all approaches, one at a time."""
    rows = _cells(runs, names)
    if not rows:
        return []
    means = mean_by(
        rows, key=lambda row: (row["approach"], row["after"], row["task"]), value=lambda row: row["accuracy"]
    )
    values = [mean.value for mean in means.values()]
    middle = (min(values) + max(values)) / 2
    drawn = [
        {
            **{"choice": approach, "row": f"after {after}", "column": str(task), "name": f"task {task}"},
            **{"value": mean.value, "shown": mean.value, "bright": mean.value >= middle},
        }
        for (approach, after, task), mean in means.items()
    ]
    order = [name for name in _order(names) if any(row["approach"] == name for row in rows)]
    last = max(row["after"] for row in rows)
    tasks = [str(task) for task in range(1, last + 1)]
    table = [
        {"approach": approach, "after task": after}
        | {
            task: means[approach, after, int(task)].value
            for task in tasks
            if (approach, after, int(task)) in means
        }
        for approach in order
        for after in range(1, last + 1)
    ]
    return [
        Figure(
            id=f"{slug}-matrix",
            title="Accuracy matrix",
            text="Test accuracy on every task (columns) after each task learned (rows), mean over seeds.",
            chart=charts.heat_map(
                drawn,
                columns=tasks,
                tasks=[f"after {task}" for task in tasks],
                x="accuracy on task",
                y="",
                value="test accuracy",
                choices=order,
                choice="Approach",
            ),
            table=Numbers(("approach", "after task", *tasks), table),
            data=Numbers(("approach", "seed", "after", "task", "accuracy"), rows),
        )
    ]


def importance(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """Mean importance of each layer's weights after each task."""
    rows = [
        {
            **{"approach": names[run.run.name], "seed": run.run.seed, "after": item.after},
            **{"layer": item.layer, "importance": item.mean},
        }
        for run in runs
        for item in run.importance
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["layer"], row["after"]), value=lambda row: row["importance"])
    drawn = [
        {"series": layer, "x": int(after.split(" ", 1)[0])} | spread(mean)
        for (layer, after), mean in means.items()
    ]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    table = [
        {"after": after} | {layer: means[layer, after].value for layer in layers if (layer, after) in means}
        for after in dict.fromkeys(row["after"] for row in rows)
    ]
    return Figure(
        id=f"{slug}-importance",
        title="Importance by layer",
        text="Mean importance Γ of each layer's weights after each task. The gradients of later tasks are "
        "multiplied by 1 − Γ.",
        chart=charts.lines(
            drawn, x="tasks learned", y="mean importance", series=layers, marked=True, x_format="d"
        ),
        table=Numbers(("after", *layers), table),
        data=Numbers(("approach", "seed", "after", "layer", "importance"), rows),
    )


def rates(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """The learning rate of each epoch, of each approach's first run."""
    shown: dict[str, ContinualRun] = {}
    for run in runs:
        if run.rates:
            shown.setdefault(names[run.run.name], run)
    if not shown:
        return None
    rows = [
        {"approach": name, "seed": run.run.seed, "task": rate.task, "epoch": rate.epoch, "lr": rate.lr}
        for name, run in shown.items()
        for rate in run.rates
    ]
    drawn = [
        {"facet": name, "series": "learning rate", "x": rate.epoch, "mean": rate.lr}
        for name, run in shown.items()
        for rate in _steps(run.rates)
    ]
    ends: dict[tuple[str, str], dict] = {}
    for row in rows:
        found = ends.setdefault((row["approach"], row["task"]), {"epochs": 0, "first lr": row["lr"]})
        found.update({"epochs": found["epochs"] + 1, "last lr": row["lr"]})
    table = [{"approach": approach, "task": task} | found for (approach, task), found in ends.items()]
    return Figure(
        id=f"{slug}-rates",
        title="Learning-rate steps",
        text="The learning rate of every epoch, counted over all tasks, in the first seed of each approach.",
        chart=charts.lines(
            drawn,
            x="epoch",
            y="learning rate",
            series=("learning rate",),
            facets=list(shown),
            steps=True,
            x_format="d",
        ),
        table=Numbers(("approach", "task", "epochs", "first lr", "last lr"), table),
        data=Numbers(("approach", "seed", "task", "epoch", "lr"), rows),
    )


def _steps(rates: Sequence[Rate]) -> list[Rate]:
    """The first epoch, those that change the rate, and the last."""
    changes = [rate for before, rate in pairwise(rates) if rate.lr != before.lr]
    return [rates[0], *changes, rates[-1]]


def cost(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """Seconds and epochs of learning each task."""
    rows = [
        {
            **{"approach": names[run.run.name], "seed": run.run.seed, "task": task},
            **{"epochs": run.epochs.get(task), "seconds": seconds},
        }
        for run in runs
        for task, seconds in run.seconds.items()
    ]
    if not rows:
        return None
    by_run = {
        (name, seed): sum(row["seconds"] for row in rows if (row["approach"], row["seed"]) == (name, seed))
        for name, seed in dict.fromkeys((row["approach"], row["seed"]) for row in rows)
    }
    means = mean_by(by_run.items(), key=lambda item: item[0][0], value=lambda item: item[1])
    unit, scale = charts.time_unit(mean.value for mean in means.values())
    drawn = [{"name": name, "series": unit, "value": mean.value / scale} for name, mean in means.items()]
    return Figure(
        id=f"{slug}-cost",
        title="Time",
        text="Learning all tasks, without evaluation, mean over seeds.",
        chart=charts.bars(drawn, x=unit, names=list(means), series=(unit,), format=".3~g"),
        table=Numbers(("approach", "seed", "task", "epochs", "seconds"), rows),
    )


def stored(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """Bytes stored after the last task."""
    rows = [
        {"approach": names[run.run.name], "seed": run.run.seed, "bytes": run.bytes}
        for run in runs
        if run.bytes is not None
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: row["approach"], value=lambda row: row["bytes"])
    unit, scale = charts.byte_unit(mean.value for mean in means.values())
    drawn = [{"name": name, "series": unit, "value": mean.value / scale} for name, mean in means.items()]
    return Figure(
        id=f"{slug}-bytes",
        title="Bytes",
        text="Stored after the last task: the network with its heads, and what the approach keeps besides it "
        "(importance, a buffer of samples, owners of weights).",
        chart=charts.bars(drawn, x=unit, names=list(means), series=(unit,), format=".3~g"),
        table=Numbers(("approach", "seed", "bytes"), rows),
    )


def arguments(runs: Sequence[ContinualRun], names: Mapping[str, str], *, slug: str) -> Figure | None:
    """The recorded arguments whose values differ between approaches."""
    recorded: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for name, value in run.arguments.items():
            if name != "appr":
                recorded.setdefault(name, {}).setdefault(names[run.run.name], set()).add(str(value))
    order = [name for name in _order(names) if any(name in found for found in recorded.values())]
    if len(order) < 2:
        return None
    rows = []
    for argument, found in sorted(recorded.items()):
        values = {name: " ".join(sorted(found.get(name, ()))) or "-" for name in order}
        if len(set(values.values())) > 1:
            rows.append({"argument": argument} | values)
    return Figure(
        id=f"{slug}-arguments",
        title="Arguments that differ",
        text="Recorded with the metrics; several values belong to different seeds."
        if rows
        else "None of the recorded arguments differ.",
        table=Numbers(("argument", *order), rows),
    )
