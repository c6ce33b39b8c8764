"""The table of architectures. A new one is one file and one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self

from models import imagenet
from models.alexnet import alexnet
from models.layers import PLAIN, SHARABLE, Layers
from models.lenet5 import lenet5
from models.mobilenetv1 import mobilenetv1
from models.network import Network
from models.perceiver import PERCEIVER_CLIP_GRAD_NORM, PERCEIVER_PRESETS, PERCEIVER_SIZES, perceiver
from models.perceiver_io import PERCEIVER_IO_SIZES, perceiver_io
from models.spherenet import spherenet20

LayersKind = Literal["sharable", "plain"]
LAYERS: dict[LayersKind, Layers] = {"sharable": SHARABLE, "plain": PLAIN}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture; calling it builds a network.

    Attributes:
        name: its name in the registry.
        build: returns the network; takes `width`, `in_channels`, `size` (pixels) and any of `sizes`.
        sizes: keyword arguments that set its sizes, with their defaults.
        presets: for each preset, the sizes that differ from the defaults.
        multimodal: whether its networks are `MultimodalNetwork`s.
        clip_grad_norm: the gradient norm to clip to by default; None disables clipping.
        variants: for each kind of layers, arguments of `build` that only this kind needs.
    """

    name: str
    build: Callable[..., Network]
    sizes: Mapping[str, float] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    multimodal: bool = False
    clip_grad_norm: float | None = None
    variants: Mapping[LayersKind, Mapping[str, object]] = field(default_factory=dict)

    def __call__(self, **arguments: object) -> Network:
        return self.build(**arguments)

    def with_layers(self, kind: LayersKind) -> Self:
        """The same architecture with its layer types fixed."""
        build = partial(self.build, layers=LAYERS[kind], **self.variants.get(kind, {}))
        return replace(self, build=build, variants={})

    def resolved_sizes(self, given: Mapping[str, float], *, preset: str | None = None) -> dict[str, float]:
        """All sizes: the defaults, overridden by the preset, overridden by the given ones.

        Raises:
            ValueError: for a size or a preset that the architecture does not have.
        """
        if unknown := [name for name in given if name not in self.sizes]:
            raise ValueError(f"{self.name} has no {', '.join(unknown)}: leave it out")
        if preset is not None and preset not in self.presets:
            known = f"choose one of {', '.join(self.presets)}" if self.presets else "leave it out"
            raise ValueError(f"{self.name} has no preset {preset}: {known}")
        return {**self.sizes, **(self.presets[preset] if preset is not None else {}), **given}


# Built the same way with both kinds of layers.
BUILDERS: dict[str, Callable[..., Network]] = {
    "alexnet": alexnet,
    "vgg16_bn": partial(imagenet.vgg, "vgg16_bn"),
    "vgg16_bn_cifar100": partial(imagenet.vgg_cifar100, "vgg16_bn"),
    **{f"resnet{depth}": partial(imagenet.resnet, f"resnet{depth}") for depth in (18, 34, 50, 101, 152)},
    "mobilenetv1": mobilenetv1,
    "mobilenetv2": partial(imagenet.mobile, "mobilenet_v2"),
    **{f"efficientnetb{number}": partial(imagenet.mobile, f"efficientnet_b{number}") for number in range(8)},
    "spherenet20": spherenet20,
}

CONVOLUTIONAL = ("lenet5", *BUILDERS)

_perceiver = partial(
    Architecture,
    presets=PERCEIVER_PRESETS,
    multimodal=True,
    clip_grad_norm=PERCEIVER_CLIP_GRAD_NORM,
    variants={"sharable": {"dropout": 0.1}, "plain": {"dropout": 0.0}},
)

_TABLE = (
    Architecture(
        name="lenet5",
        build=lenet5,
        variants={"sharable": {"batch_norm": True}, "plain": {"batch_norm": False}},
    ),
    _perceiver(name="perceiver", build=perceiver, sizes=PERCEIVER_SIZES),
    _perceiver(name="perceiver_io", build=perceiver_io, sizes=PERCEIVER_IO_SIZES),
    *(Architecture(name=name, build=build) for name, build in BUILDERS.items()),
)


def architectures(kind: LayersKind) -> dict[str, Architecture]:
    """Every architecture by name, built from one kind of layers.

    Args:
        kind: "sharable" for CPG's layers, which can carry piggymasks; "plain" for torch's own.
    """
    return {architecture.name: architecture.with_layers(kind) for architecture in _TABLE}
