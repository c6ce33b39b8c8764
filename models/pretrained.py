"""Initialising a network with torchvision's ImageNet weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import Network


@dataclass(frozen=True)
class Pretrained:
    """How an architecture corresponds to torchvision's model.

    Attributes:
        name: torchvision's name of the model.
        left_out: prefixes of its state names that the architecture does not have.
        part: prefix of its state names that ours do not have.
        own: prefixes of our state names that it lacks, or has with another kernel size.
    """

    name: str
    left_out: tuple[str, ...]
    part: str = ""
    own: tuple[str, ...] = ()


PRETRAINED = {
    "vgg16_bn": Pretrained("vgg16_bn", left_out=("classifier.6.",)),
    "vgg16_bn_cifar100": Pretrained(
        "vgg16_bn", left_out=("classifier.",), part="features.", own=("45.", "47.")
    ),
    **{
        f"resnet{depth}": Pretrained(f"resnet{depth}", left_out=("fc.",), own=("conv1.",))
        for depth in (18, 34, 50, 101, 152)
    },
    "mobilenetv2": Pretrained("mobilenet_v2", left_out=("classifier.1.",)),
    **{
        f"efficientnetb{step}": Pretrained(f"efficientnet_b{step}", left_out=("classifier.1.",))
        for step in range(8)
    },
}


def of_architecture(architecture: str) -> Pretrained:
    """The entry of `architecture` in `PRETRAINED`.

    Raises:
        ValueError: if torchvision has no weights for it; the message lists the architectures with weights.
    """
    if architecture not in PRETRAINED:
        raise ValueError(f"torchvision has no ImageNet weights for it: choose one of {', '.join(PRETRAINED)}")
    return PRETRAINED[architecture]


@torch.no_grad()
def start_from(
    network: Network,
    weights: Mapping[str, Tensor],
    *,
    pretrained: Pretrained,
    build: Callable[..., Network],
) -> list[str]:
    """Copy torchvision's weights into the leading region of each tensor of `network.features`.

    Args:
        network: a network of width 1 or more; the region beyond the weights keeps its values.
        weights: torchvision's state dict.
        pretrained: how the architecture corresponds to torchvision's model.
        build: builds the architecture, `build(width=…)`.

    Returns:
        State names that keep their values because the weights have no counterpart.

    Raises:
        ValueError: naming missing, unknown or misshapen tensors, or if the network is too narrow.
    """
    with torch.device("meta"):
        expected = build(width=1.0).features.state_dict()
    theirs = {
        name.removeprefix(pretrained.part): value
        for name, value in weights.items()
        if not name.startswith(pretrained.left_out)
    }
    own = [
        name
        for name, value in expected.items()
        if name.startswith(pretrained.own)
        and (name not in theirs or theirs[name].shape[2:] != value.shape[2:])
    ]
    names = expected.keys() - own
    counters = {name for name in names if name.endswith(".num_batches_tracked")}  # older files lack them
    if missing := sorted(names - counters - theirs.keys()):
        raise ValueError(f"the weights lack {', '.join(missing)}")
    if unknown := sorted(theirs.keys() - expected.keys()):
        raise ValueError(f"the weights have unknown names: {', '.join(unknown)}")
    state = network.features.state_dict()
    for name in sorted(names & theirs.keys()):
        value, shape = theirs[name], expected[name].shape
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
        if any(size > room for size, room in zip(shape, state[name].shape, strict=True)):
            raise ValueError(f"{name} of the network is narrower than the weights: use a width of 1 or more")
        state[name][tuple(slice(0, size) for size in shape)] = value
    return own
