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
    """Build SPG's AlexNet: three convolutions (64, 128, 256 channels), linears → 2048 → 2048.

    Each convolution is followed by ReLU, dropout and max-pooling. Weights have torch's default
    initialisation.

    Args:
        layers: layer types to build from.
        width: multiplier of all channel counts, which are rounded down.
        size: side of the input images in pixels; kernels are size // 8, size // 10 and 2 pixels wide.
        in_channels: channels of the input images.
        dropout: dropout probabilities of the first two convolutions and of the other layers.

    Raises:
        ValueError: if the images are too small.
    """
    features = _Features(layers=layers, width=width, size=size, in_channels=in_channels, dropout=dropout)
    network = Network(features=features, feature_width=int(2048 * width))
    return network.to(memory_format=torch.channels_last)


class _Features(nn.Module):
    # The layer whose output units are the features, up to ReLU and dropout.
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
        # Convolutions are fastest in this format, on CPUs and GPUs.
        hidden = inputs[..., : self.seen, : self.seen].contiguous(memory_format=torch.channels_last)
        hidden = self.pool1(self.conv1(hidden))
        hidden = self.pool2(self.conv2(hidden))
        hidden = self.pool3(self.conv3(hidden)).flatten(1)
        hidden = self.drop1(self.fc1(hidden))
        return self.drop2(self.fc2(hidden))


def _pooled_and_seen(size: int, kernels: tuple[int, ...]) -> tuple[int, int]:
    """Width of the last pooled map, and how many pixels per image row it depends on.

    Pooling drops an odd last row and column. Cropping the pixels that only those depend on (5 of 32) saves
    30 % of the convolutions' outputs.

    Raises:
        ValueError: if the images are too small.
    """
    if min(kernels) < 1:
        raise ValueError(f"images of {size} pixels are too small: at least 16 are needed")
    width = size
    for kernel in kernels:
        width = (width - kernel + 1) // 2
    if width < 1:
        raise ValueError(f"images of {size} pixels are too small: at least 16 are needed")
    seen = width
    for kernel in reversed(kernels):
        seen = 2 * seen + kernel - 1
    return width, seen
