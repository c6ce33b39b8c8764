"""What a network with its tasks takes: parameters, bytes, multiply-adds, and who owns how much of it."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from methods.ownership import SharedNetwork
from models.network import Network


def footprint(shared: SharedNetwork, task: str, *, inputs: Tensor) -> dict:
    """What `shared` takes to keep, and what a forward pass as `task` takes to compute.

    Args:
        inputs: one sample of the task as the network reads it, (1, …), on the network's device.

    Returns:
        parameters: weights that tasks share, parameters private to a task (biases, norms …; of all tasks),
            heads, and their sum. Running statistics and counters are none.
        bytes: `weights`, of all these and of the running statistics, as they are stored in memory; masks
            packed to the bit: `ownership`, ceil(log2(tasks + 1)) bits a shared weight, and `piggymasks`,
            for each task one bit for each weight of earlier tasks that it sees at its own width; `total`.
        multiply_adds: of one sample's forward pass through convolutions, linears and attention, `dense` at
            the task's width, and `nonzero`, counting of the shared weights those that are not zero.
        owned: task → its share of all shared weights; `free`: the share of none.
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
        "bytes": _bytes(shared),
        "multiply_adds": _multiply_adds(seen, list(shared.layers()), inputs),
        "owned": owned,
        "free": 1.0 - sum(owned.values()),
    }


def as_text(figures: dict) -> str:
    """The figures as a few aligned lines."""
    parameters, size, work = figures["parameters"], figures["bytes"], figures["multiply_adds"]
    number = figures["tasks"].index(figures["task"]) + 1
    shares = [f"{task} {share:.1%}" for task, share in figures["owned"].items()]
    lines = {
        "seen as": f"{figures['task']}, task {number} of {len(figures['tasks'])}, at width multiplier "
        f"{figures['width_multiplier']}, input {' x '.join(map(str, figures['input']))}",
        "parameters": f"{parameters['total']:,}: {parameters['shared']:,} shared, "
        f"{parameters['private']:,} private to a task, {parameters['heads']:,} in heads",
        "bytes": f"{size['total']:,}: {size['weights']:,} of weights, {size['ownership']:,} of ownership "
        f"and {size['piggymasks']:,} of piggymasks, packed",
        "multiply-adds": f"{work['dense']:,} dense, {work['nonzero']:,} with weights that are not zero",
        "owned": ", ".join([*shares, f"free {figures['free']:.1%}"]),
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


def _bytes(shared: SharedNetwork) -> dict[str, int]:
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
        "weights": _size([*weights, *private, *shared.network.classifiers.parameters()]),
        "ownership": math.ceil(owner_bits / 8),
        "piggymasks": math.ceil(piggymask_bits / 8),
    }
    return sizes | {"total": sum(sizes.values())}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _multiply_adds(network: Network, shared_layers: list[str], inputs: Tensor) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(inputs)
    # torch counts a multiply-add as two operations, and names modules from the root's class on.
    counts = {name: sum(of.values()) // 2 for name, of in counter.get_flop_counts().items()}
    dense = counter.get_total_flops() // 2
    spared = 0.0
    for name in shared_layers:
        weight = network.get_submodule(name).weight
        zeros = 1.0 - weight.count_nonzero().item() / weight.numel()
        spared += zeros * counts.get(f"{type(network).__name__}.{name}", 0)
    return {"dense": dense, "nonzero": round(dense - spared)}
