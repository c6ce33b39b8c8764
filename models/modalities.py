"""How inputs of a kind become keys and values: all that is tied to one modality.

A new modality is one entry in `MODALITIES`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import PrivateLinear

TOKEN_WIDTH = 768


@dataclass(frozen=True)
class Modality:
    """What a network must know of a kind of input.

    Attributes:
        channels: width of one element (pixel, token, …); None: as many as the task table's images have.
        axes: of the grid that the elements lie on.
        encoding: "fourier" for a full grid of fixed size, inputs (B, channels, *grid); "learned" for
            sequences of any length up to a maximum, inputs (B, L, channels), where padding is all zero.
        size: elements along each axis of a full grid; None: as many as the table's images have pixels.
    """

    channels: int | None
    axes: int
    encoding: str
    size: int | None = None


MODALITIES: dict[str, Modality] = {
    "image": Modality(channels=None, axes=2, encoding="fourier"),
    "text": Modality(channels=TOKEN_WIDTH, axes=1, encoding="learned"),
}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Sizes of the position encodings.

    Attributes:
        num_freq_bands, max_freq: of `fourier_positions`.
        max_text_length: elements of a sequence that have a position.
    """

    num_freq_bands: int = 6
    max_freq: float = 10.0
    max_text_length: int = 512


def fourier_positions(grid: Sequence[int], *, num_freq_bands: int, max_freq: float) -> Tensor:
    """Position features of every point of a grid (Perceiver, section 3.2), float64.

    Along each axis a position x runs from −1 to 1; its features are sin(f π x) and cos(f π x) for
    `num_freq_bands` frequencies f evenly spaced from 1 to max_freq / 2, and x itself.

    Args:
        grid: points along each axis.

    Returns:
        (points, axes · (2 · num_freq_bands + 1)), the last axis of the grid running fastest.
    """
    axes = [torch.linspace(-1.0, 1.0, points, dtype=torch.float64) for points in grid]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)[..., None]
    angles = math.pi * positions * torch.linspace(1.0, max_freq / 2, num_freq_bands, dtype=torch.float64)
    return torch.cat((angles.sin(), angles.cos(), positions), dim=-1).flatten(1)


class _Input(nn.Module):
    """Layer norm and the projection to keys and values; each task has its own."""

    def __init__(self, *, width: int, kv_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.kv = PrivateLinear(width, kv_width, bias=False)

    def elements(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The elements with their positions, normed, (B, N, width), and which are real, bool (B, N)."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys and values (B, N, kv_width), and the mask bool (B, N), True = attend, or None for all."""
        elements, mask = self.elements(inputs)
        return self.kv(elements), mask


class GridInput(_Input):
    """A full grid with Fourier features as positions, appended to each element's channels."""

    def __init__(
        self, modality: Modality, *, channels: int, size: int, kv_width: int, encoding: Encoding
    ) -> None:
        channels, size = modality.channels or channels, modality.size or size
        width = channels + modality.axes * (2 * encoding.num_freq_bands + 1)
        super().__init__(width=width, kv_width=kv_width)
        positions = fourier_positions(
            [size] * modality.axes, num_freq_bands=encoding.num_freq_bands, max_freq=encoding.max_freq
        )
        self.register_buffer("positions", positions, persistent=False)

    def elements(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Of inputs (B, channels, *grid); nothing is masked."""
        elements = inputs.flatten(2).transpose(1, 2)
        positions = self.positions.to(inputs.dtype).expand(inputs.shape[0], -1, -1)
        return self.norm(torch.cat((elements, positions), dim=-1)), None


class SequenceInput(_Input):
    """Sequences with learned positions, added to each element's channels."""

    def __init__(
        self, modality: Modality, *, channels: int, size: int, kv_width: int, encoding: Encoding
    ) -> None:
        super().__init__(width=modality.channels, kv_width=kv_width)
        self.positions = nn.Parameter(torch.empty(encoding.max_text_length, modality.channels))
        nn.init.normal_(self.positions, std=0.02)

    def elements(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of inputs (B, L, channels); padding is masked.

        Raises:
            ValueError: if a sequence is longer than there are positions.
        """
        length = inputs.shape[1]
        if length > len(self.positions):
            raise ValueError(
                f"a sequence of {length} elements is longer than {len(self.positions)} positions"
            )
        # A norm of 0, rather than `any`, which takes a CPU ten times as long.
        return self.norm(inputs + self.positions[:length]), inputs.norm(dim=-1) > 0


ENCODINGS: dict[str, type[_Input]] = {"fourier": GridInput, "learned": SequenceInput}


def modality_inputs(*, channels: int, size: int, kv_width: int, encoding: Encoding) -> nn.ModuleDict:
    """One input for every modality, by name.

    Args:
        channels, size: of the task table's images.
        kv_width: of keys and values, side by side.
    """
    return nn.ModuleDict(
        {
            name: ENCODINGS[modality.encoding](
                modality, channels=channels, size=size, kv_width=kv_width, encoding=encoding
            )
            for name, modality in MODALITIES.items()
        }
    )
