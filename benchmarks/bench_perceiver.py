"""Measure time and memory of a Perceiver training step with fused and with naive attention.

    python -m benchmarks.bench_perceiver                                       # base, 224×224
    python -m benchmarks.bench_perceiver --size tiny --pixels 32 --batch_size 32 --epoch 2500

Naive attention holds the whole matrix of attention weights, softmax(q kᵀ / √d), in memory. Each case runs in
its own process, so that its peak memory can be measured: on a CPU, the growth of resident memory since before
the first step; on a GPU, the allocated memory. Without a GPU, only the CPU is measured.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models import ARCHITECTURES as SHARABLE
from models import attention
from models.modalities import TOKEN_WIDTH
from packnet_models import ARCHITECTURES as PLAIN
from pipeline import flags
from pipeline.architectures import architecture
from utils import errors
from utils.runtime import autocast, resolve_device, set_up_process, synchronised_clock

CLASSES = 5
TOKENS = 128
REGISTRIES = {"stage 1": PLAIN, "CPG": SHARABLE}


@dataclass(frozen=True)
class Case:
    """What is measured: training steps of one network on one kind of input."""

    stage: str
    modality: str
    naive: bool
    device: str
    precision: str
    threads: int
    repeats: int
    arch: str
    sizes: dict
    pixels: int
    batch_size: int
    cpu_time: bool

    @property
    def title(self) -> str:
        kind = "naive attention" if self.naive else "scaled-dot-product attention"
        return f"{self.device}, {self.precision}, {self.stage}, {self.modality}, {kind}"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    print(
        f"{args.arch} --size {args.size}, {args.pixels}×{args.pixels} pixels or {TOKENS} tokens, "
        f"batch size {args.batch_size}, {args.threads} threads, torch {torch.__version__}"
    )
    for device in devices:
        for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
            for stage in args.stages:
                for modality in args.modalities:
                    compare(args, device=device, precision=precision, stage=stage, modality=modality)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    parser.add_argument(
        "--arch", choices=("perceiver", "perceiver_io"), default="perceiver_io", help="Architecture."
    )
    parser.add_argument(
        "--size", choices=("base", "tiny"), default="base", help="Size preset of the architecture."
    )
    parser.add_argument(
        "--pixels", type=flags.positive_int, default=224, help="Height and width of the images, pixels."
    )
    parser.add_argument("--batch_size", type=flags.positive_int, default=2, help="Samples per step.")
    parser.add_argument("--repeats", type=flags.positive_int, default=3, help="Steps to time.")
    parser.add_argument("--threads", type=flags.positive_int, default=1, help="CPU threads.")
    parser.add_argument(
        "--stages", choices=tuple(REGISTRIES), nargs="+", default=["stage 1"], help="Kinds of layers."
    )
    parser.add_argument(
        "--modalities", choices=("image", "text"), nargs="+", default=["image"], help="Kinds of inputs."
    )
    parser.add_argument(
        "--epoch", type=flags.positive_int, help="Samples per epoch: also print the time of an epoch."
    )
    parser.add_argument(
        "--cpu_time", action="store_true", help="Measure CPU time of the process, for a busy machine."
    )
    return parser.parse_args(argv)


def compare(args: argparse.Namespace, *, device: str, precision: str, stage: str, modality: str) -> None:
    """Print time and memory of a step with both kinds of attention."""
    sizes = architecture(
        args.arch, layers="plain", in_channels=3, size=args.pixels, sizes={"size": args.size}
    ).sizes
    for naive in (False, True):
        case = Case(
            stage=stage,
            modality=modality,
            naive=naive,
            device=device,
            precision=precision,
            threads=args.threads,
            repeats=args.repeats,
            arch=args.arch,
            sizes=sizes,
            pixels=args.pixels,
            batch_size=args.batch_size,
            cpu_time=args.cpu_time,
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, mebibytes = pool.apply(measure, (case,))
        step = statistics.median(seconds)
        times = f"{1000 * step:.1f} ms per step (min {1000 * min(seconds):.1f})"
        line = f"  {case.title}: {times}, {mebibytes:.0f} MiB"
        if args.epoch:
            line += f", {step * args.epoch / args.batch_size:.1f} s per epoch of {args.epoch}"
        print(line)


def measure(case: Case) -> tuple[list[float], float]:
    """Seconds of each step but the first, and peak memory in MiB."""
    set_up_process(threads=case.threads, precision=case.precision, nondeterministic=False)
    device = resolve_device(case.device)
    if case.naive:
        attention.scaled_dot_product_attention = naive_attention
    torch.manual_seed(1)
    build = REGISTRIES[case.stage][case.arch]
    network = build(width=1.0, in_channels=3, size=case.pixels, **case.sizes)
    network.add_head(CLASSES)
    network.modality = case.modality
    network.to(device)
    shape = (3, case.pixels, case.pixels) if case.modality == "image" else (TOKENS, TOKEN_WIDTH)
    inputs = torch.randn(case.batch_size, *shape, device=device)
    labels = torch.randint(CLASSES, (case.batch_size,), device=device)
    clock = synchronised_clock(device, clock=time.process_time if case.cpu_time else time.perf_counter)
    before, seconds = resident(), []
    for _ in range(case.repeats + 1):
        start = clock()
        network.zero_grad(set_to_none=True)
        with autocast(device, case.precision):
            loss = cross_entropy(network(inputs), labels)
        loss.backward()
        seconds.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident() - before
    return seconds[1:], peak


def resident() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def naive_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ / √d) v in separate operations; arguments as in `scaled_dot_product_attention`."""
    scores = queries @ keys.transpose(-2, -1) * (scale or queries.shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return torch.dropout(scores.softmax(dim=-1), dropout_p, True) @ values


if __name__ == "__main__":
    errors.run(main)
