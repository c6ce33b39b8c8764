"""SPG's network: the small AlexNet of HAT (Serrà et al. 2018), for images of 16 pixels or more."""

import torch
from torch import Tensor, nn

from models.dropout import ReluDropout, ReluDropoutMaxPool2d
from models.layers import Layers
from models.network import Network


def alexnet(
    *,
    layers: Layers,
    width: float = 1.0,
    size: int = 32,
    in_channels: int = 3,
    dropout: tuple[float, float] = (0.2, 0.5),
) -> Network:
    """Three convolutions (64, 128, 256 channels), each ReLU, dropout, max-pooling; linears → 2048 → 2048.

    Args:
        layers: the layer types to build from.
        width: every channel count is multiplied by this and rounded down.
        size: of the square input images; kernels are size // 8, size // 10 and 2 pixels wide.
        in_channels: of the input images.
        dropout: of the first two convolutions, and of the rest.

    Weights start as torch's layers do.
    """
    features = _Features(layers=layers, width=width, size=size, in_channels=in_channels, dropout=dropout)
    network = Network(features=features, feature_width=int(2048 * width))
    return network.to(memory_format=torch.channels_last)


class _Features(nn.Module):
    # The layer whose outputs, each by itself, become the features.
    last = "fc2"

    def __init__(
        self, *, layers: Layers, width: float, size: int, in_channels: int, dropout: tuple[float, float]
    ) -> None:
        super().__init__()
        first, rest = dropout
        channels = [in_channels, *(int(count * width) for count in (64, 128, 256))]
        hidden = int(2048 * width)
        kernels = (size // 8, size // 10, 2)
        pooled, self.seen = _pooled_and_seen(size, kernels)
        self.conv1, self.conv2, self.conv3 = (
            layers.conv2d(inputs, outputs, kernel)
            for inputs, outputs, kernel in zip(channels[:-1], channels[1:], kernels, strict=True)
        )
        self.fc1 = layers.linear(channels[-1] * pooled**2, hidden)
        self.fc2 = layers.linear(hidden, hidden)
        self.pool1, self.pool2, self.pool3 = (ReluDropoutMaxPool2d(p) for p in (first, first, rest))
        self.drop1, self.drop2 = ReluDropout(rest), ReluDropout(rest)

    def forward(self, inputs: Tensor) -> Tensor:
        # Channels last is what a CPU's and a GPU's convolutions are fastest with.
        hidden = inputs[..., : self.seen, : self.seen].contiguous(memory_format=torch.channels_last)
        hidden = self.pool1(self.conv1(hidden))
        hidden = self.pool2(self.conv2(hidden))
        hidden = self.pool3(self.conv3(hidden)).flatten(1)
        hidden = self.drop1(self.fc1(hidden))
        return self.drop2(self.fc2(hidden))


def _pooled_and_seen(size: int, kernels: tuple[int, ...]) -> tuple[int, int]:
    """Width of the last pooled map, and how many pixels of a row of the image have a part in it.

    Pooling drops an odd last row and column. What only they would have seen is never computed: at 32
    pixels, 5 of them, and 30 % of the convolutions' outputs.

    Raises:
        ValueError: if the image is too small.
    """
    if min(kernels) < 1:
        raise ValueError(f"images of {size} pixels are too small: 16 are enough")
    width = size
    for kernel in kernels:
        width = (width - kernel + 1) // 2
    if width < 1:
        raise ValueError(f"images of {size} pixels are too small: 16 are enough")
    seen = width
    for kernel in reversed(kernels):
        seen = 2 * seen + kernel - 1
    return width, seen
