"""LeNet-5 as Pick-a-back trains it."""

import torch
from torch import Tensor, nn

from models.layers import Layers, effective_weight
from models.network import Network, init_layers
from models.pooling import ReluAvgPool2d, conv2d_by_windows


def lenet5(
    *, layers: Layers, width: float = 1.0, batch_norm: bool, in_channels: int = 3, size: int = 32
) -> Network:
    """Build LeNet-5: two 5×5 convolutions (6 and 16 channels), linears 400 → 120 → 84.

    State names are the published ones: `features.{0,3,7,9}` without batch norm, `features.{0,4,9,11}` with.
    Identities stand in for the pooling layers, which are fused with the preceding ReLU.

    Args:
        layers: layer types to build from.
        width: multiplier of all channel counts, which are rounded down.
        batch_norm: add a batch norm after each convolution (CPG's version; PackNet's has none).
        in_channels, size: channels and side (in pixels) of the input images.

    Raises:
        ValueError: if pooling does not divide the size evenly, or if the width leaves no channels.
    """
    if size < 16 or size % 4:
        raise ValueError(f"LeNet-5 takes images of 16, 20, 24, … pixels, not {size}")
    first, second, third, fourth = (int(channels * width) for channels in (6, 16, 120, 84))
    if first < 1:
        raise ValueError(f"width {width:.3g} leaves LeNet-5 no channels")
    left = ((size - 4) // 2 - 4) // 2

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        return [layers.conv2d(inputs, outputs, 5, bias=False), *norm, ReluAvgPool2d(), nn.Identity()]

    features = _Features(
        *block(in_channels, first),
        *block(first, second),
        nn.Flatten(),
        layers.linear(second * left * left, third),
        nn.ReLU(inplace=True),
        layers.linear(third, fourth),
        nn.ReLU(inplace=True),
    )
    init_layers(features)
    return Network(features=features, feature_width=fourth)


class _Features(nn.Sequential):
    """A sequential whose first convolution and pooling are fused on a CPU, for speed."""

    # For smaller batches, making the shifted kernels costs more than it saves.
    worthwhile = 16

    def forward(self, inputs: Tensor) -> Tensor:
        # An exported network must work on every device and for every batch size.
        if torch.compiler.is_exporting() or inputs.device.type != "cpu" or len(inputs) < self.worthwhile:
            return super().forward(inputs)
        convolution, norm, *rest = self
        hidden = conv2d_by_windows(inputs, effective_weight(convolution))
        if isinstance(norm, nn.BatchNorm2d):
            hidden = norm(hidden.flatten(0, 1)).view_as(hidden)
            rest = rest[1:]
        hidden = hidden.relu().mean(1)
        for layer in rest:
            hidden = layer(hidden)
        return hidden
