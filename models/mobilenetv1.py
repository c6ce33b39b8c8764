"""MobileNet (Howard et al. 2017)."""

from torch import channels_last, nn

from models.imagenet import SMALL, check_size
from models.layers import Layers
from models.network import Network, init_layers

# Output channels and stride of each depthwise separable convolution (the paper's table 1).
_SEPARABLE = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)


def mobilenetv1(*, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """Build a MobileNet: a convolution, 13 depthwise separable convolutions, global average pooling.

    Args:
        layers: layer types to build from.
        width: multiplier of all channel counts, which are rounded down.
        in_channels, size: channels and side (in pixels) of the input images. Below 64 pixels the first
            convolution has stride 1.

    Raises:
        ValueError: if the images are too small, or if the width leaves no channels.
    """
    check_size(size, smallest=32)
    if int(32 * width) < 1:
        raise ValueError(f"width {width:.3g} leaves none of 32 channels")

    def block(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = layers.conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    channels = int(32 * width)
    features = nn.Sequential(*block(in_channels, channels, 3, stride=1 if size < SMALL else 2))
    for count, stride in _SEPARABLE:
        outputs = int(count * width)
        depthwise = block(channels, channels, 3, stride=stride, groups=channels)
        features.append(nn.Sequential(*depthwise, *block(channels, outputs, 1)))
        channels = outputs
    features.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    init_layers(features)
    return Network(features=features, feature_width=channels).to(memory_format=channels_last)
