"""Time a training step on several CPU processes against the same step in one.

    python -m benchmarks.bench_parallel --arch resnet18 --batch_size 512

The two alternate, step by step, so that other load on the machine affects both. The CPU time is that of the
first process: what sharing a batch saves it, less what the exchange costs it.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from models.registry import architectures
from pipeline import flags
from training.parallel import processes, split
from utils import errors
from utils.runtime import set_up_process


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument("--arch", default="resnet18", help="Architecture.")
    parser.add_argument("--batch_size", type=flags.positive_int, default=128, help="Images per step.")
    parser.add_argument("--processes", type=flags.positive_int, default=2, help="Processes, one thread each.")
    parser.add_argument("--steps", type=flags.positive_int, default=10, help="Pairs of steps to time.")
    args = parser.parse_args(argv)
    settings = {"threads": 1, "precision": "fp32", "nondeterministic": False}
    set_up_process(**settings)
    torch.manual_seed(0)
    network = architectures("sharable")[args.arch](width=1.0, in_channels=3, size=32)
    network.add_head(20)
    network.train()
    optimizer = SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    inputs, labels = torch.randn(args.batch_size, 3, 32, 32), torch.randint(20, (args.batch_size,))

    def seconds(forward: Callable) -> tuple[float, float]:
        """Of one step, on the clock and of this process's CPU time."""
        begun, computed = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(forward(inputs), labels).backward()
        optimizer.step()
        return time.perf_counter() - begun, time.process_time() - computed

    with processes(count=args.processes, device="cpu", **settings):
        shared = split(network, trained=True)
        seconds(network), seconds(shared)
        pairs = [(seconds(network), seconds(shared)) for _ in range(args.steps)]
    for kind, title in enumerate(("clock", "CPU time of the first process")):
        alone, together = (statistics.median(pair[side][kind] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1][kind] / pair[0][kind] for pair in pairs)
        print(
            f"{args.arch}, batch {args.batch_size}, {title}: one process {1000 * alone:.0f} ms, "
            f"{args.processes} processes {1000 * together:.0f} ms, ratio {ratio:.2f} ({args.steps} pairs)"
        )


if __name__ == "__main__":
    errors.run(main)
