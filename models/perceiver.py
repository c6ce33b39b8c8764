"""Perceiver (Jaegle et al. 2021) with an input for every modality."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.attention import CrossBlock, Projected, SelfBlock, Unprojected
from models.layers import Layers
from models.modalities import Encoding, modality_inputs
from models.network import MultimodalNetwork, init_unit

FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class TrunkSizes(Encoding):
    """Sizes that Perceiver and Perceiver IO have in common, beside those of the position encodings.

    Attributes:
        num_latents, latent_dim: how many latent vectors, and how wide.
        cross_heads, cross_dim_head, latent_heads, latent_dim_head: heads of the attentions, and their width.
        feature_width: of the features that a head sees.
    """

    num_latents: int = 256
    latent_dim: int = 512
    cross_heads: int = 1
    cross_dim_head: int = 64
    latent_heads: int = 8
    latent_dim_head: int = 64
    feature_width: int = 84


@dataclass(frozen=True, kw_only=True)
class Sizes(TrunkSizes):
    """Sizes of Perceiver.

    Attributes:
        depth: layers, each of which reads the inputs anew.
        self_per_cross_attn: latent self-attention blocks in each.
    """

    depth: int = 5
    self_per_cross_attn: int = 1


PERCEIVER_SIZES = asdict(Sizes())
PERCEIVER_PRESETS = {
    "base": {},
    "tiny": {"num_latents": 32, "latent_dim": 128, "depth": 2, "latent_heads": 4},
}

# Without, SGD diverges on a BERT's embeddings at a learning rate of 0.01, on images at 0.03.
PERCEIVER_CLIP_GRAD_NORM = 1.0


def perceiver(
    *,
    layers: Layers,
    dropout: float,
    width: float = 1.0,
    in_channels: int = 3,
    size: int = 32,
    **sizes: float,
) -> MultimodalNetwork:
    """Latents read the inputs in every layer, and each other; their mean goes through a linear.

    No weights are tied: the paper leaves that open, and a network that tasks share has use for them all.

    Args:
        layers: the layer types to build from.
        dropout: of attention weights and of the feed-forwards' hidden units.
        width: latents, feed-forwards and features are so many times as wide, rounded down. The widths of
            attention heads stay.
        in_channels, size: of the input images.
        sizes: any of `Sizes`.

    Raises:
        ValueError: for a width that leaves nothing of a latent.
    """
    asked = Sizes(**sizes)
    features = PerceiverFeatures(
        layers=layers,
        dropout=dropout,
        width=width,
        channels=in_channels,
        size=size,
        reads=asked.depth,
        blocks=asked.self_per_cross_attn,
        sizes=asked,
    )
    features.init_linears()
    return MultimodalNetwork(features=features, feature_width=features.readout.out_features)


class PerceiverFeatures(nn.Module):
    """Latents that read the inputs and each other.

    All that is tied to a modality lies in `inputs[modality]`; the rest, the trunk, is common to all.

    Args:
        layers, dropout, width: as of `perceiver`.
        channels, size: of the input images.
        reads: how often the latents read the inputs, each time by keys and values of its own.
        blocks: self-attention blocks after each reading.
    """

    def __init__(
        self,
        *,
        layers: Layers,
        dropout: float,
        width: float,
        channels: int,
        size: int,
        reads: int,
        blocks: int,
        sizes: TrunkSizes,
    ) -> None:
        super().__init__()
        latent, features = int(sizes.latent_dim * width), int(sizes.feature_width * width)
        if min(latent, features) < 1:
            raise ValueError(f"a Perceiver at width {width:.3g} has nothing left of its latents")
        self.latent_dim, self.head_width = latent, sizes.cross_dim_head
        hidden = int(FEED_FORWARD_FACTOR * sizes.latent_dim * width)
        common = {"layers": layers, "width": latent, "hidden": hidden, "dropout": dropout}
        self.inputs = modality_inputs(
            channels=channels,
            size=size,
            kv_width=reads * 2 * sizes.cross_heads * sizes.cross_dim_head,
            encoding=sizes,
        )
        # A normal of deviation 0.02, cut off at 2 (Perceiver, section 3.2).
        self.latents = nn.Parameter(torch.empty(sizes.num_latents, latent))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.reads = nn.ModuleList(
            CrossBlock(heads=sizes.cross_heads, head_width=sizes.cross_dim_head, **common)
            for _ in range(reads)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                SelfBlock(heads=sizes.latent_heads, head_width=sizes.latent_dim_head, **common)
                for _ in range(blocks)
            )
            for _ in range(reads)
        )
        self.readout = layers.linear(latent, features)

    def init_linears(self) -> None:
        """First values of all linears, of a scale at which plain SGD learns within a few epochs.

        With those of torch's linears attention starts out so even, and gradients so small, that a Perceiver
        has learned nothing of two digits after ten.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_unit(layer)

    def forward(self, inputs: Tensor, *, modality: str = "image") -> Tensor:
        """Features (B, feature_width) of a batch of `modality` (shapes: see `models.modalities`)."""
        return self.pooled(self.latents_of(inputs, modality))

    def latents_of(self, inputs: Tensor, modality: str) -> Tensor:
        """Latents (B, num_latents, latent_dim) that have read a batch of `modality`."""
        read = self.inputs[modality]
        elements, mask = read.elements(inputs)
        # On a CPU a step of a tiny network on images is a quarter shorter without keys and values.
        if elements.device.type == "cpu" and elements.shape[-1] < self.head_width:
            weights = read.kv.weight.chunk(len(self.reads))
            return self.encoded([Unprojected(elements, weight, mask) for weight in weights])
        return self.encoded(self._split(read.kv(elements), mask))

    def project(self, inputs: Tensor, modality: str) -> tuple[Tensor, Tensor | None]:
        """Keys and values of every reading, side by side, and which of them are to be seen.

        Returns:
            (B, N, reads · 2 · inner), and a mask bool (B, N), True = attend, or None for all.
        """
        return self.inputs[modality](inputs)

    def trunk(self, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, feature_width) from keys and values and their mask, as `project` returns them."""
        return self.pooled(self.encoded(self._split(kv, mask)))

    def encoded(self, seen: Sequence[Projected | Unprojected]) -> Tensor:
        """Latents (B, num_latents, latent_dim) that have read what is `seen` in each reading."""
        latents = self.latents[None]
        for read, blocks, part in zip(self.reads, self.blocks, seen, strict=True):
            latents = read(latents, part)
            for block in blocks:
                latents = block(latents)
        return latents

    def pooled(self, latents: Tensor) -> Tensor:
        """Features (B, feature_width): the mean of the latents, through a linear."""
        return self.readout(latents.mean(dim=1))

    def _split(self, kv: Tensor, mask: Tensor | None) -> list[Projected]:
        """Keys and values of each reading."""
        return [Projected(part, mask) for part in kv.chunk(len(self.reads), dim=-1)]
