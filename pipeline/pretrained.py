"""The weights that `--use_imagenet_pretrained` and `--pretrained_file` start a first task from."""

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

# Not torchvision's newest, which may be others tomorrow, but those that every architecture has.
_VERSION = "IMAGENET1K_V1"


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        architecture: of the network.
        file: that holds them; None has torchvision download them.
    """

    architecture: str
    file: Path | None

    @property
    def origin(self) -> str:
        """What they are: kept with outputs that depend on them."""
        if self.file is None:
            return _VERSION
        return f"sha256:{hashlib.sha256(self._bytes()).hexdigest()[:16]}"

    def put_into(self, network: Network, *, build: Callable[..., Network]) -> None:
        """Start `network` from them; what they do not reach stays random.

        Raises:
            UserError: if they cannot be had or read, or do not fit.
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
        logging.info("Started from %s%s", where, f", but for {', '.join(own)}" if own else "")

    def _bytes(self) -> bytes:
        if not self.file.is_file():
            raise UserError(f"--pretrained_file {self.file} not found: correct the path")
        return self.file.read_bytes()

    def _read(self) -> dict[str, Tensor]:
        self._bytes()
        try:
            weights = torch.load(self.file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"--pretrained_file {self.file} holds more than tensors, and is not opened: "
                "save the model's state_dict() alone"
            ) from error
        except Exception as error:  # damaged bytes make the reader raise nearly anything
            raise UserError(
                f"--pretrained_file {self.file} is damaged or no PyTorch file: fetch it again"
            ) from error
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise UserError(
                f"--pretrained_file {self.file} is no state dict: save the model's state_dict() alone"
            )
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
                f"--use_imagenet_pretrained: {weights.url} cannot be fetched ({error}): fetch it where there "
                "is a network, and give it with --pretrained_file"
            ) from error
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"--use_imagenet_pretrained: what came from {weights.url} is damaged ({error}): empty "
                f"{torch.hub.get_dir()}/checkpoints and try again"
            ) from error


def start_of(args: argparse.Namespace) -> Start | None:
    """What the flags ask to start from; None starts at random."""
    if not (args.use_imagenet_pretrained or args.pretrained_file):
        return None
    return Start(args.arch, args.pretrained_file)
