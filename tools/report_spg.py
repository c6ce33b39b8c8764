"""Compare approaches on a sequence of tasks over seeds: accuracy, forgetting, transfer, seconds and bytes."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields

from data.sequences import load_sequence, require_enough_images, sequence_name
from methods.approaches import APPROACHES
from pipeline import flags
from utils.errors import UserError
from utils.files import csv_text, read_json, write_atomically
from utils.paths import Paths
from utils.tables import aligned, plus_minus

# Columns of the table: the key in metrics.json, the heading, the format.
_COLUMNS = (
    ("average_accuracy", "accuracy", ".3f"),
    ("forgetting", "forgetting", ".3f"),
    ("backward_transfer", "backward", "+.3f"),
    ("forward_transfer", "forward", "+.3f"),
    ("seconds", "seconds", ".0f"),
    ("bytes", "bytes", ",.0f"),
)
# Arguments in which compared runs differ by nature.
_OWN_ARGUMENTS = {"appr", "seed", "data"}
NOTES = """\
Mean±standard deviation over seeds, on test images. -: undefined, not recorded, or (forward) `one` is missing.
bytes: after the last task, the network and what the approach keeps (`er`: raw images; `one`: all networks);
without the training images of all tasks, which `mtl` needs at once."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_continual_report(parser)
    args = parser.parse_args(argv)
    for approach in args.appr:
        if approach not in APPROACHES:
            raise UserError(f"unknown approach {approach!r}: choose from {', '.join(APPROACHES)}")
    if args.check:
        for seed in args.seeds:
            sequence = load_sequence(args.seq, data_root=args.data_root, seed=seed)
            require_enough_images(sequence, data_root=args.data_root)
        return
    name = sequence_name(args.seq)
    runs = {
        (approach, seed): read_metrics(args, sequence=name, approach=approach, seed=seed)
        for approach in args.appr
        for seed in args.seeds
    }
    finished = {run: metrics for run, metrics in runs.items() if metrics is not None}
    if not finished:
        raise UserError(
            f"no finished run of {', '.join(args.appr)} on {name} in {args.logs_root}: "
            "run run_pickaback/spg.sh first"
        )
    rows = [
        row(approach, results)
        for approach in args.appr
        if (results := [metrics for (owner, _), metrics in finished.items() if owner == approach])
    ]
    report = Paths.continual_report(args.logs_root, sequence=name, arch=args.arch)
    write_atomically(report, csv_text(rows, list(rows[0])))
    headings = ["approach", "seeds", *(heading for _, heading, _ in _COLUMNS)]
    print(aligned(headings, [cells(each) for each in rows]))
    print(NOTES)
    missing = [f"{approach} seed {seed}" for approach, seed in runs if (approach, seed) not in finished]
    if missing:
        print(f"Not finished: {', '.join(missing)}.")
    for line in differences(finished):
        print(line)
    print(f"The same table: {report}")


def read_metrics(args: argparse.Namespace, *, sequence: str, approach: str, seed: int) -> dict | None:
    """The metrics of a finished run; None if there is none."""
    run = Paths.continual_run_name(sequence=sequence, approach=approach, seed=seed, arch=args.arch)
    paths = Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)
    path = paths.metrics_file()
    if not path.exists():
        return None
    return read_json(path, remedy="run its approach again with --overwrite")


def differences(runs: Mapping[tuple[str, int], Mapping]) -> list[str]:
    """A line for each run whose arguments differ from the first one's, as far as they should agree."""
    options = {item.name for approach in APPROACHES.values() for item in fields(approach.Options)}

    def shared(metrics: Mapping) -> dict:
        arguments = metrics.get("arguments", {})
        return {name: arguments[name] for name in arguments.keys() - _OWN_ARGUMENTS - options}

    (first_approach, first_seed), first = next(iter(runs.items()))
    expected, lines = shared(first), []
    for (approach, seed), metrics in runs.items():
        found = shared(metrics)
        odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if odd:
            values = ", ".join(f"{name} {found.get(name)} instead of {expected.get(name)}" for name in odd)
            lines.append(
                f"{approach} seed {seed} is not comparable with {first_approach} seed {first_seed}: {values}."
            )
    return lines


def row(approach: str, results: Sequence[Mapping]) -> dict:
    """Mean and standard deviation over seeds of each metric; None where a run does not have it."""
    entries: dict = {"approach": approach, "seeds": len(results)}
    for key, _, _ in _COLUMNS:
        values = [result.get(key) for result in results]
        known = all(isinstance(value, int | float) for value in values)
        entries[key] = statistics.fmean(values) if known else None
        entries[f"{key}_sd"] = statistics.stdev(values) if known and len(values) > 1 else None
    return entries


def cells(entries: Mapping) -> list[str]:
    """One row of the printed table."""
    shown = [entries["approach"], str(entries["seeds"])]
    for key, _, spec in _COLUMNS:
        mean, spread = entries[key], entries[f"{key}_sd"]
        if mean is None:
            shown.append("-")
        else:
            single = spread is None or (key == "bytes" and spread == 0)
            shown.append(plus_minus(mean, math.nan if single else spread, spec=spec))
    return shown


if __name__ == "__main__":
    errors.run(main)
