"""Compare rules for choosing a backbone: accuracy at width 1.0, mean and standard error over targets.

benchmarks/compare_rules.sh trains the networks and then runs this.
"""

from collections.abc import Sequence
from pathlib import Path

from data.tables import load_table
from pipeline import flags
from pipeline.fleet import chosen_backbone, paths_of, read_widths
from training.checkpoints import load_checkpoint
from utils import errors
from utils.metrics import mean_and_error
from utils.paths import checkpoint_in
from utils.tables import plus_minus

WIDTH = 1.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    parser.add_argument("--picks", nargs="+", required=True, help="RULE=CSV of the chosen backbones.")
    args = parser.parse_args(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    paths = paths_of(args)
    files = {rule: Path(file) for rule, _, file in (pick.partition("=") for pick in args.picks)}

    def alone(folder: Path, layers: str) -> float:
        path = checkpoint_in(folder, remedy="run stages 1 and 2 first")
        return load_checkpoint(path, architecture=args.arch, layers=layers)["metrics"]["test_accuracy"]

    columns: dict[str, list[float]] = {"scratch": [], "cpg alone": [], **{rule: [] for rule in files}}
    print("target".ljust(32), *(f"{name:>28}" for name in columns))
    for target in table.select(args.dataset):
        columns["scratch"].append(alone(paths.baselines(table.name) / target.name, "plain"))
        columns["cpg alone"].append(alone(paths.single_scratch(table.name, target.name), "sharable"))
        shown = [f"{columns[name][-1]:28.3f}" for name in ("scratch", "cpg alone")]
        for rule, file in files.items():
            backbone = chosen_backbone(file, table=table, target=target).name
            widths = read_widths(paths.target(table.name, backbone, target.name))
            columns[rule].append(widths[WIDTH]["test_accuracy"])
            shown.append(f"{columns[rule][-1]:.3f} {backbone[:21]:<22}".rjust(28))
        print(target.name.ljust(32), *shown)
    for name, values in columns.items():
        print(f"{name}: {plus_minus(*mean_and_error(values), spec='.4f')} mean accuracy at width {WIDTH}")
    for name in list(columns)[1:]:
        for other in list(columns)[: list(columns).index(name)]:
            gains = [a - b for a, b in zip(columns[name], columns[other], strict=True)]
            difference = plus_minus(*mean_and_error(gains), spec=".4f")
            print(f"{name} minus {other}: {difference} over {len(gains)} targets, paired")


if __name__ == "__main__":
    errors.run(main)
