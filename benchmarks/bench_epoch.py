"""Time one epoch of LeNet-5 on a CIFAR-100 superclass, validation and resume checkpoint included.

    python -m benchmarks.bench_epoch --threads 1

For comparison, the published code takes 1.0 s on two cores for the same epoch of 2500 images and validation
on 500. docs/results.md has our measurements.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch

from CPG_cifar100_main_normal import parse as parse_cpg
from data.tables import load_table
from packnet_cifar100_main_normal import parse as parse_packnet
from pipeline import flags
from pipeline.architectures import PLAIN, SHARABLE
from pipeline.cpg import Backbones, CPGTask
from pipeline.scratch import ScratchTask
from pipeline.train_task import EpochLog, Stage, TaskRun
from utils import errors
from utils.runtime import set_up_process


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument("--dataset_config", default="cifar100", help="Task table.")
    parser.add_argument("--dataset", default="food_containers", help="Task.")
    parser.add_argument("--epochs", type=flags.positive_int, default=15, help="Epochs to time.")
    parser.add_argument("--threads", type=flags.positive_int, default=1, help="CPU threads.")
    parser.add_argument("--device", default="cpu", help="Device to run on.")
    args = parser.parse_args(argv)
    set_up_process(threads=args.threads, precision="fp32", nondeterministic=False)
    own = partial(CPGTask, backbones=Backbones())
    wide = ["--network_width_multiplier", "2.0"]
    cases = {
        "stage 1, PackNet's LeNet-5": (parse_packnet, ScratchTask, PLAIN, []),
        "stage 2-1, CPG's LeNet-5": (parse_cpg, own, SHARABLE, []),
        "stage 2-1 at width multiplier 2.0": (parse_cpg, own, SHARABLE, wide),
    }
    for title, (parse, stage, layers, more) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            common = ["--dataset_config", args.dataset_config, "--dataset", args.dataset]
            roots = ["--checkpoints_root", folder, "--logs_root", folder]
            computing = ["--epochs", str(args.epochs), "--device", args.device]
            stage_args = parse([*common, *roots, *computing, *more])
            table = load_table(args.dataset_config, data_root=stage_args.data_root)
            run = TaskRun(stage_args, table=table, task=table.task(args.dataset), layers=layers)
            seconds = time_epochs(stage(run))
        print(
            f"{title}: median {statistics.median(seconds):.3f} s per epoch "
            f"(min {min(seconds):.3f}, max {max(seconds):.3f}, {len(seconds)} epochs, "
            f"{args.threads} threads, torch {torch.__version__})"
        )


def time_epochs(stage: Stage) -> list[float]:
    """Seconds of each epoch but the first, as the script itself runs them."""
    ends = []
    lines = EpochLog.lines

    def record(self: EpochLog, *args: object) -> tuple[str, ...]:
        ends.append(time.perf_counter())
        return lines(self, *args)

    EpochLog.lines = record
    try:
        stage.work()
    finally:
        EpochLog.lines = lines
    return [later - earlier for earlier, later in pairwise(ends)]


if __name__ == "__main__":
    errors.run(main)
