"""Report each task's accuracy: trained from scratch, pruned, and on its backbone."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.loading import validation_labels
from data.tables import Table, Task, load_table
from methods.rules import RULES
from pipeline import flags
from pipeline.architectures import PLAIN, SHARABLE
from pipeline.fleet import (
    backbone_of,
    chosen_backbone,
    one_run_per_seed,
    pairs_file,
    paths_of,
    read_choices,
    read_control,
    read_widths,
    test_accuracy,
)
from training.checkpoints import load_checkpoint, read_checkpoint
from utils.errors import UserError
from utils.files import csv_text, read_csv, write_atomically
from utils.paths import Paths, checkpoints_in, redo_command, widths_file
from utils.significance import at_chance, interval
from utils.tables import Spread, aligned, as_text, is_signed, plus_minus

NOTES = """\
Accuracies on the test set. w1.0, w1.5 …: on the backbone at that width. own: the task's own unpruned
network (stage 2-1); own@w: the same, trained alone at the width that the target ended at (run_all.sh
--control). gain: the last width minus own@w. gain@1.0: w1.0 minus own. scratch: stage 1 (LeNet-5: no
batch norm); gain (scratch): the last width minus scratch. -: not trained."""
SINGLE_NOTES = "±: standard error of the mean over tasks."
SEEDS_NOTES = (
    "±: standard deviation over seeds {seeds}; gains need every seed, other cells take those there are."
)
REUSE_NOTES = """\
copy: a dense copy of the backbone's unpruned network, fine-tuned; gain (copy): w1.0 minus it. probe: a linear
classifier on that network's frozen features."""
CONTROL_NOTES = "scratch@w: stage 1's network at the width that the target ended at."
MULTIMODAL_NOTES = """\
its modality: the backbone's. after transfer: last width. same, other: last width on the best backbone of
the target's own modality and of the other; untransferred: as other, but without the K/V transfer, by
run_all_MM.sh --control."""
RULES_NOTES = "{rules}: last width on the backbone chosen by that rule."
CHANCE_NOTES = """\
Scratch networks not above chance (one-sided binomial test, p ≥ 0.05): {tasks}.
Their baselines decide nothing sensible in stage 2-2 and growth, and gain (scratch) says nothing: train them
for longer, at another learning rate, or with another architecture."""

Row = dict[str, object]


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    add_flags(parser)
    parser.add_argument(
        "--backbone",
        default=flags.FROM_CSV,
        help=f"The targets' backbone: a name, an id, or {flags.FROM_CSV} for the one that stage 3-1 chose.",
    )
    parser.add_argument(
        "--in_sequence",
        action="store_true",
        help="Summarise the tables of cpg_sequence.sh over --seeds (default: report on stages 1 to 3-2).",
    )
    args = parser.parse_args(argv)
    flags.check_seeds(parser, args)
    if args.in_sequence and not args.seeds:
        parser.error("--in_sequence requires --seeds")
    table = load_table(args.dataset_config, data_root=args.data_root)
    runs = one_run_per_seed(args)
    paths = paths_of(runs[0])
    seeds = args.seeds if len(runs) > 1 else ()
    if args.in_sequence:
        tables = [sequence_rows(paths_of(run), config=table.name) for run in runs]
        check_same_tasks(tables)
        path = paths.in_sequence_report(table.name, seeds=args.seeds)
    else:
        path = paths.report_file(table.name, seeds=seeds)
        tables = [rows_of(run, table=table) for run in runs]
        check_any_trained(tables)
    columns = common_columns(tables)
    write_report(path, tables, columns)
    print_table(tables, columns)
    print_intervals(tables, columns)
    if not args.in_sequence:
        print_notes(runs, tables, columns, table=table)
        for line in summary(tables, table=table, copies=copies_of(runs, table=table)):
            print(line)
    print(f"The same table: {path}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which tasks, runs and choices to read; shared with tools.compare."""
    flags.add_files(parser)
    flags.add_chosen_pairs(parser)
    flags.add_seeds(parser)


# Rows of one run


def rows_of(args: argparse.Namespace, *, table: Table) -> list[Row]:
    """One row per task of `--dataset` in one run; missing values are None."""
    paths = paths_of(args)
    choices = {rule: paths.result_csv(table.name, among=args.candidates.among, rule=rule) for rule in RULES}
    rows, columns = task_rows(
        table.select(args.dataset),
        table=table,
        paths=paths,
        arch=args.arch,
        pairs=pairs_file(args, table.name),
        backbone=getattr(args, "backbone", flags.FROM_CSV),
        choices=choices,
    )
    return [{name: row[name] for name in columns} for row in rows]


def task_rows(
    tasks: Sequence[Task],
    *,
    table: Table,
    paths: Paths,
    arch: str,
    pairs: Path,
    backbone: str = flags.FROM_CSV,
    choices: Mapping[str, Path] | None = None,
) -> tuple[list[Row], list[str]]:
    """One row per task, and the columns that any of them fills.

    Args:
        pairs: CSV of the chosen backbones.
        backbone: a task that is the backbone of all; from_csv reads `pairs`.
        choices: rule → CSV of the backbones that it chose.
    """
    rows = [
        task_row(task, table=table, paths=paths, arch=arch, pairs=pairs, backbone=backbone, choices=choices)
        for task in tasks
    ]
    return in_columns(rows, choices=choices or ())


def in_columns(rows: Sequence[Row], *, choices: Iterable[str] = ()) -> tuple[list[Row], list[str]]:
    """Rows of `task_row` with a column per width, and the columns that any of them fills.

    Args:
        choices: rules whose choices the rows hold.
    """
    widths = sorted({width for row in rows for width in row["widths"]})
    columns = []
    for name in rows[0]:
        columns += [f"w{width}" for width in widths] if name == "widths" else [name]
    filled = []
    for row in rows:
        values = row | {f"w{width}": row["widths"].get(width) for width in widths}
        filled.append({name: values[name] for name in columns})
    columns = [
        name for name in columns if name in ("id", "task") or any(row[name] is not None for row in filled)
    ]
    if widths == [1.0]:  # these repeat others
        columns = [name for name in columns if name not in ("own@w", "gain@1.0")]
    by_rule = [rule for rule in choices if rule in columns]
    if len(by_rule) == 1:  # the choice that the table is about
        columns = [name for name in columns if name not in (by_rule[0], f"{by_rule[0]} backbone")]
    return [{name: row[name] for name in columns} for row in filled], columns


def task_row(
    task: Task,
    *,
    table: Table,
    paths: Paths,
    arch: str,
    pairs: Path,
    backbone: str,
    choices: Mapping[str, Path] | None,
) -> Row:
    """One task's values, None if missing; `widths` maps width multipliers to test accuracies."""
    config = table.name
    scratch = test_accuracy(paths.baselines(config) / task.name, arch=arch, layers=PLAIN)
    own = test_accuracy(paths.single_scratch(config, task.name), arch=arch, layers=SHARABLE)
    ratio, pruned = chosen_ratio(paths.pruned(config, task.name), arch=arch)
    chosen = backbone_if_chosen(task, table=table, pairs=pairs, asked=backbone)
    target = OnBackbone() if chosen is None else on_backbone(task, chosen, table=table, paths=paths)
    final = target.accuracy
    plain = sharable = None
    if final is not None:
        plain = test_accuracy(
            paths.baselines(config, width_multiplier=target.last) / task.name, arch=arch, layers=PLAIN
        )
        sharable = own
        if target.last != 1.0:
            control = paths.control(config, task.name, width_multiplier=target.last)
            sharable = test_accuracy(control, arch=arch, layers=SHARABLE)
    multimodal = is_multimodal(table)
    among = {
        "same": on_choice(task, table=table, paths=paths, pairs=paths.result_csv(config, among="same")),
        "other": on_choice(task, table=table, paths=paths, pairs=paths.result_csv(config, among="other")),
    }
    untransferred = on_choice(
        task, table=table, paths=paths, pairs=paths.result_csv(config, among="other"), kv_transfer=False
    )
    by_rule: Row = {}
    for rule, path in (choices or {}).items():
        found = on_choice(task, table=table, paths=paths, pairs=path)
        by_rule |= {rule: found.accuracy, f"{rule} backbone": found.backbone}
    copied, probed = (
        {} if chosen is None else read_control(paths.reused(config, chosen.name, task.name, how=how))
        for how in ("copy", "probe")
    )
    labels = None
    if scratch is not None:
        labels = validation_labels(table, task, data_root=paths.data, protocol="published", seed=0)
    return {
        "id": task.id,
        "task": task.name,
        "modality": task.modality if multimodal else None,
        "gain": difference(final, sharable),
        "gain@1.0": difference(target.widths.get(1.0), own),
        "own@w": sharable,
        "own": own,
        "widths": target.widths,
        "backbone": None if chosen is None else chosen.name,
        "its modality": chosen.modality if multimodal and chosen is not None else None,
        "ratio": ratio,
        "pruned": pruned,
        "after transfer": final if multimodal else None,
        "scratch": scratch,
        "at chance": "yes" if labels is not None and at_chance(scratch, labels.tolist()) else None,
        "gain (scratch)": difference(final, scratch),
        "scratch@w": plain if target.last != 1.0 else None,
        "gain (scratch@w)": difference(final, plain) if target.last != 1.0 else None,
        "same": among["same"].accuracy,
        "best of same": among["same"].backbone,
        "other": among["other"].accuracy,
        "best of other": among["other"].backbone,
        "untransferred": untransferred.accuracy,
        "copy": copied.get("test_accuracy"),
        "gain (copy)": difference(target.widths.get(1.0), copied.get("test_accuracy")),
        "probe": probed.get("test_accuracy"),
        **by_rule,
    }


def difference(value: float | None, reference: float | None) -> float | None:
    """`value` minus `reference`; None if either is missing."""
    return None if value is None or reference is None else value - reference


def is_multimodal(table: Table) -> bool:
    """Whether the table has tasks of several modalities."""
    return len({task.modality for task in table.tasks}) > 1


@dataclass(frozen=True)
class OnBackbone:
    """A target on a backbone: its test accuracy by width multiplier, empty if it was not trained.

    Attributes:
        backbone: its name; None if it was not trained.
    """

    backbone: str | None = None
    widths: Mapping[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", self.widths or {})

    @property
    def last(self) -> float | None:
        """The widest."""
        return max(self.widths, default=None)

    @property
    def accuracy(self) -> float | None:
        """The accuracy at the last width."""
        return self.widths.get(self.last)


def backbone_if_chosen(
    target: Task, *, table: Table, pairs: Path, asked: str = flags.FROM_CSV
) -> Task | None:
    """The backbone of `target`; None if stage 3-1 has not chosen one yet, or if it is the target itself."""
    if asked != flags.FROM_CSV:
        return (
            None
            if table.task(asked) == target
            else backbone_of(target, asked=asked, table=table, pairs=pairs)
        )
    if not pairs.exists():
        return None
    if str(target.id) not in read_choices(pairs, remedy="run run_pickaback/find_backbone.sh"):
        return None
    return chosen_backbone(pairs, table=table, target=target)


def on_backbone(
    target: Task, backbone: Task, *, table: Table, paths: Paths, kv_transfer: bool = True
) -> OnBackbone:
    """The target on `backbone`, as far as stage 3-2 has finished it."""
    folder = paths.target(table.name, backbone.name, target.name, kv_transfer=kv_transfer)
    if not widths_file(folder).exists():
        return OnBackbone()
    widths = {width: metrics["test_accuracy"] for width, metrics in read_widths(folder).items()}
    return OnBackbone(backbone.name, widths)


def on_choice(
    target: Task, *, table: Table, paths: Paths, pairs: Path, kv_transfer: bool = True
) -> OnBackbone:
    """The target on the backbone that the CSV `pairs` names, if there is one."""
    backbone = backbone_if_chosen(target, table=table, pairs=pairs)
    if backbone is None:
        return OnBackbone()
    return on_backbone(target, backbone, table=table, paths=paths, kv_transfer=kv_transfer)


def chosen_ratio(folder: Path, *, arch: str) -> tuple[float | None, float | None]:
    """The ratio that stage 2-2 chose and the test accuracy at it; None if it has not chosen.

    Raises:
        UserError: if this project did not write the checkpoint.
    """
    found = checkpoints_in(folder)
    if not found:
        return None, None
    path = found[max(found)]
    payload = load_checkpoint(path, architecture=arch, layers=SHARABLE)
    if "metrics" not in payload or "selection" not in payload:
        raise UserError(f"{path} does not record its accuracy: {redo_command(path)}")
    return payload["selection"]["ratio"], payload["metrics"]["test_accuracy"]


def sequence_rows(paths: Paths, *, config: str) -> list[Row]:
    """The table that cpg_sequence.sh wrote, as numbers where they are."""
    remedy = "run run_pickaback/cpg_sequence.sh first"
    rows: list[Row] = []
    for text in read_csv(paths.in_sequence_report(config), columns=("id", "task", "end"), remedy=remedy):
        row: Row = {name: value or None for name, value in text.items()}
        for name, value in text.items():
            with suppress(ValueError):
                row[name] = int(value) if name == "id" else float(value)
        rows.append(row)
    return rows


def check_same_tasks(tables: Sequence[Sequence[Row]]) -> None:
    """Refuse sequences of different tasks.

    Raises:
        UserError: naming the tasks of the first two that differ.
    """
    orders = [",".join(str(row["task"]) for row in rows) for rows in tables]
    for order in orders:
        if order != orders[0]:
            raise UserError(
                f"the seeds learned different sequences, {orders[0]} and {order}: run cpg_sequence.sh with "
                "the same tasks for every seed"
            )


def check_any_trained(tables: Sequence[Sequence[Row]]) -> None:
    """Refuse a report without a single network.

    Raises:
        UserError: naming the first task.
    """
    known = {"id", "task", "modality"}
    if not any(value is not None for rows in tables for row in rows for value in without(row, known)):
        raise UserError(f"no network of task {tables[0][0]['task']}: run run_pickaback/baseline.sh first")


def without(row: Row, names: set[str]) -> list[object]:
    """The values of a row in all columns but `names`."""
    return [value for name, value in row.items() if name not in names]


# Several seeds


def common_columns(tables: Sequence[Sequence[Row]]) -> list[str]:
    """The columns of several tables, in the order of the one with the most, then what only others have."""
    columns = list(max((rows[0] for rows in tables), key=len))
    for rows in tables:
        columns += [name for name in rows[0] if name not in columns]
    return columns


def values_of(tables: Sequence[Sequence[Row]], index: int, name: str) -> list:
    """One cell's values in several tables, without the missing ones; none of a gain unless all have it."""
    values = [rows[index].get(name) for rows in tables if index < len(rows)]
    present = [value for value in values if value is not None]
    return [] if is_signed(name) and len(present) < len(tables) else present


def cell(values: Sequence) -> object:
    """One cell over several seeds: names once each, in the seeds' order; numbers as mean and deviation."""
    if not values:
        return None
    if isinstance(values[0], str) or len(values) == 1:
        return "/".join(dict.fromkeys(values)) if isinstance(values[0], str) else Spread(values[0], math.nan)
    return Spread(statistics.fmean(values), statistics.stdev(values))


def over_seeds(tables: Sequence[Sequence[Row]], columns: Sequence[str]) -> list[Row]:
    """One row per task with each cell's mean and standard deviation over the tables of several seeds."""
    return [
        {
            name: row[name] if name in ("id", "task") else cell(values_of(tables, index, name))
            for name in columns
        }
        for index, row in enumerate(tables[0])
    ]


def means_over_tasks(tables: Sequence[Sequence[Row]], columns: Sequence[str]) -> dict[str, str]:
    """Mean over tasks ± standard deviation over seeds, of the columns that every seed fills for every task.

    Where cells are missing, the mean over the tasks that have any, without a deviation.
    """
    means = {}
    for name in set(columns) - {"id", "task"}:
        cells = [values_of(tables, index, name) for index in range(len(tables[0]))]
        numbers = [values for values in cells if values and not isinstance(values[0], str)]
        if not numbers or any(isinstance(value, str) for values in cells for value in values):
            continue
        spec = "+.3f" if is_signed(name) else ".3f"
        deviation = math.nan
        if all(len(values) == len(tables) for values in cells):
            deviation = statistics.stdev(map(statistics.fmean, zip(*cells, strict=True)))
        means[name] = plus_minus(statistics.fmean(map(statistics.fmean, numbers)), deviation, spec=spec)
    return means


# Output


def write_report(path: Path, tables: Sequence[Sequence[Row]], columns: Sequence[str]) -> None:
    """Write the table as CSV; over several seeds, each number with its standard deviation (`<name> sd`)."""
    if len(tables) == 1:
        write_atomically(path, csv_text(tables[0], columns))
        return
    rows, names = [], []
    for row in over_seeds(tables, columns):
        written: Row = {}
        for name, value in row.items():
            spread = isinstance(value, Spread)
            written[name] = value.mean if spread else value
            if spread:
                written[f"{name} sd"] = None if math.isnan(value.deviation) else value.deviation
        rows.append(written)
        names += [name for name in written if name not in names]
    write_atomically(path, csv_text(rows, names))


def print_table(tables: Sequence[Sequence[Row]], columns: Sequence[str]) -> None:
    """Print the table of one run, or of one run per seed."""
    if len(tables) == 1:
        print(as_text(tables[0], columns))
    else:
        print(as_text(over_seeds(tables, columns), columns, means=means_over_tasks(tables, columns)))


def print_intervals(tables: Sequence[Sequence[Row]], columns: Sequence[str]) -> None:
    """Print the mean over tasks of each gain with its confidence interval."""
    lines = []
    for name in filter(is_signed, columns):
        cells = [values_of(tables, index, name) for index in range(len(tables[0]))]
        gains = [statistics.fmean(values) for values in cells if values]
        if len(gains) > 1:
            low, high = interval(gains)
            lines.append(
                (name, f"{statistics.fmean(gains):+.3f}", f"{low:+.3f} to {high:+.3f}", str(len(gains)))
            )
    if lines:
        gain = "gain" if len(tables) == 1 else f"gain averaged over {len(tables)} seeds"
        print(f"\n{aligned(('', 'mean', '95 % interval', 'tasks'), lines, ruled=False)}")
        print(f"(paired: Student t over tasks, of each task's {gain})\n")


def any_checkpoint(run: argparse.Namespace, *, table: Table) -> dict:
    """A checkpoint of one of the tasks' own networks in a run; empty if there is none."""
    paths = paths_of(run)
    for task in table.select(run.dataset):
        for folder in (paths.baselines(table.name) / task.name, paths.single_scratch(table.name, task.name)):
            found = checkpoints_in(folder)
            if found:
                return read_checkpoint(found[max(found)])
    return {}


def recorded_protocol(run: argparse.Namespace, *, table: Table) -> str:
    """The protocol of a run's networks, whatever `--protocol` says; that one if they do not record it."""
    return any_checkpoint(run, table=table).get("arguments", {}).get("protocol", run.protocol)


def print_notes(
    runs: Sequence[argparse.Namespace],
    tables: Sequence[Sequence[Row]],
    columns: Sequence[str],
    *,
    table: Table,
) -> None:
    """Say what the columns mean, and which values to distrust."""
    by_chance = dict.fromkeys(row["task"] for rows in tables for row in rows if row.get("at chance"))
    if by_chance:
        print(CHANCE_NOTES.format(tasks=", ".join(by_chance)))
    print(NOTES)
    print(
        SINGLE_NOTES
        if len(tables) == 1
        else SEEDS_NOTES.format(seeds=", ".join(str(run.seed) for run in runs))
    )
    if "scratch@w" in columns:
        print(CONTROL_NOTES)
    if "copy" in columns:
        print(REUSE_NOTES)
    if is_multimodal(table):
        print(MULTIMODAL_NOTES)
    rules = [rule for rule in RULES if rule in columns]
    if rules:
        print(RULES_NOTES.format(rules=", ".join(rules)))
    if any(recorded_protocol(run, table=table) == "published" for run in runs):
        print("Growth, pruning ratio and backbone were chosen on the test set (protocol published).")


# The outcome in words


def copies_of(runs: Sequence[argparse.Namespace], *, table: Table) -> list[dict]:
    """Metrics of the fine-tuned copies of the chosen backbones, of every run."""
    found = []
    for args in runs:
        paths, pairs = paths_of(args), pairs_file(args, table.name)
        for task in table.select(args.dataset):
            backbone = backbone_if_chosen(task, table=table, pairs=pairs, asked=args.backbone)
            if backbone is not None:
                found.append(read_control(paths.reused(table.name, backbone.name, task.name, how="copy")))
    return [metrics for metrics in found if metrics]


def summary(tables: Sequence[Sequence[Row]], *, table: Table, copies: Sequence[Mapping]) -> list[str]:
    """Who gained what from whom, in words, where some tasks of the table have few images and others all."""
    few, many, gained = [], [], []
    for row in (row for rows in tables for row in rows):
        gain = row.get("gain") if row.get("gain") is not None else row.get("gain@1.0")
        if gain is None:
            continue
        drawn = table.task(str(row["task"])).train_per_class is not None
        (few if drawn else many).append(gain)
        if drawn:
            gained.append(f"{row['task']} {gain:+.3f} from {row['backbone']}")
    lines = []
    if few and many:
        lines.append(
            f"Devices with few images gained {statistics.fmean(few):+.3f} from another device's network over "
            f"training alone ({', '.join(gained)}); those with all images, {statistics.fmean(many):+.3f}."
        )
    if lines and copies:
        before, after = (
            statistics.fmean(metrics[f"backbone_accuracy_{when}"] for metrics in copies)
            for when in ("before", "after")
        )
        lines.append(
            "The other devices lost nothing; fine-tuning a copy changes a backbone's own accuracy from "
            f"{before:.3f} to {after:.3f}."
        )
    return lines


if __name__ == "__main__":
    errors.run(main)
