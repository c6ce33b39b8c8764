"""Turning a network of plain torch layers into the same network in terms of injected layer types."""

import math
from collections.abc import Callable

import torch
from torch import nn

from models.layers import Layers
from models.network import init_layers


def convert(model: nn.Module, *, layers: Layers, width: float, in_channels: int) -> nn.Module:
    """Replace, in place, every convolution, linear and batch norm of `model` by one `width` times as wide.

    Every count of channels becomes `width` times itself, rounded down, wherever it occurs, so that layers go
    on fitting one another: residual shortcuts, squeeze-and-excitation, the linear after a flatten. A
    depthwise convolution gets as many groups as channels; any other grouped one gets more groups of the
    width they had. In both, as in the rest, an old weight's place is the leading region of the wider one.

    Args:
        model: layers in the order in which data passes them, images first. Its weights are not looked at, so
            that it may be on the meta device.
        layers: the layer types to build from.
        width: √(width multiplier).
        in_channels: of the input images; they do not scale.

    Returns:
        `model`: convolutions Kaiming-normal over the fan-out, linears N(0, 0.01), biases 0, batch norms 1
        and 0. What else it holds must have no parameters.

    Raises:
        ValueError: for another layer with parameters, or a width that leaves no channel.
    """
    scale = _scale(model, width)
    device = torch.get_default_device()
    before = None  # channels that the layer before gave
    for name, layer in list(model.named_modules()):
        # On the meta device, since each layer's own initialisation would be for nothing.
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
                raise ValueError(f"{name} is a {type(layer).__name__}, which cannot be made wider")
            else:
                continue
        model.set_submodule(name, new)
    if device.type != "meta":
        init_layers(model.to_empty(device=device))
    return model


def _scale(model: nn.Module, width: float) -> Callable[[int], int]:
    """Maps each count of channels to the wider network's."""
    # Groups keep their width and grow in number; all of them in step, so that any count fits any other.
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
            raise ValueError(f"{count} channels at width {width:.3g} leave none")
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
    # After a flatten, channels come first and pixels run fastest: leading columns are leading channels.
    pixels, rest = divmod(layer.in_features, before)
    if rest:
        raise ValueError(f"a linear layer of {layer.in_features} inputs follows {before} channels")
    return layers.linear(scale(before) * pixels, scale(layer.out_features), bias=layer.bias is not None)
