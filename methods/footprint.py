"""The footprint of a network and its tasks: parameters, bytes, multiply-adds and shares of ownership."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from methods.ownership import SharedNetwork
from models.network import Network
from training.packing import bytes_of


def footprint(shared: SharedNetwork, task: str, *, inputs: Tensor) -> dict:
    """Measure the storage of `shared` and the computation of a forward pass as `task`.

    Args:
        inputs: One sample of the task as the network reads it, (1, …), on the network's device.

    Returns:
        The task, the names of all tasks, the width multiplier, the shape of the input, and

        parameters: Counts of `shared` weights, of parameters `private` to a task (biases, norms, …; over
            all tasks), of `heads`, and their `total`. Running statistics and counters are excluded.
        bytes: `weights` (all of the above plus running statistics and counters, as in memory), and masks
            packed into bits: `ownership` at ceil(log2(tasks + 1)) bits per shared weight, `piggymasks` at
            one bit per task and weight of earlier tasks at the task's width; and their `total`.
        multiply_adds: For one sample's forward pass through convolutions, linears and attention: `dense` at
            the task's width, and `nonzero`, which leaves out shared weights that are zero.
        owned: Task → its share of all shared weights.
        free: Share of the shared weights that no task owns.
    """
    shared.snapshot()
    seen = shared.as_task(task).requires_grad_(False)
    owned = shared.owned_shares()
    return {
        "task": task,
        "tasks": [record.name for record in shared.tasks],
        "width_multiplier": round(shared.tasks[shared.index_of(task) - 1].width ** 2, 6),
        "input": list(inputs.shape),
        "parameters": _parameters(shared),
        "bytes": stored_bytes(shared),
        "multiply_adds": _multiply_adds(seen, list(shared.layers()), inputs),
        "owned": owned,
        "free": 1.0 - sum(owned.values()),
    }


def packed_bytes(shared: SharedNetwork) -> int:
    """Bytes that send a network to another device, as `training.packing` writes its tensors.

    Free weights are 0 and are not sent. The metadata, about 1 kB, are not counted.
    """
    return bytes_of(shared.payload())


def as_text(metrics: dict) -> str:
    """Format what `footprint` returned as a few aligned lines."""
    parameters, size, work = metrics["parameters"], metrics["bytes"], metrics["multiply_adds"]
    number = metrics["tasks"].index(metrics["task"]) + 1
    shares = [f"{task} {share:.1%}" for task, share in metrics["owned"].items()]
    lines = {
        "seen as": f"{metrics['task']}, task {number} of {len(metrics['tasks'])}, at width multiplier "
        f"{metrics['width_multiplier']}, input {' x '.join(map(str, metrics['input']))}",
        "parameters": f"{parameters['total']:,}: {parameters['shared']:,} shared, "
        f"{parameters['private']:,} private to a task, {parameters['heads']:,} in heads",
        "bytes": f"{size['total']:,}: {size['weights']:,} of weights, {size['ownership']:,} of ownership "
        f"and {size['piggymasks']:,} of piggymasks, packed",
        "multiply-adds": f"{work['dense']:,} dense, {work['nonzero']:,} with weights that are not zero",
        "owned": ", ".join([*shares, f"free {metrics['free']:.1%}"]),
    }
    return "\n".join(f"{name:<14}{text}" for name, text in lines.items())


def _parameters(shared: SharedNetwork) -> dict[str, int]:
    named = {name for name, _ in shared.network.named_parameters()}
    counts = {
        "shared": sum(layer.weight.numel() for layer in shared.layers().values()),
        "private": sum(
            value.numel()
            for record in shared.tasks
            for name, value in record.private.items()
            if name in named
        ),
        "heads": sum(parameter.numel() for parameter in shared.network.classifiers.parameters()),
    }
    return counts | {"total": sum(counts.values())}


def stored_bytes(shared: SharedNetwork) -> dict[str, int]:
    """Bytes of the weights and of the packed masks of `shared`, as `footprint` returns them."""
    weights = [layer.weight for layer in shared.layers().values()]
    private = [value for record in shared.tasks for value in record.private.values()]
    owner_bits = math.ceil(math.log2(len(shared.tasks) + 1)) * sum(weight.numel() for weight in weights)
    piggymask_bits = sum(
        int(((owner > 0) & (owner < number)).sum())
        for number, record in enumerate(shared.tasks, 1)
        for name, owner in shared.owners_as(record.name).items()
        if name in record.piggymasks
    )
    sizes = {
        "weights": size([*weights, *private, *shared.network.classifiers.parameters()]),
        "ownership": math.ceil(owner_bits / 8),
        "piggymasks": math.ceil(piggymask_bits / 8),
    }
    return sizes | {"total": sum(sizes.values())}


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _multiply_adds(network: Network, shared_layers: list[str], inputs: Tensor) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(inputs)
    # torch counts a multiply-add as two operations and prefixes module names with the root's class.
    counts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    dense = counter.get_total_flops() // 2
    skipped = 0.0
    for name in shared_layers:
        weight = network.get_submodule(name).weight
        zeros = 1.0 - weight.count_nonzero().item() / weight.numel()
        skipped += zeros * counts.get(f"{type(network).__name__}.{name}", 0)
    return {"dense": dense, "nonzero": round(dense - skipped)}
