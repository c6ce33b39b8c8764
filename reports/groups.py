"""Runs that differ in their seed alone, and what the figures about them share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from data.tables import Task
from reports import charts
from reports.figures import Figure, Numbers
from reports.fleet_runs import (
    COPY,
    OWN,
    OWN_AT,
    PROBE,
    PRUNED,
    REUSES,
    SCRATCH,
    SCRATCH_AT,
    FleetRun,
    Reached,
)
from reports.statistics import Mean, mean_by, spread

LABELS = {
    SCRATCH: "alone, PackNet's layers",
    OWN: "alone, CPG's layers",
    PRUNED: "alone, pruned",
    SCRATCH_AT: "alone at its last width, PackNet's layers",
    OWN_AT: "alone at its last width, CPG's layers",
    COPY: "copy of its backbone, fine-tuned",
    PROBE: "linear probe of its backbone",
}
ACROSS = ("seed", "id", "task")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: their common name.
        slug: begins the ids of the figures.
        tasks: the tasks to show, in the order of the table.
        serves: whether its networks are the backbones of another group's targets.
    """

    name: str
    slug: str
    runs: Sequence[FleetRun]
    tasks: Sequence[Task]
    serves: bool = False

    @cached_property
    def labels(self) -> dict[str, str]:
        """Task → its id and name."""
        return {task.name: f"{task.id} {task.name}" for task in self.tasks}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Task → its id."""
        return {task.name: task.id for task in self.tasks}

    @cached_property
    def modalities(self) -> dict[str, str]:
        """Task → its modality."""
        return {task.name: task.modality for task in self.tasks}

    @property
    def shown(self) -> list[str]:
        """The labels of all tasks."""
        return list(self.labels.values())

    def means(self, values: Mapping[tuple[int, str], float]) -> dict[str, float]:
        """Task → mean over seeds.

        Args:
            values: (index of the run, task) → value.
        """
        found = mean_by(values.items(), key=lambda item: item[0][1], value=lambda item: item[1])
        return {task: mean.value for task, mean in found.items()}


def label_of(item: Reached) -> str:
    """The name of a network in legends."""
    return LABELS.get(item.network) or f"on its backbone, width {item.width:g}"


def network_names(rows: Iterable[Mapping]) -> list[str]:
    """The networks that `gain_rows` compares, targets on their backbones first."""
    return sorted({row["network"] for row in rows}, key=lambda name: (not name.startswith("on "), name))


def wide_table(
    group: Group, means: Mapping[tuple[str, str], Mean], columns: Sequence[str], *, sign: str = ""
) -> Numbers:
    """One row per task, one column per network, and a row of means over tasks."""
    rows = []
    for task in group.tasks:
        cells = {name: means[task.name, name] for name in columns if (task.name, name) in means}
        rows.append(
            {"id": task.id, "task": task.name}
            | {name: _interval(mean, sign=sign) for name, mean in cells.items()}
        )
    by_network = {
        name: [means[task.name, name].value for task in group.tasks if (task.name, name) in means]
        for name in columns
    }
    over_tasks = {name: Mean.of(values) for name, values in by_network.items() if values}
    last = {name: _interval(mean, sign=sign) for name, mean in over_tasks.items()}
    return Numbers(("id", "task", *columns), [*rows, {"id": "all", "task": "mean over tasks"} | last])


def _interval(mean: Mean, *, sign: str = "") -> str:
    shown = f"{mean.value:{sign}.3f}"
    if mean.low is None:
        return shown
    return f"{shown} [{mean.low:{sign}.3f}, {mean.high:{sign}.3f}]"


def gain_rows(group: Group, *, only: int | None = None) -> Iterator[dict]:
    """The gain of every network that reuses a backbone and has a network alone at its width.

    Args:
        only: index of a run; None: all runs.
    """
    for run in group.runs if only is None else (group.runs[only],):
        for item in run.reached:
            if item.network not in REUSES:
                continue
            alone = run.accuracy(item.task, OWN if item.width == 1.0 else OWN_AT)
            last = max(found.width for found in run.reached if found.task == item.task)
            if alone is None or item.width not in (1.0, last):
                continue
            yield {
                **{"seed": run.run.seed, "id": group.ids[item.task], "task": item.task},
                **{"network": label_of(item), "backbone": item.backbone},
                **{"accuracy": item.accuracy, "alone": alone, "gain": item.accuracy - alone},
            }


def by_samples(groups: Sequence[Group], *, slug: str) -> Figure | None:
    """Gain over training alone by the target's training samples per class; None if all have as many."""
    rows = [
        {"run": group.name, "per class": _count(run.per_class.get(row["task"]))} | row
        for group in groups
        for index, run in enumerate(group.runs)
        for row in gain_rows(group, only=index)
    ]
    if len({row["per class"] for row in rows}) < 2:
        return None
    by_task = mean_by(
        rows, key=lambda row: (row["per class"], row["network"], row["task"]), value=lambda row: row["gain"]
    )
    means = mean_by(by_task.items(), key=lambda item: item[0][:2], value=lambda item: item[1].value)
    order = sorted({row["per class"] for row in rows}, key=lambda name: (not name.isdigit(), name.zfill(9)))
    drawn = [{"task": count, "series": network} | spread(mean) for (count, network), mean in means.items()]
    table = [
        {"per class": count, "network": network, "tasks": mean.count}
        | {"mean gain": f"{mean.value:+.4f}", "95 % interval": interval_text(mean)}
        for (count, network), mean in sorted(means.items(), key=lambda item: order.index(item[0][0]))
    ]
    return Figure(
        id=f"{slug}-samples",
        title="Gain by the number of training images",
        text="Gain over training alone at the same width by the target's training samples per class; mean "
        "and 95 % interval over tasks.",
        chart=charts.dots(
            drawn,
            x="gain in test accuracy",
            series=network_names(rows),
            tasks=order,
            zero_line=True,
            format="+.3f",
        ),
        table=Numbers(("per class", "network", "tasks", "mean gain", "95 % interval"), table),
        data=Numbers(("run", "per class", *ACROSS, "network", "backbone", "gain"), rows),
    )


def _count(per_class: int | None) -> str:
    return "all" if per_class is None else str(per_class)


def interval_text(mean: Mean) -> str:
    """An interval around a difference, as tables have it."""
    return "-" if mean.low is None else f"{mean.low:+.4f} to {mean.high:+.4f}"
