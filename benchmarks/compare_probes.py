"""Compare what rules pick on both tasks' own probes, on a public pool's and on noise, in a finished study.

benchmarks/study.sh trains the networks. The searches on other probes wrote their scores to other roots of
logs, as docs/rules.md says.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.tables import load_table
from methods.rules import BY_PROBES
from pipeline import flags
from tools.study import Result, collect, estimate, goodness_of, picked, reached
from utils import errors
from utils.tables import aligned

HEADER = ["rule", "probes", "same pick", "reached", "regret against the best", "gain over a random choice"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    parser.add_argument("--per_class", default="50", help="Training images per class of the targets.")
    parser.add_argument(
        "--searches",
        nargs="+",
        required=True,
        help="PROBES=ROOT of each search's logs; picks are compared with those of the first.",
    )
    parser.set_defaults(protocol="heldout")
    args = parser.parse_args(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    results: dict[str, list[Result]] = {}
    for search in args.searches:
        name, _, root = search.partition("=")
        args.logs_root, args.seeds = Path(root), [args.seed]
        results[name] = collect(args, table, args.per_class)
    first = next(iter(results.values()))
    rows = []
    for rule in BY_PROBES:
        for name, found in results.items():
            pairs = zip(first, found, strict=True)
            same = np.mean([pick(result, rule) == pick(other, rule) for result, other in pairs])
            regret = estimate(found, lambda result, rule=rule: reached(result).max() - picked(result, rule))
            gain = estimate(found, lambda result, rule=rule: picked(result, rule) - reached(result).mean())
            mean = np.mean([picked(result, rule) for result in found])
            rows.append([rule, name, f"{same:.2f}", f"{mean:.3f}", str(regret), str(gain)])
    print(aligned(HEADER, rows))


def pick(result: Result, rule: str) -> str:
    """Name of the backbone that the rule picks."""
    return result.pairs[int(np.argmax(goodness_of(result, rule)))].backbone.name


if __name__ == "__main__":
    errors.run(main)
