"""Time SPG on cifar100_10: an epoch of tasks 1 and 20, and the importance pass, in fp32 and bf16.

    python -m benchmarks.bench_spg --threads 2

It also times the same network made of PyTorch's own layers, as in the published code. That code takes 6.4 s
for the epoch of 4500 images and 5.8 s per head of the importance pass on 2 cores, but a virtual machine's
speed changes from day to day. docs/results.md has our measurements.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data.loading import Batches, TaskData
from data.sequences import load_sequence, load_task
from methods.approaches.base import Settings, TaskPasses
from methods.approaches.spg import IMPORTANCE_BATCH, SPG, task_importance
from models.alexnet import alexnet
from models.layers import PLAIN
from pipeline import flags
from training.loop import train_step
from utils import errors
from utils.paths import REPOSITORY
from utils.runtime import autocast, resolve_device, set_up_process, synchronised_clock


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument("--data_root", default=REPOSITORY / "data", help="Data folder.")
    parser.add_argument("--seq", default="cifar100_10", help="Sequence.")
    parser.add_argument(
        "--repeats", type=flags.positive_int, default=3, help="Repetitions of each measurement."
    )
    parser.add_argument("--threads", type=flags.positive_int, default=2, help="CPU threads.")
    parser.add_argument("--heads", type=flags.positive_int, default=10, help="Heads of the importance pass.")
    parser.add_argument(
        "--limit",
        type=flags.positive_int,
        help="Run only so many steps per epoch; times are scaled up.",
    )
    parser.add_argument(
        "--cpu_time", action="store_true", help="Measure CPU time of the process, for a busy machine."
    )
    args = parser.parse_args(argv)
    set_up_process(threads=args.threads, precision="fp32", nondeterministic=False)
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = resolve_device(name)
        sequence = load_sequence(args.seq, data_root=args.data_root, seed=1)
        data = load_task(sequence, 1, data_root=args.data_root, device=device)
        print(f"{name}, {args.threads} threads, torch {torch.__version__}, {len(data.train)} images")
        for precision in ("fp32", "bf16"):
            first = epoch_seconds(args, sequence, data, device=device, precision=precision, task=1)
            print(f"  epoch, {precision}: {first}")
        one = epoch_seconds(args, sequence, data, device=device, precision="fp32", task=1)
        twentieth = epoch_seconds(args, sequence, data, device=device, precision="fp32", task=20)
        print(f"  epoch of task 1: {one}, of task 20: {twentieth}")
        for precision in ("fp32", "bf16"):
            seconds = importance_seconds(args, sequence, data, device=device, precision=precision)
            print(f"  importance, {precision}, {args.heads} heads: {seconds}")
        step, head = plain_seconds(args, sequence, data, device=device)
        print(f"  PyTorch's own layers, fp32: epoch {step}; importance, one head: {head}")


def new_spg(sequence, device: torch.device, *, tasks: int) -> SPG:
    """SPG at the start of its last task of `tasks`, with random importance."""

    def build(*, width: float):
        table = sequence.table
        return alexnet(
            layers=PLAIN,
            width=width * sequence.width,
            size=table.size,
            in_channels=table.channels,
            dropout=sequence.dropout,
        )

    torch.manual_seed(1)
    spg = SPG(build=build, total=tasks, settings=Settings())
    for number in range(tasks):
        spg.begin_task(f"task_{number}", sequence.table.tasks[0].num_classes)
    if tasks > 1:
        spg.importance = {name: torch.rand_like(value) for name, value in spg.feature_parameters().items()}
    return spg.to(device)


def epoch_seconds(
    args: argparse.Namespace, sequence, data: TaskData, *, device: torch.device, precision: str, task: int
) -> str:
    """Time an epoch of training, without validation."""
    spg = new_spg(sequence, device, tasks=task)
    context = autocast(device, precision)
    batches = Batches(data, batch_size=64, shuffle=False, augment=False)
    method = spg.method(TaskPasses(batches=lambda size: (), autocast=context))
    optimizer = spg.optimizer()
    optimizer.param_groups[0]["lr"] = 0.01
    spg.network.train()
    steps = min(args.limit or batches.steps_per_epoch, batches.steps_per_epoch)

    def epoch() -> None:
        for (inputs, labels), _ in zip(batches.epoch(torch.Generator()), range(steps), strict=False):
            train_step(
                network=spg.network,
                method=method,
                optimizers=(optimizer,),
                inputs=inputs,
                labels=labels,
                autocast=context,
            )

    return timed(args, epoch, device=device, scale=batches.steps_per_epoch / steps)


def importance_seconds(
    args: argparse.Namespace, sequence, data: TaskData, *, device: torch.device, precision: str
) -> str:
    """Time the importance pass with `args.heads` heads."""
    spg = new_spg(sequence, device, tasks=args.heads)
    spg.network.train()
    batches = Batches(data, batch_size=IMPORTANCE_BATCH, shuffle=False, augment=False)
    passes = min(args.limit or batches.steps_per_epoch, batches.steps_per_epoch)

    def some() -> list:
        return [batch for batch, _ in zip(batches.epoch(torch.Generator()), range(passes), strict=False)]

    def importance() -> None:
        task_importance(network=spg.network, batches=some, autocast=autocast(device, precision))

    return timed(args, importance, device=device, scale=batches.steps_per_epoch / passes)


def plain_seconds(
    args: argparse.Namespace, sequence, data: TaskData, *, device: torch.device
) -> tuple[str, str]:
    """Time the same epoch, and one head of the importance pass, with PyTorch's own layers and plain SGD.

    In the published code, the importance pass runs forward and backward at batch size 64 for each head.
    """
    first, rest = sequence.dropout
    network = nn.Sequential(
        *(nn.Conv2d(3, 64, 4), nn.ReLU(), nn.Dropout(first), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Dropout(first), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 256, 2), nn.ReLU(), nn.Dropout(rest), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1024, 2048), nn.ReLU(), nn.Dropout(rest)),
        *(nn.Linear(2048, 2048), nn.ReLU(), nn.Dropout(rest)),
        nn.Linear(2048, data.task.num_classes),
    ).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    batches = Batches(data, batch_size=64, shuffle=False, augment=False)
    steps = min(args.limit or batches.steps_per_epoch, batches.steps_per_epoch)
    scale = batches.steps_per_epoch / steps

    def passes(update: bool) -> None:
        for (inputs, labels), _ in zip(batches.epoch(torch.Generator()), range(steps), strict=False):
            logits = network(inputs)
            loss = cross_entropy(logits, labels) if update else logits.sum()
            loss.backward()
            if update:
                optimizer.step()
                optimizer.zero_grad()

    epoch = timed(args, lambda: passes(update=True), device=device, scale=scale)
    return epoch, timed(args, lambda: passes(update=False), device=device, scale=scale)


def timed(args: argparse.Namespace, work: Callable[[], None], *, device: torch.device, scale: float) -> str:
    """Time `work` and format the median and range, in seconds."""
    clock = synchronised_clock(device, clock=time.process_time if args.cpu_time else time.perf_counter)
    seconds = []
    for _ in range(args.repeats + 1):
        begun = clock()
        work()
        seconds.append((clock() - begun) * scale)
    seconds = seconds[1:]
    return f"median {statistics.median(seconds):.2f} s (min {min(seconds):.2f}, max {max(seconds):.2f})"


if __name__ == "__main__":
    errors.run(main)
