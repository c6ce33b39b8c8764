"""Time a training step of CPG's version of a network beside the same network of plain layers.

    python -m benchmarks.bench_overhead --threads 1

Claim (figures in docs/results.md: 1.10 and 1.28 on one core): with half of the weights owned by an
earlier task, so that the piggymasks pick among them and are trained, a step takes at most 1.25 times as long
for resnet18, and at most 1.5 times for lenet5, at batches of 32 images.

The two take turns, step by step, so that whatever else the machine does falls on both. On a CPU it is the
time of this process alone that counts, on a GPU the clock's.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import SGD

from methods.cpg import CPG, piggymask_optimizer, weight_optimizer
from methods.ownership import SharedNetwork
from models import BUILDERS
from models.layers import PLAIN, SHARABLE
from models.lenet5 import lenet5
from models.network import Network
from utils import arguments, errors
from utils.runtime import autocast, resolve_device
from utils.training import Method, train_step

LR, WEIGHT_DECAY = 1e-2, 4e-5
BOUNDS = {"resnet18": 1.25, "lenet5": 1.5}

Step = Callable[[Tensor, Tensor], object]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--arch", nargs="+", default=list(BOUNDS), help="Architectures.")
    parser.add_argument("--batch_size", type=arguments.positive_int, default=32, help="Images a step.")
    parser.add_argument("--size", type=arguments.positive_int, default=32, help="Pixels of an image's side.")
    parser.add_argument("--width", type=arguments.positive_float, default=1.0, help="Width multiplier.")
    parser.add_argument("--seconds", type=arguments.positive_float, default=30.0, help="For each network.")
    parser.add_argument("--threads", type=arguments.positive_int, default=1, help="CPU threads.")
    parser.add_argument("--device", default="cpu", help="Where to run.")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="Of forward passes.")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    for name in args.arch:
        plain, shared = steps(
            name, width=args.width**0.5, size=args.size, device=device, precision=args.precision
        )
        inputs = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
        labels = torch.randint(5, (args.batch_size,), device=device)
        pairs = time_in_turn(plain, shared, inputs, labels, device=device, seconds=args.seconds)
        ratios = [later / first for first, later in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        first, later = (statistics.median(times) for times in zip(*pairs, strict=True))
        bound = f", at most {BOUNDS[name]} asked" if name in BOUNDS else ""
        print(
            f"{name}, batch {args.batch_size}, {args.precision}: plain {1000 * first:.2f} ms, "
            f"CPG {1000 * later:.2f} ms, ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f}{bound}; "
            f"{len(pairs)} pairs, {device}, {args.threads} threads, torch {torch.__version__})"
        )


def steps(name: str, *, width: float, size: int, device: torch.device, precision: str) -> tuple[Step, Step]:
    """A training step of the plain network, and one of CPG's on a second task."""

    def build(*, width: float, layers=SHARABLE) -> Network:
        if name == "lenet5":
            return lenet5(layers=layers, batch_norm=True, width=width, size=size)
        return BUILDERS[name](layers=layers, width=width, size=size)

    torch.manual_seed(0)
    plain = build(width=width, layers=PLAIN)
    plain.add_head(5)
    plain.to(device)
    usual = SGD(plain.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True)

    shared = SharedNetwork(build=build, width=width)
    shared.begin_task("first", num_classes=5)
    shared.release({key: torch.rand_like(layer.weight) < 0.5 for key, layer in shared.layers().items()})
    shared.begin_task("second", num_classes=5)
    shared.to(device)
    optimizers = [weight_optimizer(shared), piggymask_optimizer(shared)]
    for optimizer, lr in zip(optimizers, (LR, 1e-4), strict=True):
        optimizer.param_groups[0]["lr"] = lr
    method = CPG(shared=shared, weight_decay=WEIGHT_DECAY, freeze_after=1)
    method.before_task()
    method.before_epoch(1)

    def step(network: Network, method: Method, optimizers: Sequence) -> Step:
        network.train()
        context = autocast(device, precision)
        return lambda inputs, labels: train_step(
            network=network,
            method=method,
            optimizers=optimizers,
            inputs=inputs,
            labels=labels,
            autocast=context,
        )

    return step(plain, Method(), [usual]), step(shared.network, method, optimizers)


def time_in_turn(
    first: Step, second: Step, inputs: Tensor, labels: Tensor, *, device: torch.device, seconds: float
) -> list[tuple[float, float]]:
    """Seconds of a step of each, in turn, until each has had `seconds`; three pairs warm up."""

    def timed(step: Step) -> float:
        if device.type == "cpu":
            begun = time.process_time()
            step(inputs, labels)
            return time.process_time() - begun
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        step(inputs, labels)
        torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    for _ in range(3):
        timed(first), timed(second)
    pairs = []
    spent = 0.0
    while spent < 2 * seconds or len(pairs) < 2:
        # Who goes first changes from pair to pair.
        if len(pairs) % 2:
            later, earlier = timed(second), timed(first)
        else:
            earlier, later = timed(first), timed(second)
        pairs.append((earlier, later))
        spent += earlier + later
    return pairs


if __name__ == "__main__":
    errors.run(main)
