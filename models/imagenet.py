"""The architectures that torchvision has, with injected layer types, and with a width.

Images under `SMALL` pixels keep their resolution longer: the first convolution moves by one pixel instead of
two (in the ResNets it also is 3×3 instead of 7×7), and no pooling follows it. At `SMALL` pixels and more the
architecture is torchvision's own.
"""

import copy
from functools import cache

from torch import channels_last, device, nn

from models.conversion import convert
from models.layers import Layers
from models.network import Network

SMALL = 64


def vgg(name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """VGG (Simonyan & Zisserman 2015): five stages of convolutions, two linears of 4096 with dropout.

    The arguments are those of `resnet`. Smaller images have no version of their own: adaptive pooling makes
    7×7 pixels of what the convolutions leave.
    """
    check_size(size, smallest=32)
    model = _blueprint(name)
    return _network(model, head="classifier.6", layers=layers, width=width, in_channels=in_channels)


def vgg_cifar100(
    name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 32
) -> Network:
    """VGG as CPG (Hung et al. 2019) trains it on CIFAR-100: linears 512 → 4096 → 4096, and no dropout.

    The arguments are those of `resnet`. The five poolings leave one of 32 pixels.
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
    """ResNet (He et al. 2016; with more than 34 layers, torchvision's variant with the stride in the 3×3).

    Args:
        name: torchvision's name for it.
        layers: the layer types to build from.
        width: every channel count is multiplied by this and rounded down.
        in_channels, size: of the input images.

    Raises:
        ValueError: for images that it leaves no 2×2 pixels of, or a width that leaves no channel.
    """
    check_size(size, smallest=16)
    model = _blueprint(name)
    if size < SMALL:
        with device("meta"):
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return _network(model, head="fc", layers=layers, width=width, in_channels=in_channels)


def mobile(name: str, *, layers: Layers, width: float = 1.0, in_channels: int = 3, size: int = 64) -> Network:
    """MobileNetV2 (Sandler et al. 2018) and EfficientNet (Tan & Le 2019); the arguments are `resnet`'s."""
    check_size(size, smallest=32)
    model = _blueprint(name)
    if size < SMALL:
        model.features[0][0].stride = (1, 1)
    return _network(model, head="classifier.1", layers=layers, width=width, in_channels=in_channels)


def check_size(size: int, *, smallest: int) -> None:
    """Refuse images that an architecture leaves too few pixels of.

    Raises:
        ValueError: for a `size` below the `smallest`.
    """
    if size < smallest:
        raise ValueError(f"images of {size} pixels are too small: it takes {smallest} or more")


def _blueprint(name: str) -> nn.Module:
    """torchvision's model without values."""
    return copy.deepcopy(_made_once(name))


@cache
def _made_once(name: str) -> nn.Module:
    # Only here: what else this project does should not wait for torchvision.
    from torchvision.models import get_model

    with device("meta"):
        return get_model(name, weights=None)


def _network(model: nn.Module, *, head: str, layers: Layers, width: float, in_channels: int) -> Network:
    """The network whose features are `model`, converted, but for its last linear layer `head`."""
    feature_width = model.get_submodule(head).in_features
    model.set_submodule(head, nn.Identity())
    features = convert(model, layers=layers, width=width, in_channels=in_channels)
    network = Network(features=features, feature_width=int(feature_width * width))
    # What a CPU's and a GPU's convolutions are fastest with: MobileNetV2 takes two thirds of the time.
    return network.to(memory_format=channels_last)
