"""Initial weights for a network's first task: `--use_imagenet_pretrained` and `--pretrained_file`."""

import argparse
import hashlib
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from models import pretrained
from models.network import Network
from utils.errors import UserError
from utils.tensor_files import read_tensors

# Every architecture has these weights, and unlike torchvision's `DEFAULT` they never change.
_VERSION = "IMAGENET1K_V1"


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        architecture: name of the network's architecture.
        file: the file that holds the weights; None lets torchvision download them.
    """

    architecture: str
    file: Path | None

    @property
    def origin(self) -> str:
        """Identifier of the weights in recipes."""
        if self.file is None:
            return _VERSION
        return f"sha256:{hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]}"

    def put_into(self, network: Network, *, build: Callable[..., Network]) -> None:
        """Copy the weights into `network`; tensors missing from them stay random.

        Raises:
            UserError: if the weights cannot be downloaded or read, or do not fit.
        """
        where = self.file or f"the ImageNet weights of {self.architecture}"
        try:
            source = pretrained.of_architecture(self.architecture)
        except ValueError as error:
            raise UserError(f"--arch {self.architecture}: {error}") from error
        weights = self._downloaded(source.name) if self.file is None else self._read()
        try:
            own = pretrained.start_from(network, weights, pretrained=source, build=build)
        except ValueError as error:
            raise UserError(f"{where} do not fit --arch {self.architecture}: {error}") from error
        logging.info("Started from %s%s", where, f", except {', '.join(own)}" if own else "")

    def _read(self) -> dict[str, Tensor]:
        what, remedy = "a state dict", "save the model's state_dict() alone"
        weights = read_tensors(self.file, what=what, remedy=remedy)
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise UserError(f"{self.file} is not {what}: {remedy}")
        return weights

    def _downloaded(self, name: str) -> dict[str, Tensor]:
        from torchvision.models import get_model_weights

        weights = get_model_weights(name)[_VERSION]
        try:
            return weights.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except (URLError, TimeoutError, ConnectionError) as error:
            raise UserError(
                f"--use_imagenet_pretrained: {weights.url} cannot be downloaded ({error}): download it "
                "elsewhere and pass it with --pretrained_file"
            ) from error
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"--use_imagenet_pretrained: the download of {weights.url} is damaged ({error}): empty "
                f"{torch.hub.get_dir()}/checkpoints and try again"
            ) from error


def start_of(args: argparse.Namespace) -> Start | None:
    """The initial weights that the flags request; None for random ones.

    Raises:
        UserError: if `--pretrained_file` does not exist.
    """
    if not (args.use_imagenet_pretrained or args.pretrained_file):
        return None
    if args.pretrained_file and not args.pretrained_file.is_file():
        raise UserError(f"--pretrained_file {args.pretrained_file} not found: correct the path")
    return Start(args.arch, args.pretrained_file)
