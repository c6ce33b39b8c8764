"""Projecting inputs to keys and values: everything tied to one modality.

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
    """What a network must know about one kind of input.

    Attributes:
        channels: width of an element (pixel, token, …); None: the channels of the task table's images.
        axes: dimensions of the grid of elements.
        encoding: "fourier" for a full grid of fixed size, inputs (B, channels, *grid); "learned" for
            sequences up to a maximum length, inputs (B, L, channels), where padding is all zeros.
        size: elements along each axis of a full grid; None: the side of the task table's images.
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
        num_freq_bands, max_freq: see `fourier_positions`.
        max_text_length: number of positions in a sequence.
    """

    num_freq_bands: int = 6
    max_freq: float = 10.0
    max_text_length: int = 512


def fourier_positions(grid: Sequence[int], *, num_freq_bands: int, max_freq: float) -> Tensor:
    """Fourier position features of every point of a grid (Perceiver, section 3.2).

    Along each axis the position x runs from −1 to 1. Its features are sin(f π x) and cos(f π x) for
    frequencies f evenly spaced from 1 to max_freq / 2, and x itself.

    Args:
        grid: number of points along each axis.
        num_freq_bands: number of frequencies.
        max_freq: twice the highest frequency.

    Returns:
        float64 (points, axes · (2 · num_freq_bands + 1)); the last axis of the grid varies fastest.
    """
    axes = [torch.linspace(-1.0, 1.0, points, dtype=torch.float64) for points in grid]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)[..., None]
    angles = math.pi * positions * torch.linspace(1.0, max_freq / 2, num_freq_bands, dtype=torch.float64)
    return torch.cat((angles.sin(), angles.cos(), positions), dim=-1).flatten(1)


class _Input(nn.Module):
    """Layer norm and K/V projection; each task has its own.

    Attributes:
        width: width of a normalised element, including its position features.
    """

    def __init__(self, *, width: int, kv_width: int) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.kv = PrivateLinear(width, kv_width, bias=False)

    def count(self, inputs: Tensor) -> int:
        """Number of elements N per sample."""
        raise NotImplementedError

    def elements(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised elements with their positions (B, N, width), and the bool mask (B, N) of real ones."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys and values (B, N, kv_width), and a bool mask (B, N), True = attend, or None for all."""
        elements, mask = self.elements(inputs)
        return self.kv(elements), mask


class GridInput(_Input):
    """A full grid whose Fourier position features are appended to each element's channels."""

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

    def count(self, inputs: Tensor) -> int:
        return len(self.positions)

    def elements(self, inputs: Tensor) -> tuple[Tensor, None]:
        """See the base class; inputs (B, channels, *grid), nothing masked."""
        elements = inputs.flatten(2).transpose(1, 2)
        positions = self.positions.to(inputs.dtype).expand(inputs.shape[0], -1, -1)
        return self.norm(torch.cat((elements, positions), dim=-1)), None


class SequenceInput(_Input):
    """Sequences whose learned position embeddings are added to each element's channels."""

    def __init__(
        self, modality: Modality, *, channels: int, size: int, kv_width: int, encoding: Encoding
    ) -> None:
        super().__init__(width=modality.channels, kv_width=kv_width)
        self.positions = nn.Parameter(torch.empty(encoding.max_text_length, modality.channels))
        nn.init.normal_(self.positions, std=0.02)

    def count(self, inputs: Tensor) -> int:
        return inputs.shape[1]

    def elements(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; inputs (B, L, channels), padding masked.

        Raises:
            ValueError: if a sequence has more elements than there are positions.
        """
        length = inputs.shape[1]
        if length > len(self.positions):
            raise ValueError(
                f"a sequence of {length} elements is longer than {len(self.positions)} positions"
            )
        # `norm` rather than `any`, which is ten times slower on a CPU.
        return self.norm(inputs + self.positions[:length]), inputs.norm(dim=-1) > 0


ENCODINGS: dict[str, type[_Input]] = {"fourier": GridInput, "learned": SequenceInput}


def modality_inputs(*, channels: int, size: int, kv_width: int, encoding: Encoding) -> nn.ModuleDict:
    """One input module per modality, by name.

    Args:
        channels, size: channels and side (in pixels) of the task table's images.
        kv_width: total width of keys and values.
        encoding: sizes of the position encodings.
    """
    return nn.ModuleDict(
        {
            name: ENCODINGS[modality.encoding](
                modality, channels=channels, size=size, kv_width=kv_width, encoding=encoding
            )
            for name, modality in MODALITIES.items()
        }
    )
