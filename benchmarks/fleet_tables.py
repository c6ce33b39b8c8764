"""Print a run's accuracies as Markdown: scratch by seed, pruned by sparsity, and targets by width.

python -m benchmarks.fleet_tables --dataset_config cifar100 --seeds 1 2 3
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from data.tables import Table, load_table
from pipeline import flags
from pipeline.fleet import paths_of, read_baseline
from tools.report import task_rows
from utils import errors
from utils.files import read_json
from utils.paths import Paths, record_file
from utils.tables import mean_of, shown


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="Seeds of stage 1 to compare.")
    args = parser.parse_args(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    print_scratch(args, table)
    print_sparsities(paths_of(args), table)
    print_targets(paths_of(args), table, arch=args.arch)


def print_scratch(args: argparse.Namespace, table: Table) -> None:
    """Print the scratch accuracy of each task, one column per seed."""
    columns = []
    for seed in args.seeds:
        run = Paths.run_name(arch=args.arch, seed=seed, protocol=args.protocol)
        paths = Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)
        path = paths.baseline_file(table.name)
        columns.append([read_baseline(path, task=task.name) for task in table.tasks])
    print_row("task", *(f"seed {seed}" for seed in args.seeds))
    print_row(*["---"] * (1 + len(args.seeds)))
    for task, *values in zip(table.tasks, *columns, strict=True):
        print_row(task.name, *(f"{value:.3f}" for value in values))
    means = [statistics.fmean(column) for column in columns]
    print_row("**mean**", *(f"**{mean:.4f}**" for mean in means))
    deviation = statistics.stdev(means) if len(means) > 1 else float("nan")
    print(f"\nMean over seeds: {statistics.fmean(means):.4f}, standard deviation {deviation:.4f}\n")


def print_sparsities(paths: Paths, table: Table) -> None:
    """Print the accuracy of each task at each sparsity."""
    records: list[dict[str, float]] = []
    for task in table.tasks:
        path: Path = record_file(paths.pruned(table.name, task.name))
        records.append(read_json(path, remedy="run run_pickaback/wo_backbone.sh first"))
    ratios = sorted(records[0], key=float)
    print_row("task", *ratios)
    print_row(*["---"] * (1 + len(ratios)))
    for task, record in zip(table.tasks, records, strict=True):
        print_row(task.name, *(f"{record[ratio]:.3f}" for ratio in ratios))
    means = [statistics.fmean(record[ratio] for record in records) for ratio in ratios]
    print_row("**mean**", *(f"**{mean:.3f}**" for mean in means))
    print()


def print_targets(paths: Paths, table: Table, *, arch: str) -> None:
    """Print the table of tools.report."""
    rows, columns = task_rows(
        table.tasks, table=table, paths=paths, arch=arch, pairs=paths.result_csv(table.name)
    )
    columns.remove("id")
    print_row(*columns)
    print_row(*["---"] * len(columns))
    for row in rows:
        print_row(*(shown(name, row[name]) for name in columns))
    means = (mean_of([row[name] for row in rows], signed=name.startswith("gain")) for name in columns[1:])
    print_row("**mean**", *means)


def print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    errors.run(main)
