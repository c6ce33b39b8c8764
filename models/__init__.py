"""Every architecture with CPG's sharable layers. `packnet_models` has the same with plain layers."""

from collections.abc import Callable
from functools import partial

from models.layers import SHARABLE
from models.lenet5 import lenet5
from models.network import Network

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet5": partial(lenet5, layers=SHARABLE, batch_norm=True),
}
