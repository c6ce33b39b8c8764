"""The architectures of `models` with plain layers, for PackNet and the scratch baselines."""

from collections.abc import Callable
from functools import partial

from models import BUILDERS
from models.layers import PLAIN
from models.lenet5 import lenet5
from models.network import Network, Sized
from models.perceiver import PERCEIVER_CLIP_GRAD_NORM, PERCEIVER_PRESETS, PERCEIVER_SIZES, perceiver
from models.perceiver_io import PERCEIVER_IO_SIZES, perceiver_io

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet5": partial(lenet5, layers=PLAIN, batch_norm=False),
    "perceiver": Sized(
        partial(perceiver, layers=PLAIN, dropout=0.0),
        sizes=PERCEIVER_SIZES,
        presets=PERCEIVER_PRESETS,
        multimodal=True,
        clip_grad_norm=PERCEIVER_CLIP_GRAD_NORM,
    ),
    "perceiver_io": Sized(
        partial(perceiver_io, layers=PLAIN, dropout=0.0),
        sizes=PERCEIVER_IO_SIZES,
        presets=PERCEIVER_PRESETS,
        multimodal=True,
        clip_grad_norm=PERCEIVER_CLIP_GRAD_NORM,
    ),
    **{name: partial(build, layers=PLAIN) for name, build in BUILDERS.items()},
}
