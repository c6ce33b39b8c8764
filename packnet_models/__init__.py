"""The architectures of `models` with plain layers, for PackNet and the scratch baselines."""

from collections.abc import Callable
from functools import partial

from models.layers import PLAIN
from models.lenet5 import lenet5
from models.network import Network

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "lenet5": partial(lenet5, layers=PLAIN, batch_norm=False),
}
