"""Train a device's own networks: stages 1, 2-1 and 2-2 in turn, by the flags in its folder."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

from collections.abc import Sequence
from pathlib import Path

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
from federation.device import read_flags
from pipeline import flags
from tools import select_pruning_ratio as ratio_script

STAGES = {
    "baseline.flags": packnet_script.main,
    "own_network.flags": cpg_script.main,
    "ratio.flags": ratio_script.main,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument("folder", type=Path, help="The device's folder of flags.")
    folder = parser.parse_args(argv).folder
    for name, stage in STAGES.items():
        stage(read_flags(folder / name))


if __name__ == "__main__":
    errors.run(main)
