"""Every architecture with CPG's sharable layers. `packnet_models` has the same with plain layers."""

from collections.abc import Callable
from functools import partial

from models.layers import SHARABLE
from models.lenet5 import lenet5
from models.network import Network, Sized
from models.perceiver_io import PRESETS, SIZES, perceiver_io

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet5": partial(lenet5, layers=SHARABLE, batch_norm=True),
    "perceiver_io": Sized(partial(perceiver_io, layers=SHARABLE, dropout=0.1), sizes=SIZES, presets=PRESETS),
}
