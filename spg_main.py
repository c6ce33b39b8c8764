#!/usr/bin/env python3
"""Learn a sequence of tasks in one network: soft-masked gradients (SPG) and its references."""

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence

from data.sequences import known_sequences
from methods.approaches import APPROACHES
from tools.sequence_run import SequenceRun
from utils import arguments, errors, logs
from utils.runtime import reuse_memory, set_threads

# Columns of the last table: the key in metrics.json, the heading, the format.
_COLUMNS = (
    ("average_accuracy", "accuracy", "{:.3f}"),
    ("average_over_time", "over time", "{:.3f}"),
    ("backward_transfer", "backward", "{:+.3f}"),
    ("forward_transfer", "forward", "{:+.3f}"),
    ("forgetting", "forgetting", "{:.3f}"),
    ("epochs", "epochs", "{:.0f}"),
    ("seconds_per_task", "s/task", "{:.1f}"),
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logs.to_terminal()
    set_threads(args.threads)
    reuse_memory()
    if args.tune:
        from tools.tune_dropout import tune

        tune(args)
        return
    results = []
    for seed in range(args.seed, args.seed + args.trials):
        results.append(SequenceRun(args, seed=seed).run())
    sys.stdout.write(table(results) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    arguments.add_sequence(parser)
    parser.epilog = (
        f"Sequences: {', '.join(known_sequences())}. Approaches: {', '.join(APPROACHES)}. "
        "Settings may also be written `appr=spg seq=cifar100_10`."
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=arguments.positive_int, default=500, help="Epochs of a task, at most."
    )
    group.add_argument(
        "--batch_size", type=arguments.positive_int, default=64, help="Samples a training step."
    )
    group.add_argument(
        "--val_batch_size", type=arguments.positive_int, default=500, help="Samples a batch in evaluation."
    )
    group.add_argument("--lr", type=arguments.positive_float, default=0.25, help="First learning rate.")
    group.add_argument(
        "--lr_factor", type=arguments.positive_float, default=1 / 3, help="What the learning rate falls by."
    )
    group.add_argument(
        "--lr_patience",
        type=arguments.non_negative_int,
        default=4,
        help="Epochs without a lower validation loss that the learning rate bears.",
    )
    group.add_argument(
        "--lr_floor", type=arguments.positive_float, default=1e-3, help="Lowest learning rate."
    )
    group.add_argument(
        "--stop_after",
        type=arguments.positive_int,
        default=5,
        help="Epochs without a lower validation loss, at the lowest learning rate, that end a task.",
    )
    group.add_argument(
        "--clip",
        type=arguments.positive_float,
        default=10_000.0,
        help="Norm a head's gradient is clipped at.",
    )
    group.add_argument(
        "--dropout",
        type=arguments.sparsity,
        nargs=2,
        metavar=("CONV", "REST"),
        help="Of the first two convolutions, and of the rest (default: tuned for the sequence).",
    )
    group.add_argument(
        "--keep_checkpoints",
        action="store_true",
        help="Keep the checkpoint of every task (default: the newest one's).",
    )
    group = parser.add_argument_group("approaches")
    group.add_argument(
        "--ewc_lambda",
        type=arguments.positive_float,
        default=5000.0,
        help="Weight of the penalty; only `ewc` looks at it.",
    )
    group.add_argument(
        "--packnet_share",
        type=arguments.sparsity,
        help="Share of weights set free after a task; only `packnet` looks at it "
        "(default: 1 - 1/(tasks to come + 1)).",
    )
    group = parser.add_argument_group("several runs")
    group.add_argument(
        "--trials", type=arguments.positive_int, default=1, help="Seeds to run, from --seed on."
    )
    group.add_argument(
        "--tune", action="store_true", help="Search the dropouts on validation accuracy, with Optuna."
    )
    group.add_argument(
        "--tune_trials", type=arguments.positive_int, default=20, help="Dropouts that --tune tries."
    )
    args = parser.parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    if args.trials > 1 and args.run:
        parser.error("--trials makes several runs: leave out --run")
    if args.tune and args.trials > 1:
        parser.error("--tune searches with one seed: leave out --trials")
    if args.tune and args.dropout:
        parser.error("--tune chooses the dropouts: leave out --dropout")
    return args


def with_dashes(argv: Sequence[str]) -> list[str]:
    """`appr=spg` as `--appr=spg`, the spelling of the published code."""
    return [f"--{word}" if re.match(r"[a-z]\w*=", word) else word for word in argv]


def table(results: Sequence[Mapping]) -> str:
    """The metrics of one or several runs as aligned text; several end with mean ± standard deviation."""
    rows = [result | {"seconds_per_task": result["seconds"] / len(result["tasks"])} for result in results]
    cells = [["run", *(heading for _, heading, _ in _COLUMNS)]]
    for row in rows:
        name = f"{row['approach']} {row['sequence']} seed {row['seed']}"
        cells.append([name, *(_cell(row[key], shape) for key, _, shape in _COLUMNS)])
    if len(rows) > 1:
        cells.append(
            ["mean ± deviation", *(_mean([row[key] for row in rows], shape) for key, _, shape in _COLUMNS)]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells
    )


def _cell(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def _mean(values: Sequence[float | None], shape: str) -> str:
    if None in values:
        return "-"
    return f"{shape.format(statistics.fmean(values))}±{shape.format(statistics.stdev(values)).lstrip('+')}"


if __name__ == "__main__":
    errors.run(main)
