"""Compare runs of Pick-a-back: recorded arguments that differ, accuracies task by task, and paired tests.

python -m tools.compare lenet5/seed1 mine --dataset_config cifar100
python -m tools.compare 'lenet5/seed{seed}' 'mine-{seed}' --seeds 1 2 3
"""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.tables import Table, Task, load_table
from pipeline import flags
from pipeline.fleet import one_run_per_seed, pairs_file, paths_of, read_widths
from tools.report import Row, add_flags, any_checkpoint, backbone_if_chosen, over_seeds, rows_of
from training.checkpoints import read_checkpoint
from utils.errors import UserError
from utils.files import read_json
from utils.paired_tests import permutation_test, t_test
from utils.paths import checkpoints_in, record_file
from utils.significance import interval
from utils.tables import as_text

FINAL = "target"
COLUMNS = (FINAL, "gain", "own", "pruned", "scratch")
# Entries of a recipe that follow from others, or name networks.
_DERIVED = {"backbone", "parent", "networks", "stage", "task", "text"}


@dataclass(frozen=True)
class Compared:
    """A run, or the runs of one name over several seeds.

    Attributes:
        values: task → value, averaged over the seeds; tasks without it are left out.
        arguments: recorded argument → its values in any task or seed.
    """

    name: str
    values: Mapping[str, float]
    arguments: Mapping[str, set[str]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__.partition("\n")[0])
    parser.add_argument(
        "runs",
        nargs="+",
        type=flags.run_name,
        metavar="RUN",
        help="Two or more runs: lenet5/seed1, or lenet5/seed{seed} with --seeds.",
    )
    add_flags(parser)
    parser.add_argument(
        "--column",
        choices=COLUMNS,
        default=FINAL,
        help="What to compare: the target's accuracy at its last width, its gain over its own network "
        "at that width, or the accuracy of its own, pruned or scratch network (default: target).",
    )
    args = parser.parse_args(argv)
    flags.check_seeds(parser, args)
    if len(args.runs) < 2:
        parser.error("name two runs or more")
    if len(set(args.runs)) < len(args.runs):
        parser.error("a run is named twice")
    if args.run:
        parser.error("--run: name the runs without a flag")
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = table.select(args.dataset)
    runs = [compared(name, args, table=table, tasks=tasks) for name in args.runs]
    labels = [chr(ord("A") + number) for number in range(len(runs))]
    for label, run in zip(labels, runs, strict=True):
        print(f"{label}  {run.name}")
    print()
    print_differences(runs, labels)
    print()
    print_accuracies(runs, labels, tasks=tasks, column=args.column)
    for label, run in zip(labels[1:], runs[1:], strict=True):
        print(test_line(runs[0], run, label=f"{label}-A", seeds=len(args.seeds or ())))


def compared(name: str, args: argparse.Namespace, *, table: Table, tasks: Sequence[Task]) -> Compared:
    """Read a run, or the runs of one name over several seeds.

    Raises:
        UserError: if none of the tasks has the value to compare.
    """
    seeds = one_run_per_seed(argparse.Namespace(**vars(args) | {"run": name}))
    for run in seeds:
        run.arch = any_checkpoint(run, table=table).get("architecture", {}).get("name", run.arch)
    tables = [[with_final(row) for row in rows_of(run, table=table)] for run in seeds]
    means = over_seeds(tables, ["task", args.column])
    complete = [all(rows[i].get(args.column) is not None for rows in tables) for i in range(len(means))]
    values = {row["task"]: row[args.column].mean for row, whole in zip(means, complete, strict=True) if whole}
    if not values:
        raise UserError(f"run {name}: no task of {table.name} has a value for --column {args.column}")
    return Compared(name, values, recorded_arguments(seeds, table=table, tasks=tasks))


def with_final(row: Row) -> Row:
    """A row of the report with the target's accuracy at its last width."""
    widths = {
        float(name[1:]): value for name, value in row.items() if name[:1] == "w" and name[1:2].isdigit()
    }
    trained = [width for width, value in widths.items() if value is not None]
    return row | {FINAL: widths[max(trained)] if trained else None}


def recorded_arguments(
    runs: Sequence[argparse.Namespace], *, table: Table, tasks: Sequence[Task]
) -> dict[str, set[str]]:
    """The arguments recorded in the runs' checkpoints, of the tasks' own networks and of the targets."""
    found: dict[str, set[str]] = {}
    for run in runs:
        paths = paths_of(run)
        for task in tasks:
            chosen = backbone_if_chosen(task, table=table, pairs=pairs_file(run, table.name))
            folders = {
                "stage 1": paths.baselines(table.name) / task.name,
                "stage 2-1": paths.single_scratch(table.name, task.name),
                "stage 2-2": paths.pruned(table.name, task.name),
            }
            if chosen is not None:
                folders["stage 3-2"] = paths.target(table.name, chosen.name, task.name)
            for stage, folder in folders.items():
                checkpoints = checkpoints_in(folder)
                if not checkpoints:
                    continue
                payload = read_checkpoint(checkpoints[max(checkpoints)])
                arguments = dict(payload.get("arguments", {}))
                if stage == "stage 2-2":
                    selection = payload.get("selection", {})
                    tried = read_json(record_file(folder), remedy="run run_pickaback/wo_backbone.sh first")
                    arguments = {
                        "allow_acc_loss": selection.get("allow_acc_loss"),
                        "sparsities": " ".join(ratio for ratio in tried if float(ratio)),
                    }
                elif stage == "stage 3-2":
                    widths = read_widths(folder)
                    arguments["width_multiplier"] = max(widths)
                for name, value in arguments.items():
                    if name == "data":
                        value = f"{task.name} {value}"
                    if name not in _DERIVED:
                        found.setdefault(f"{stage}: {name}", set()).add(str(value))
    return found


def print_differences(runs: Sequence[Compared], labels: Sequence[str]) -> None:
    """Print the recorded arguments in which the runs differ, merged where several stages differ alike."""
    stages_of: dict[tuple, list[str]] = {}
    for key in sorted({key for run in runs for key in run.arguments}):
        values = tuple(tuple(sorted(run.arguments.get(key, ()))) for run in runs)
        if len(set(values)) > 1:
            stage, _, name = key.partition(": ")
            stages_of.setdefault((name, values), []).append(stage.removeprefix("stage "))
    if not stages_of:
        print("The recorded arguments are the same.")
        return
    print("Recorded arguments that differ:")
    for (name, values), stages in stages_of.items():
        texts = [
            f"{label}: {', '.join(value) or 'none'}" for label, value in zip(labels, values, strict=True)
        ]
        shown = "the runs learned from different samples" if name == "data" else "; ".join(texts)
        print(f"  {name} ({'stage' if len(stages) == 1 else 'stages'} {', '.join(stages)}): {shown}")


def print_accuracies(
    runs: Sequence[Compared], labels: Sequence[str], *, tasks: Sequence[Task], column: str
) -> None:
    """Print the values task by task, with each run's difference from the first."""
    rows: list[Row] = []
    for task in tasks:
        values = [run.values.get(task.name) for run in runs]
        row: Row = {"id": task.id, "task": task.name, **dict(zip(labels, values, strict=True))}
        for label, value in zip(labels[1:], values[1:], strict=True):
            missing = value is None or values[0] is None
            row[f"gain {label}-A"] = None if missing else value - values[0]
        rows.append(row)
    print(f"{column}, test set, by task:")
    print(as_text(rows, list(rows[0])))


def test_line(first: Compared, other: Compared, *, label: str, seeds: int) -> str:
    """The mean difference over the tasks that both runs have and its interval; below it, two paired tests."""
    shared = [task for task in first.values if task in other.values]
    differences = [other.values[task] - first.values[task] for task in shared]
    averaged = f", each averaged over {seeds} seeds" if seeds > 1 else ""
    if len(shared) < 2:
        return f"{label}: {len(shared)} task in common{averaged}, too few for a test"
    mean = statistics.fmean(differences)
    if not any(differences):
        return f"{label}: no difference in any of {len(shared)} tasks{averaged}"
    low, high = interval(differences)
    return (
        f"{label}: {mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} over {len(shared)} tasks{averaged}\n"
        f"{' ' * len(label)}  paired t test p = {t_test(differences):.3g}, "
        f"permutation test p = {permutation_test(differences):.3g}"
    )


if __name__ == "__main__":
    errors.run(main)
