"""Architectures that a file of the user's defines: `--arch path/to/my_net.py:my_net`.

The function takes the layer types (`layers.conv2d`, `layers.linear`) and, as keywords, `width`, `in_channels`
and `size`. It returns a module that maps images (B, in_channels, size, size) to features (B, n). Every
task's head is added to it.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from models.layers import PLAIN, SHARABLE, Layers, PrivateLinear, SharableConv2d, SharableLinear
from models.network import Network
from models.registry import Architecture
from utils.architecture_names import FileArchitecture
from utils.errors import UserError

# A width at which channel counts differ from those at width 1: that of width multiplier 2.
_WIDER = 2.0**0.5


def own_architecture(name: FileArchitecture) -> Architecture:
    """The architecture that a file defines.

    Raises:
        UserError: if the file cannot be run, or lacks the function. Building a network also raises it.
    """
    function = _function(name.file, str(name), name.digest)
    return Architecture(name=str(name), build=partial(_build, function, name.file))


def check_own_architecture(name: FileArchitecture, *, in_channels: int, size: int) -> None:
    """Check what the stages require of an architecture, by building it on the meta device.

    Raises:
        UserError: if a shared layer is not built from `layers`, or a wider network does not contain the
            narrower one.
    """
    _check_once(name, name.file, name.digest, in_channels, size)


@cache
def _check_once(name: FileArchitecture, _file: Path, _digest: str, in_channels: int, size: int) -> None:
    """Once per process, not per task. The name compares as a string, so the file and its digest are given."""
    build = own_architecture(name)
    shapes: dict[tuple[Layers, float], dict[str, torch.Size]] = {}
    for layers in (PLAIN, SHARABLE):
        for width in (1.0, _WIDER):
            try:
                with torch.device("meta"):
                    network = build(layers=layers, width=width, in_channels=in_channels, size=size)
            except ValueError as error:
                raise UserError(f"{name.file}: {name}: {error}") from error
            shapes[layers, width] = {key: value.shape for key, value in network.features.state_dict().items()}
            if layers is SHARABLE:
                _check_shared(network, name=name)
        narrow, wide = shapes[layers, 1.0], shapes[layers, _WIDER]
        for key in sorted({*narrow, *wide}):
            if key not in narrow or key not in wide or not _contains(wide[key], narrow[key]):
                raise UserError(
                    f"{name.file}: {name}: {key} at width {_WIDER:.3f} does not contain the one at width 1: "
                    "scale channel counts with `width`, rounded down"
                )


def _contains(wide: torch.Size, narrow: torch.Size) -> bool:
    return len(wide) == len(narrow) and all(a >= b for a, b in zip(wide, narrow, strict=True))


def _check_shared(network: Network, *, name: FileArchitecture) -> None:
    for key, layer in network.features.named_modules():
        shared = isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, PrivateLinear)
        if shared and not isinstance(layer, SharableConv2d | SharableLinear):
            raise UserError(
                f"{name.file}: {name}: {key} is a torch.nn.{type(layer).__name__}: build convolutions with "
                "layers.conv2d and linears with layers.linear"
            )


@cache
def _function(file: Path, function: str, digest: str) -> Callable[..., nn.Module]:
    """Run a file and return a function of it. `digest` makes a changed file run again."""
    # Not imported: Python would cache its bytecode beside it, and take an old one for a file just changed.
    module = ModuleType(f"architecture_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses, for one, look their module up there
    with _in_one_line(file):
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"--arch {file}:{function}: the file has no function {function}: correct the name")
    return found


def _build(
    function: Callable[..., nn.Module],
    file: Path,
    *,
    layers: Layers,
    width: float,
    in_channels: int,
    size: int,
) -> Network:
    # Builders report a ValueError themselves: a size or width that the architecture does not have.
    with _in_one_line(file, passing=(ValueError, UserError)):
        made = function(layers, width=width, in_channels=in_channels, size=size)
    if isinstance(made, Network):
        return made
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{file}: {function.__name__} returned {type(made).__name__}: return a torch.nn.Module"
        )
    with _in_one_line(file, doing=f" (run on an image of {in_channels}×{size}×{size})"):
        features = _features(made, in_channels=in_channels, size=size)
    if features.dim() != 2:
        raise UserError(
            f"{file}: {function.__name__} maps an image to {features.dim() - 1} dimensions: end it with "
            "nn.Flatten()"
        )
    return Network(features=made, feature_width=features.shape[1])


@torch.no_grad()
def _features(module: nn.Module, *, in_channels: int, size: int) -> torch.Tensor:
    """The features of one black image; changes neither statistics nor the random generator."""
    training = module.training
    features = module.eval()(torch.zeros(1, in_channels, size, size))
    module.train(training)
    return features


@contextmanager
def _in_one_line(
    file: Path, *, doing: str = "", passing: tuple[type[Exception], ...] = (UserError,)
) -> Iterator[None]:
    """Report an error in the user's code in one line, with the number of its line, unless it is `passing`."""
    try:
        yield
    except passing:
        raise
    except Exception as error:  # the file may raise anything
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(file)]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: {type(error).__name__}: {reason.rstrip('.')}{doing}: correct it"
        ) from error
