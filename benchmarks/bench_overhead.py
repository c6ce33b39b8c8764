"""Time a training step of CPG's version of a network against the same network with plain layers.

    python -m benchmarks.bench_overhead --threads 1

Claim: if an earlier task owns half of the weights, so that piggymasks select among them and are trained, a
step takes at most 1.25 times as long for resnet18 and at most 1.5 times as long for lenet5, at batch size 32.
(Measured: 1.10 and 1.28 on one core; see docs/results.md.)

The two alternate, step by step, so that other load on the machine affects both. CPU steps are measured in CPU
time of this process, GPU steps in wall-clock time.
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
from pipeline import flags
from training.loop import train_step
from training.method import Method
from utils import errors
from utils.precisions import PRECISIONS
from utils.runtime import autocast, resolve_device, set_up_process, synchronised_clock

LR, WEIGHT_DECAY = 1e-2, 4e-5
BOUNDS = {"resnet18": 1.25, "lenet5": 1.5}

Step = Callable[[Tensor, Tensor], object]


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument("--arch", nargs="+", default=list(BOUNDS), help="Architectures.")
    parser.add_argument("--batch_size", type=flags.positive_int, default=32, help="Images per step.")
    parser.add_argument(
        "--size", type=flags.positive_int, default=32, help="Height and width of the images, pixels."
    )
    parser.add_argument("--width", type=flags.positive_float, default=1.0, help="Width multiplier.")
    parser.add_argument(
        "--seconds", type=flags.positive_float, default=30.0, help="Seconds to spend on each network."
    )
    parser.add_argument("--threads", type=flags.positive_int, default=1, help="CPU threads.")
    parser.add_argument("--device", default="cpu", help="Device to run on.")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="Floating-point precision.")
    args = parser.parse_args(argv)
    set_up_process(threads=args.threads, precision=args.precision, nondeterministic=False)
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
        bound = f", at most {BOUNDS[name]} claimed" if name in BOUNDS else ""
        print(
            f"{name}, batch {args.batch_size}, {args.precision}: plain {1000 * first:.2f} ms, "
            f"CPG {1000 * later:.2f} ms, ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f}{bound}; "
            f"{len(pairs)} pairs, {device}, {args.threads} threads, torch {torch.__version__})"
        )


def steps(name: str, *, width: float, size: int, device: torch.device, precision: str) -> tuple[Step, Step]:
    """A training step of the plain network and one of CPG on a second task."""

    def build(*, width: float, layers=SHARABLE) -> Network:
        if name == "lenet5":
            return lenet5(layers=layers, batch_norm=True, width=width, size=size)
        return BUILDERS[name](layers=layers, width=width, size=size)

    torch.manual_seed(0)
    plain = build(width=width, layers=PLAIN)
    plain.add_head(5)
    plain.to(device)
    plain_optimizer = SGD(
        plain.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
    )

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

    return step(plain, Method(), [plain_optimizer]), step(shared.network, method, optimizers)


def time_in_turn(
    first: Step, second: Step, inputs: Tensor, labels: Tensor, *, device: torch.device, seconds: float
) -> list[tuple[float, float]]:
    """Seconds of alternating steps until each has run for `seconds`; three pairs warm up."""

    clock = synchronised_clock(device, clock=time.process_time if device.type == "cpu" else time.perf_counter)

    def timed(step: Step) -> float:
        begun = clock()
        step(inputs, labels)
        return clock() - begun

    for _ in range(3):
        timed(first), timed(second)
    pairs = []
    spent = 0.0
    while spent < 2 * seconds or len(pairs) < 2:
        # The order alternates from pair to pair.
        if len(pairs) % 2:
            later, earlier = timed(second), timed(first)
        else:
            earlier, later = timed(first), timed(second)
        pairs.append((earlier, later))
        spent += earlier + later
    return pairs


if __name__ == "__main__":
    errors.run(main)
