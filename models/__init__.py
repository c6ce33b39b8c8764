"""Every architecture with CPG's sharable layers. `packnet_models` has the same with plain layers."""

from collections.abc import Callable
from functools import partial

from models import imagenet
from models.alexnet import alexnet
from models.layers import SHARABLE
from models.lenet5 import lenet5
from models.mobilenetv1 import mobilenetv1
from models.network import Network, Sized
from models.perceiver import PERCEIVER_CLIP_GRAD_NORM, PERCEIVER_PRESETS, PERCEIVER_SIZES, perceiver
from models.perceiver_io import PERCEIVER_IO_SIZES, perceiver_io
from models.spherenet import spherenet20

# Those that are the same in both kinds of layers.
BUILDERS: dict[str, Callable[..., Network]] = {
    "alexnet": alexnet,
    "vgg16_bn": partial(imagenet.vgg, "vgg16_bn"),
    "vgg16_bn_cifar100": partial(imagenet.vgg_cifar100, "vgg16_bn"),
    **{f"resnet{depth}": partial(imagenet.resnet, f"resnet{depth}") for depth in (18, 34, 50, 101, 152)},
    "mobilenetv1": mobilenetv1,
    "mobilenetv2": partial(imagenet.mobile, "mobilenet_v2"),
    **{f"efficientnetb{step}": partial(imagenet.mobile, f"efficientnet_b{step}") for step in range(8)},
    "spherenet20": spherenet20,
}

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet5": partial(lenet5, layers=SHARABLE, batch_norm=True),
    "perceiver": Sized(
        partial(perceiver, layers=SHARABLE, dropout=0.1),
        sizes=PERCEIVER_SIZES,
        presets=PERCEIVER_PRESETS,
        multimodal=True,
        clip_grad_norm=PERCEIVER_CLIP_GRAD_NORM,
    ),
    "perceiver_io": Sized(
        partial(perceiver_io, layers=SHARABLE, dropout=0.1),
        sizes=PERCEIVER_IO_SIZES,
        presets=PERCEIVER_PRESETS,
        multimodal=True,
        clip_grad_norm=PERCEIVER_CLIP_GRAD_NORM,
    ),
    **{name: partial(build, layers=SHARABLE) for name, build in BUILDERS.items()},
}
