"""A network of 324 weights, with which tables of thousands of tasks fit on a disk."""

from torch import nn

SIZE = 8


def tiny_net(layers, *, width: float, in_channels: int, size: int) -> nn.Module:
    """Features of images (B, in_channels, 8, 8)."""
    if size != SIZE:
        raise ValueError(f"the image size is {size}, not {SIZE}")
    channels, features = int(4 * width), int(8 * width)
    return nn.Sequential(
        layers.conv2d(in_channels, channels, 3, stride=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        layers.linear(9 * channels, features),
        nn.ReLU(),
    )
