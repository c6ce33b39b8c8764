"""The section of a report about Pick-a-back: one run, or the same run with several seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from methods.rules import score_of
from reports import charts
from reports.figures import Fact, Figure, Numbers, Section
from reports.fleet_runs import (
    COPY,
    OWN,
    OWN_AT,
    PROBE,
    PRUNED,
    REUSES,
    SCRATCH,
    SCRATCH_AT,
    TARGET,
    Reached,
)
from reports.groups import ACROSS, LABELS, Group, by_samples, gain_rows, label_of, network_names, wide_table
from reports.modalities import crossings, differences_across
from reports.statistics import Mean, mean_by, spread

_CURVES = {SCRATCH: LABELS[SCRATCH], OWN: LABELS[OWN], TARGET: "on its backbone"}
_OWNERS = ("the backbone's, picked", "the backbone's, not picked", "the target's", charts.FREE)
_PREFIX = "features."  # of the layers' names
# Points of a curve, at most.
_POINTS = 100


def fleet_section(group: Group, *, table: str) -> Section:
    """The figures of one group of runs."""
    built = (
        accuracies(group),
        gains(group),
        by_samples([group], slug=group.slug),
        crossings(group),
        differences_across(group),
        pruning(group),
        scores(group),
        transfers(group),
        regrets(group),
        ownership(group),
        picked(group),
        sequence(group),
        sequence_owners(group),
        curves(group),
        seconds(group),
        stored(group),
    )
    seeds = ", ".join(str(run.run.seed) for run in group.runs if run.run.seed is not None)
    return Section(
        id=group.slug,
        title=group.name,
        text=f"Task table {table}, {len(group.tasks)} tasks"
        + (f", seed{'s' * (len(group.runs) > 1)} {seeds}." if seeds else ".")
        + " Accuracies are on the test set. Intervals are 95 % (Student t) over seeds, if there are several; "
        "the charts cut long ones.",
        facts=facts(group),
        figures=[figure for figure in built if figure is not None],
    )


# Accuracy


def accuracies(group: Group) -> Figure | None:
    """Accuracy by task of every kind of network."""
    rows = [
        {
            **{"seed": run.run.seed, "id": group.ids[item.task], "task": item.task},
            **{"network": label_of(item), "backbone": item.backbone, "accuracy": item.accuracy},
        }
        for run in group.runs
        for item in run.reached
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["task"], row["network"]), value=lambda row: row["accuracy"])
    order = _network_order(item for run in group.runs for item in run.reached)
    drawn = [
        {"task": group.labels[task], "series": network} | spread(mean)
        for (task, network), mean in means.items()
    ]
    return Figure(
        id=f"{group.slug}-accuracy",
        title="Accuracy by task",
        text="Test accuracy of every network trained for a task: alone, pruned, on its backbone at each "
        "width, and the controls.",
        chart=charts.dots(drawn, x="test accuracy", series=order, tasks=group.shown),
        table=wide_table(group, means, order),
        data=Numbers(("seed", "id", "task", "network", "backbone", "accuracy"), rows),
    )


def _network_order(items: Iterable[Reached]) -> list[str]:
    """The names of networks in the order of the stages."""
    order = [SCRATCH, OWN, PRUNED, TARGET, SCRATCH_AT, OWN_AT, COPY, PROBE]
    known = {
        (order.index(item.network), item.width if item.network == TARGET else 0.0): label_of(item)
        for item in items
    }
    return [known[key] for key in sorted(known)]


def gains(group: Group) -> Figure | None:
    """What a backbone adds to the same network alone, at the same width."""
    rows = list(gain_rows(group))
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["task"], row["network"]), value=lambda row: row["gain"])
    order = network_names(rows)
    drawn = [
        {"task": group.labels[task], "series": network} | spread(mean)
        for (task, network), mean in means.items()
    ]
    return Figure(
        id=f"{group.slug}-gain",
        title="Gain over training alone",
        text="Test accuracy minus that of CPG's network trained alone at the same width. Right of the line, "
        "reusing the backbone helped.",
        chart=charts.dots(
            drawn, x="gain in test accuracy", series=order, tasks=group.shown, zero_line=True, format="+.3f"
        ),
        table=wide_table(group, means, order, sign="+"),
        data=Numbers((*ACROSS, "network", "backbone", "accuracy", "alone", "gain"), rows),
    )


def facts(group: Group) -> list[Fact]:
    """The mean gains over all tasks, and how much is finished."""
    found = []
    rows = list(gain_rows(group))
    for network in network_names(rows):
        chosen = [row for row in rows if row["network"] == network]
        by_task = mean_by(chosen, key=lambda row: row["task"], value=lambda row: row["gain"])
        mean = Mean.of([mean.value for mean in by_task.values()])
        note = f"{len(by_task)} tasks"
        if mean.low is not None:
            note = f"95 % over {len(by_task)} tasks: {mean.low:+.3f} to {mean.high:+.3f}"
        found.append(Fact(f"Gain over training alone: {network}", f"{mean.value:+.3f}", note))
    trained = {item.task for run in group.runs for item in run.reached if item.network == TARGET}
    if trained or not (group.serves or any(run.in_sequence for run in group.runs)):
        found.append(Fact("Targets trained", f"{len(trained)} of {len(group.tasks)}"))
    return found


# Pruning


def pruning(group: Group) -> Figure | None:
    """Accuracy by sparsity, with the baseline and the chosen ratio."""
    rows = [
        {
            **{"seed": run.run.seed, "id": group.ids[item.task], "task": item.task, "sparsity": sparsity},
            **{"accuracy": accuracy, "baseline": item.baseline, "chosen": sparsity == item.chosen},
        }
        for run in group.runs
        for item in run.pruning
        for sparsity, accuracy in item.accuracies.items()
    ]
    if len({row["sparsity"] for row in rows}) < 2:
        return None  # pruned nowhere: no curve
    means = mean_by(rows, key=lambda row: (row["task"], row["sparsity"]), value=lambda row: row["accuracy"])
    baselines = mean_by(rows, key=lambda row: row["task"], value=lambda row: row["baseline"])
    series = "accuracy"
    drawn = [
        {"facet": group.labels[task], "series": series, "x": sparsity} | spread(mean)
        for (task, sparsity), mean in means.items()
    ]
    drawn += [{"facet": group.labels[task], "rule": mean.value} for task, mean in baselines.items()]
    drawn += [
        {
            "facet": group.labels[row["task"]],
            "series": "chosen",
            "x": row["sparsity"],
            "point": row["accuracy"],
        }
        for row in rows
        if row["chosen"]
    ]
    facets = [label for task, label in group.labels.items() if any(row["task"] == task for row in rows)]
    summary = [
        {
            **{"seed": run.run.seed, "id": group.ids[item.task], "task": item.task},
            **{"baseline": item.baseline, "chosen ratio": item.chosen},
            "accuracy there": item.accuracies.get(item.chosen) if item.chosen is not None else None,
        }
        for run in group.runs
        for item in run.pruning
    ]
    return Figure(
        id=f"{group.slug}-pruning",
        title="Pruning",
        text="Accuracy on the samples that decide, by sparsity. The dashed line is the scratch baseline that "
        "a pruned network has to reach; a ring marks the chosen ratio of each seed.",
        chart=charts.lines(
            drawn,
            x="sparsity",
            y="accuracy",
            series=(series, "chosen"),
            facets=facets,
            marked=True,
            x_format=".1f",
        ),
        table=Numbers((*ACROSS, "baseline", "chosen ratio", "accuracy there"), summary),
        data=Numbers((*ACROSS, "sparsity", "accuracy", "baseline", "chosen"), rows),
    )


# Choice of backbones


def scores(group: Group) -> Figure | None:
    """What each rule gives to every candidate, and what it picked."""
    rows = [
        {
            **{"seed": run.run.seed, "rule": score.rule, "target_id": group.ids[score.target]},
            **{"target": score.target, "candidate": score.candidate, "score": score.value},
        }
        for run in group.runs
        for score in run.scores
    ]
    if not rows:
        return None
    means = mean_by(
        rows, key=lambda row: (row["rule"], row["target"], row["candidate"]), value=lambda row: row["score"]
    )
    ranges = {
        rule: (min(values), max(values))
        for rule, found in groupby(sorted(means, key=lambda key: key[0]), key=lambda key: key[0])
        for values in [[means[key].value for key in found]]
    }
    drawn = []
    for (rule, target, candidate), mean in means.items():
        low, high = ranges[rule]
        relative = (mean.value - low) / (high - low) if high > low else 0.5
        drawn.append(
            {
                **{"choice": rule, "row": group.labels[target], "column": _short(group, candidate)},
                **{"name": candidate, "value": relative, "shown": mean.value, "bright": relative >= 0.5},
                "picks": _picks(group, rule, target, candidate),
            }
        )
    rules = sorted({row["choice"] for row in drawn}, key=lambda rule: (rule != "ddv_euc", rule))
    picks = [
        {
            **{"rule": rule, "target": group.labels[target]},
            "picked": ", ".join(
                f"{name} ({count})" if len(group.runs) > 1 else name for name, count in found
            ),
        }
        for (rule, target), found in _picks_by_target(group).items()
    ]
    return Figure(
        id=f"{group.slug}-scores",
        title="Scores of the candidates",
        text="What each rule gives to every candidate, scaled from the rule's lowest to its highest score; "
        "rings mark the backbones that the rule picked. ddv_cos and ddv_euc are distances: the rule "
        "farthest picks the largest ddv_euc, nearest the smallest.",
        chart=charts.heat_map(
            drawn,
            columns=[_short(group, task.name) for task in group.tasks],
            tasks=group.shown,
            x="candidate",
            y="target",
            value="score, scaled",
            choices=rules,
            choice="Score",
        ),
        table=Numbers(("rule", "target", "picked"), picks),
        data=Numbers(("seed", "rule", "target_id", "target", "candidate", "score"), rows),
    )


def _short(group: Group, task: str) -> str:
    """A column's heading: the task's id."""
    return str(group.ids.get(task, task))


def _picks(group: Group, score: str, target: str, candidate: str) -> int:
    """In how many seeds a rule that goes by this score picked the candidate."""
    wanted = (target, candidate)
    return sum(
        (pick.target, pick.backbone) == wanted and score_of(pick.rule) == score
        for run in group.runs
        for pick in run.picks
    )


def _picks_by_target(group: Group) -> dict[tuple[str, str], list[tuple[str, int]]]:
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for run in group.runs:
        for pick in run.picks:
            found = counts.setdefault((pick.rule, pick.target), {})
            found[pick.backbone] = found.get(pick.backbone, 0) + 1
    return {key: sorted(found.items(), key=lambda item: -item[1]) for key, found in counts.items()}


def transfers(group: Group) -> Figure | None:
    """What each target reached on every backbone."""
    rows = [
        {
            **{"seed": run.run.seed, "target": pair.target, "backbone": pair.backbone},
            **{"how": _how(pair.how, pair.width), "accuracy": pair.accuracy},
            "gain": None if alone is None else pair.accuracy - alone,
        }
        for run in group.runs
        for pair in run.pairs
        for alone in [run.accuracy(pair.target, OWN if pair.width == 1.0 else OWN_AT)]
    ]
    hows = sorted({row["how"] for row in rows}, key=lambda how: (how in (REUSES[COPY], REUSES[PROBE]), how))
    # With one backbone per target, there is no matrix to show.
    several = [how for how in hows if _backbones_per_target(rows, how) > 1]
    if not several:
        return None
    means = mean_by(
        [row for row in rows if row["how"] in several],
        key=lambda row: (row["how"], row["target"], row["backbone"]),
        value=lambda row: row["gain"],
    )
    if not means:
        return None
    best: dict[tuple[str, str], float] = {}
    for (how, target, _), mean in means.items():
        best[how, target] = max(best.get((how, target), mean.value), mean.value)
    drawn = [
        {
            **{
                "choice": how,
                "row": group.labels[target],
                "column": _short(group, backbone),
                "name": backbone,
            },
            **{"value": mean.value, "shown": mean.value, "best": mean.value == best[how, target]},
            "picks": sum(run.choice.get(target) == backbone for run in group.runs),
        }
        for (how, target, backbone), mean in means.items()
    ]
    summary = [
        {"how": how, "target": group.labels[target]}
        | {
            "backbones": len(found),
            "mean gain": sum(found) / len(found),
            "best gain": max(found),
            "worst gain": min(found),
        }
        for (how, target), keys in groupby(means, key=lambda key: key[:2])
        for found in [[means[key].value for key in keys]]
    ]
    return Figure(
        id=f"{group.slug}-transfer",
        title="Every target on every backbone",
        text="Gain over the same network trained alone at the same width. Rings mark the chosen backbones, "
        "diamonds the best of a row.",
        chart=charts.heat_map(
            drawn,
            columns=[_short(group, task.name) for task in group.tasks],
            tasks=group.shown,
            x="backbone",
            y="target",
            value="gain in test accuracy",
            diverging=True,
            choices=several,
            choice="Reuse",
            format="+.3f",
        ),
        table=Numbers(("how", "target", "backbones", "mean gain", "best gain", "worst gain"), summary),
        data=Numbers(("seed", "target", "backbone", "how", "accuracy", "gain"), rows),
    )


def _how(how: str, width: float) -> str:
    return f"{REUSES[how]}, width {width:g}" if how == TARGET else REUSES[how]


def _backbones_per_target(rows: Sequence[Mapping], how: str) -> int:
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["how"] == how:
            found.setdefault(row["target"], set()).add(row["backbone"])
    return max(map(len, found.values()), default=0)


def regrets(group: Group) -> Figure | None:
    """How much accuracy each rule's pick misses, where every backbone was trained."""
    rows = list(_regret_rows(group))
    if not rows:
        return None
    rules: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        rules.setdefault(row["rule"], {}).setdefault(row["target"], []).append(row["regret"])
    summary = []
    for rule, by_target in rules.items():
        mean = Mean.of([sum(values) / len(values) for values in by_target.values()])
        summary.append(
            {
                "rule": rule,
                "targets": mean.count,
                "mean regret": mean.value,
                "low": mean.low,
                "high": mean.high,
            }
        )
    summary.sort(key=lambda row: row["mean regret"])
    names = [row["rule"] for row in summary]
    drawn = [
        {
            **{"task": row["rule"], "series": "regret", "mean": row["mean regret"]},
            **{"low": row["low"], "high": row["high"], "seeds": row["targets"]},
        }
        for row in summary
    ]
    return Figure(
        id=f"{group.slug}-regret",
        title="Regret of a choice",
        text="Test accuracy on the best backbone minus that on the picked one, mean over targets with 95 % "
        "intervals. Left is better; random is the mean over all backbones.",
        chart=charts.dots(drawn, x="regret", series=("regret",), tasks=names, zero_line=True),
        table=Numbers(("rule", "targets", "mean regret", "low", "high"), summary),
        data=Numbers(("seed", "rule", "target", "picked", "accuracy", "best", "regret"), rows),
    )


def _regret_rows(group: Group) -> Iterator[dict]:
    """One row per rule and target: what the pick misses. Targets with fewer than two backbones have none."""
    for run in group.runs:
        reached: dict[str, dict[str, float]] = {}
        for pair in run.pairs:
            if pair.how == TARGET and pair.width == 1.0:
                reached.setdefault(pair.target, {})[pair.backbone] = pair.accuracy
        offers: dict[tuple[str, str], dict[str, float]] = {}
        for score in run.scores:
            offers.setdefault((score.rule, score.target), {})[score.candidate] = score.value
        for target, found in reached.items():
            if len(found) < 2:
                continue
            best = max(found.values())
            seed = {"seed": run.run.seed, "target": target, "best": best}
            mean = sum(found.values()) / len(found)
            yield seed | {"rule": "random", "picked": "", "accuracy": mean, "regret": best - mean}
            for (score, scored), values in offers.items():
                common = [name for name in values if name in found]
                if scored != target or len(common) < len(found):
                    continue
                picks = {score: max(common, key=values.__getitem__)}
                if score == "ddv_euc":
                    picks = {"farthest": picks[score], "nearest": min(common, key=values.__getitem__)}
                elif score == "ddv_cos":
                    continue  # no rule goes by it
                for rule, pick in picks.items():
                    regret = {"rule": rule, "picked": pick, "accuracy": found[pick]}
                    yield seed | regret | {"regret": best - found[pick]}


# Ownership


def ownership(group: Group) -> Figure | None:
    """Who owns which share of each layer of the targets' networks."""
    rows = []
    for run in group.runs:
        for item in run.ownership:
            if item.network != TARGET:
                continue
            for layer in item.layers:
                total = sum(layer.owned.values()) + layer.free
                target = layer.owned[item.newest]
                earlier = total - layer.free - target
                parts = (layer.picked, earlier - layer.picked, target, layer.free)
                rows += [
                    {
                        **{"seed": run.run.seed, "id": group.ids[item.newest], "task": item.newest},
                        **{
                            "layer": layer.layer,
                            "weights": total,
                            "owner": owner,
                            "share": part / max(total, 1),
                        },
                    }
                    for owner, part in zip(_OWNERS, parts, strict=True)
                ]
    if not rows:
        return None
    means = mean_by(
        rows, key=lambda row: (row["task"], row["layer"], row["owner"]), value=lambda row: row["share"]
    )
    names = _layer_labels(row["layer"] for row in rows)
    drawn = [
        {"facet": group.labels[task], "layer": names[layer], "series": owner, "value": mean.value}
        | {"order": _OWNERS.index(owner)}
        for (task, layer, owner), mean in means.items()
    ]
    facets = [label for task, label in group.labels.items() if any(row["task"] == task for row in rows)]
    table = [
        {"task": group.labels[task], "layer": layer}
        | {owner: f"{means[task, layer, owner].value:.1%}" for owner in _OWNERS}
        for task in group.labels
        for layer in names
        if (task, layer, _OWNERS[0]) in means
    ]
    return Figure(
        id=f"{group.slug}-ownership",
        title="Who owns which share of each layer",
        text="The weights of each target's network at its last width. A target sees the backbone's weights "
        "that it picks and its own.",
        chart=charts.stacked(
            drawn, series=_OWNERS, facets=facets, x="share of weights", layers=list(names.values())
        ),
        table=Numbers(("task", "layer", *_OWNERS), table),
        data=Numbers((*ACROSS, "layer", "weights", "owner", "share"), rows),
    )


def picked(group: Group) -> Figure | None:
    """Which of the backbone's weights a target picked, by layer."""
    rows = []
    for run in group.runs:
        for item in run.ownership:
            for layer in item.layers if item.network == TARGET else ():
                earlier = sum(layer.owned.values()) - layer.owned[item.newest]
                if earlier:
                    rows.append(
                        {
                            **{"seed": run.run.seed, "id": group.ids[item.newest], "task": item.newest},
                            **{"layer": layer.layer, "picked": layer.picked / earlier, "of": earlier},
                        }
                    )
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["task"], row["layer"]), value=lambda row: row["picked"])
    values = [mean.value for mean in means.values()]
    middle = (min(values) + max(values)) / 2
    names = _layer_labels(row["layer"] for row in rows)
    drawn = [
        {
            **{"row": names[layer], "column": _short(group, task), "name": task},
            **{"value": mean.value, "shown": mean.value, "bright": mean.value >= middle},
        }
        for (task, layer), mean in means.items()
    ]
    tasks = [task.name for task in group.tasks if any(key[0] == task.name for key in means)]
    table = [
        {"task": group.labels[task]}
        | {layer: means[task, layer].value for layer in names if (task, layer) in means}
        for task in tasks
    ]
    return Figure(
        id=f"{group.slug}-picked",
        title="Which weights a target picked",
        text="Share of the backbone's weights that the target's piggymasks pick, by layer.",
        chart=charts.heat_map(
            drawn,
            columns=[_short(group, task) for task in tasks],
            tasks=list(names.values()),
            x="target",
            y="layer",
            value="share picked",
            format=".1%",
        ),
        table=Numbers(("task", *names), table),
        data=Numbers((*ACROSS, "layer", "picked", "of"), rows),
    )


def _layer_labels(layers: Iterable[str]) -> dict[str, str]:
    """Layer → its name in charts; long ones lose the prefix that all of them have."""
    names = list(dict.fromkeys(layers))
    cut = len(_PREFIX) if max(map(len, names)) > 20 and all(name.startswith(_PREFIX) for name in names) else 0
    return {name: name[cut:] for name in names}


# All tasks in one network


def sequence(group: Group) -> Figure | None:
    """Accuracy of each task when it was learned and at the end."""
    rows = [
        {"seed": run.run.seed, "task": item.task, "network": name, "accuracy": value}
        for run in group.runs
        for item in run.in_sequence
        for name, value in (
            ("alone, PackNet's layers", item.scratch),
            ("when learned", item.learned),
            ("at the end", item.end),
        )
        if value is not None
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: (row["task"], row["network"]), value=lambda row: row["accuracy"])
    order = list(dict.fromkeys(row["network"] for row in rows))
    drawn = [
        {"task": group.labels.get(task, task), "series": network} | spread(mean)
        for (task, network), mean in means.items()
    ]
    return Figure(
        id=f"{group.slug}-sequence",
        title="All tasks in one network",
        text="Test accuracy of each task in the network that learned all of them in turn.",
        chart=charts.dots(drawn, x="test accuracy", series=order, tasks=group.shown),
        table=wide_table(group, means, order),
        data=Numbers(("seed", "task", "network", "accuracy"), rows),
    )


def sequence_owners(group: Group) -> Figure | None:
    """Who owns the one network after each task."""
    rows = [
        {
            **{"seed": run.run.seed, "after": f"{len(layer.owned)} {item.newest}", "layer": layer.layer},
            **{"owner": owner, "share": count / max(sum(layer.owned.values()) + layer.free, 1)},
        }
        for run in group.runs
        for item in run.ownership
        if item.network == "sequence"
        for layer in item.layers
        for owner, count in (*layer.owned.items(), (charts.FREE, layer.free))
    ]
    if not rows:
        return None
    means = mean_by(
        rows, key=lambda row: (row["after"], row["layer"], row["owner"]), value=lambda row: row["share"]
    )
    owners = [*dict.fromkeys(row["owner"] for row in rows if row["owner"] != charts.FREE), charts.FREE]
    names = _layer_labels(row["layer"] for row in rows)
    drawn = [
        {"facet": after, "layer": names[layer], "series": owner, "value": mean.value}
        | {"order": owners.index(owner)}
        for (after, layer, owner), mean in means.items()
    ]
    facets = list(dict.fromkeys(row["after"] for row in rows))
    table = [
        {"after": after, "layer": layer, "owner": owner, "share": f"{mean.value:.1%}"}
        for (after, layer, owner), mean in means.items()
        if after == facets[-1]
    ]
    return Figure(
        id=f"{group.slug}-sequence-owners",
        title="Who owns the one network",
        text="Share of each layer that each task owns, after every task learned. The table shows the end.",
        chart=charts.stacked(
            drawn, series=owners, facets=facets, x="share of weights", layers=list(names.values())
        ),
        table=Numbers(("after", "layer", "owner", "share"), table),
        data=Numbers(("seed", "after", "layer", "owner", "share"), rows),
    )


# Training and cost


def curves(group: Group) -> Figure | None:
    """Accuracy by epoch."""
    rows = [
        {
            **{
                "seed": run.run.seed,
                "task": item.task,
                "network": _CURVES[item.network],
                "epoch": item.epoch,
            },
            **{
                "train accuracy": item.train_accuracy,
                "accuracy": item.accuracy,
                "loss": item.loss,
                "lr": item.lr,
            },
        }
        for run in group.runs
        for item in run.epochs
    ]
    if not rows:
        return None
    stride = max(max(row["epoch"] for row in rows) // _POINTS, 1)
    means = mean_by(
        [row for row in rows if row["epoch"] % stride == 0 or row["epoch"] == 1],
        key=lambda row: (row["task"], row["network"], row["epoch"]),
        value=lambda row: row["accuracy"],
    )
    drawn = [
        {
            **{"facet": group.labels[task], "series": network, "x": epoch, "mean": round(mean.value, 4)},
            **({} if mean.low is None else {"low": round(mean.low, 4), "high": round(mean.high, 4)}),
            "seeds": mean.count,
        }
        for (task, network, epoch), mean in means.items()
    ]
    facets = [label for task, label in group.labels.items() if any(row["task"] == task for row in rows)]
    last: dict[tuple, dict] = {}
    for row in rows:
        last[row["seed"], row["task"], row["network"]] = row
    columns = ("seed", "task", "network", "epoch", "train accuracy", "accuracy", "loss", "lr")
    return Figure(
        id=f"{group.slug}-curves",
        title="Training curves",
        text="Accuracy on the samples that decide, by epoch. The table shows the last epochs.",
        chart=charts.lines(
            drawn,
            x="epoch",
            y="accuracy",
            series=[label for label in _CURVES.values() if any(row["network"] == label for row in rows)],
            facets=facets,
            x_format="d",
        ),
        table=Numbers(columns, list(last.values())),
        data=Numbers(columns, rows),
    )


def seconds(group: Group) -> Figure | None:
    """Seconds that the processes of each stage ran."""
    rows = [
        {"seed": run.run.seed, "stage": stage, "seconds": round(total, 1)}
        for run in group.runs
        for stage, total in sorted(run.seconds.items())
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: row["stage"], value=lambda row: row["seconds"])
    unit, scale = charts.time_unit(mean.value for mean in means.values())
    drawn = [{"name": stage, "series": unit, "value": mean.value / scale} for stage, mean in means.items()]
    return Figure(
        id=f"{group.slug}-seconds",
        title="Time of each stage",
        text="From the first to the last line of every process's log, summed over processes; tasks may have "
        "run side by side.",
        chart=charts.bars(drawn, x=unit, names=list(means), series=(unit,), format=".3~g"),
        table=Numbers(("seed", "stage", "seconds"), rows),
    )


def stored(group: Group) -> Figure | None:
    """Bytes that networks take, and that a backbone would send."""
    labels = {
        (PRUNED, "stored"): "own network, chosen ratio",
        (PRUNED, "sent"): "the same, packed",
        (TARGET, "stored"): "backbone + target, one network",
        (COPY, "stored"): "backbone + copy, two networks",
    }
    rows = [
        {
            **{"seed": run.run.seed, "task": item.task, "network": labels[item.network, item.what]},
            "bytes": item.count,
        }
        for run in group.runs
        for item in run.bytes
    ]
    if not rows:
        return None
    means = mean_by(rows, key=lambda row: row["network"], value=lambda row: row["bytes"])
    names = [label for label in labels.values() if label in means]
    unit, scale = charts.byte_unit(mean.value for mean in means.values())
    drawn = [{"name": name, "series": unit, "value": means[name].value / scale} for name in names]
    table = [
        {"network": name, "mean bytes": round(means[name].value), "networks": means[name].count}
        for name in names
    ]
    return Figure(
        id=f"{group.slug}-bytes",
        title="Bytes",
        text="Mean over tasks. Ownership and piggymasks count as packed bits. Packed: what is sent to a "
        "device that uses the network as a backbone, without the free weights, which are zero.",
        chart=charts.bars(drawn, x=unit, names=names, series=(unit,), format=".3~g"),
        table=Numbers(("network", "mean bytes", "networks"), table),
        data=Numbers(("seed", "task", "network", "bytes"), rows),
    )
