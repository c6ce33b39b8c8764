"""torchvision's architectures with injected layer types and variable width.

For images under `SMALL` pixels the first convolution has stride 1 instead of 2 and no pooling follows it; in
ResNets it is also 3×3 instead of 7×7. From `SMALL` pixels on, the architecture is torchvision's.
"""

import copy
from functools import cache

from torch import channels_last, device, nn

from models.conversion import convert
from models.layers import Layers
from models.network import Network

SMALL = 64


def vgg(name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """Build VGG (Simonyan & Zisserman 2015): five stages of convolutions, two linears of 4096 with dropout.

    See `resnet` for the arguments. Small images need no variant: adaptive pooling resizes the last feature
    map to 7×7.
    """
    check_size(size, smallest=32)
    model = _blueprint(name)
    return _network(model, head="classifier.6", layers=layers, width=width, in_channels=in_channels)


def vgg_cifar100(
    name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 32
) -> Network:
    """Build VGG as CPG (Hung et al. 2019) trains it on CIFAR-100: linears 512 → 4096 → 4096, no dropout.

    See `resnet` for the arguments. Five poolings reduce 32 pixels to one.
    """
    check_size(size, smallest=32)
    with device("meta"):
        model = nn.Sequential(
            *_blueprint(name).features,
            nn.Flatten(),
            nn.Linear(512 * (size // 32) ** 2, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 1),
        )
    return _network(model, head=str(len(model) - 1), layers=layers, width=width, in_channels=in_channels)


def resnet(name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """Build ResNet (He et al. 2016; above 34 layers, torchvision's variant with the stride in the 3×3).

    Args:
        name: torchvision's name of the architecture.
        layers: layer types to build from.
        width: multiplier of all channel counts, which are rounded down.
        in_channels, size: channels and side (in pixels) of the input images.

    Raises:
        ValueError: if the images are too small, or if the width leaves no channels.
    """
    check_size(size, smallest=16)
    model = _blueprint(name)
    if size < SMALL:
        with device("meta"):
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return _network(model, head="fc", layers=layers, width=width, in_channels=in_channels)


def mobile(name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """Build MobileNetV2 (Sandler et al. 2018) or EfficientNet (Tan & Le 2019); arguments as in `resnet`."""
    check_size(size, smallest=32)
    model = _blueprint(name)
    if size < SMALL:
        model.features[0][0].stride = (1, 1)
    return _network(model, head="classifier.1", layers=layers, width=width, in_channels=in_channels)


def check_size(size: int, *, smallest: int) -> None:
    """Reject images that are too small for an architecture.

    Raises:
        ValueError: if `size` is less than `smallest` (both in pixels).
    """
    if size < smallest:
        raise ValueError(f"images of {size} pixels are too small: at least {smallest} are needed")


def _blueprint(name: str) -> nn.Module:
    """torchvision's model on the meta device."""
    return copy.deepcopy(_made_once(name))


@cache
def _made_once(name: str) -> nn.Module:
    # Imported here because torchvision is slow to import and most runs do not need it.
    from torchvision.models import get_model

    with device("meta"):
        return get_model(name, weights=None)


def _network(model: nn.Module, *, head: str, layers: Layers, width: float, in_channels: int) -> Network:
    """Convert `model`, without its last linear layer `head`, to the features of a network."""
    feature_width = model.get_submodule(head).in_features
    model.set_submodule(head, nn.Identity())
    features = convert(model, layers=layers, width=width, in_channels=in_channels)
    network = Network(features=features, feature_width=int(feature_width * width))
    # Convolutions are fastest in this format on CPUs and GPUs: MobileNetV2's time drops by a third.
    return network.to(memory_format=channels_last)
