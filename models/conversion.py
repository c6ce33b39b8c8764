"""Converting a network of plain torch layers to injected layer types."""

import math
from collections.abc import Callable

import torch
from torch import nn

from models.layers import Layers
from models.network import init_layers


def convert(model: nn.Module, *, layers: Layers, width: float, in_channels: int) -> nn.Module:
    """Replace every convolution, linear and batch norm of `model` in place by one `width` times as wide.

    Every channel count is multiplied by `width` and rounded down, wherever it occurs, so that layers still
    fit: residual shortcuts, squeeze-and-excitation, the linear after a flatten. A depthwise convolution gets
    as many groups as channels; any other grouped convolution gets more groups of the same width. In every
    layer, the narrower weight is the leading region of the wider one.

    Args:
        model: layers in the order of the data flow, starting at the image. Its weights are ignored; it may be
            on the meta device.
        layers: layer types to build from.
        width: √(width multiplier).
        in_channels: channels of the input images; not scaled.

    Returns:
        `model`, initialised: convolutions Kaiming-normal over the fan-out, linears N(0, 0.01), biases 0,
        batch norms 1 and 0.

    Raises:
        ValueError: if another kind of layer has parameters, or if the width leaves no channels.
    """
    scale = _scale(model, width)
    device = torch.get_default_device()
    before = None  # output channels of the previous layer
    for name, layer in list(model.named_modules()):
        # On the meta device to skip torch's default initialisation, which would be overwritten.
        with torch.device("meta"):
            if isinstance(layer, nn.Conv2d):
                inputs = in_channels if before is None else scale(layer.in_channels)
                new = _conv2d(layer, layers=layers, scale=scale, in_channels=inputs)
                before = layer.out_channels
            elif isinstance(layer, nn.Linear):
                new = _linear(layer, layers=layers, scale=scale, before=before or layer.in_features)
                before = layer.out_features
            elif isinstance(layer, nn.BatchNorm2d):
                new = nn.BatchNorm2d(scale(layer.num_features), eps=layer.eps, momentum=layer.momentum)
            elif [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                raise ValueError(f"cannot widen {name}: {type(layer).__name__} is not supported")
            else:
                continue
        model.set_submodule(name, new)
    if device.type != "meta":
        init_layers(model.to_empty(device=device))
    return model


def _scale(model: nn.Module, width: float) -> Callable[[int], int]:
    """Return the function from channel counts to those of the wider network."""
    # Groups keep their width and grow in number, by the same factor everywhere so that all counts still fit.
    numbers = [
        layer.groups
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels
    ]
    groups = math.gcd(*numbers)

    def scale(count: int) -> int:
        in_groups = groups and count % groups == 0
        scaled = count // groups * int(groups * width) if in_groups else int(count * width)
        if scaled < 1:
            raise ValueError(f"width {width:.3g} leaves none of {count} channels")
        return scaled

    return scale


def _conv2d(layer: nn.Conv2d, *, layers: Layers, scale: Callable[[int], int], in_channels: int) -> nn.Conv2d:
    return layers.conv2d(
        in_channels,
        scale(layer.out_channels),
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=scale(layer.groups) if layer.groups > 1 else 1,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )


def _linear(layer: nn.Linear, *, layers: Layers, scale: Callable[[int], int], before: int) -> nn.Linear:
    # A flatten puts channels before pixels, so the leading columns belong to the leading channels.
    pixels, rest = divmod(layer.in_features, before)
    if rest:
        raise ValueError(f"a linear with {layer.in_features} inputs cannot follow {before} channels")
    return layers.linear(scale(before) * pixels, scale(layer.out_features), bias=layer.bias is not None)
