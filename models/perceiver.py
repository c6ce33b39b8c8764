"""Perceiver (Jaegle et al. 2021) with one input projection per modality."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.attention import CrossBlock, Projected, SelfBlock, Unprojected
from models.layers import Layers
from models.modalities import Encoding, modality_inputs
from models.network import MultimodalNetwork, init_unit

FEED_FORWARD_FACTOR = 4

# Bytes of keys and values per chunk of an evaluation batch. Unchunked, 500 images of 224 pixels would need
# 13 GB, and 64 GB with five cross-attentions.
EVALUATION_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class TrunkSizes(Encoding):
    """Sizes shared by Perceiver and Perceiver IO, in addition to those of the position encodings.

    Attributes:
        num_latents, latent_dim: number and width of the latent vectors.
        cross_heads, cross_dim_head: number and width of the cross-attention heads.
        latent_heads, latent_dim_head: number and width of the self-attention heads.
        feature_width: width of the features that a classification head sees.
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
        depth: number of layers; each one attends to the inputs again.
        self_per_cross_attn: latent self-attention blocks per layer.
    """

    depth: int = 5
    self_per_cross_attn: int = 1


PERCEIVER_SIZES = asdict(Sizes())
PERCEIVER_PRESETS = {
    "base": {},
    "tiny": {"num_latents": 32, "latent_dim": 128, "depth": 2, "latent_heads": 4},
}

# Without clipping, SGD diverges at a learning rate of 0.01 on BERT embeddings, and of 0.03 on images.
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
    """Build a Perceiver: latents attend to the inputs and to each other in every layer.

    The features are the mean latent after a linear layer. No weights are tied between layers: the paper
    leaves that open, and tasks that share a network benefit from the capacity.

    Args:
        layers: layer types to build from.
        dropout: dropout probability of attention weights and of hidden units of the feed-forwards.
        width: multiplier of the widths of latents, feed-forwards and features, which are rounded down.
            Attention heads keep their width.
        in_channels, size: channels and side (in pixels) of the input images.
        sizes: any field of `Sizes`.

    Raises:
        ValueError: if the width leaves no latent units or no features.
    """
    resolved = Sizes(**sizes)
    features = PerceiverFeatures(
        layers=layers,
        dropout=dropout,
        width=width,
        channels=in_channels,
        size=size,
        reads=resolved.depth,
        blocks=resolved.self_per_cross_attn,
        sizes=resolved,
    )
    features.init_linears()
    return MultimodalNetwork(features=features, feature_width=features.readout.out_features)


class PerceiverFeatures(nn.Module):
    """Latents that attend to the inputs and to each other.

    `inputs[modality]` holds everything tied to one modality; the rest, the trunk, serves all of them.

    Args:
        layers, dropout, width: see `perceiver`.
        channels, size: channels and side (in pixels) of the input images.
        reads: number of cross-attentions to the inputs, each with its own keys and values.
        blocks: self-attention blocks after each cross-attention.
        sizes: the remaining sizes.
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
            raise ValueError(f"width {width:.3g} leaves a Perceiver no latent units or no features")
        self.latent_dim, self.head_width = latent, sizes.cross_dim_head
        hidden = int(FEED_FORWARD_FACTOR * sizes.latent_dim * width)
        common = {"layers": layers, "width": latent, "hidden": hidden, "dropout": dropout}
        self.inputs = modality_inputs(
            channels=channels,
            size=size,
            kv_width=reads * 2 * sizes.cross_heads * sizes.cross_dim_head,
            encoding=sizes,
        )
        # Truncated normal with standard deviation 0.02, cut off at ±2 (Perceiver, section 3.2).
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
        """Initialise all linears at a scale at which plain SGD learns within a few epochs.

        With torch's default, attention starts so uniform and gradients so small that a Perceiver has learned
        nothing about two digits after ten epochs.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_unit(layer)

    def forward(self, inputs: Tensor, *, modality: str = "image") -> Tensor:
        """Features (B, feature_width) of a batch of `modality` (shapes: see `models.modalities`)."""
        return self.pooled(self.latents_of(inputs, modality))

    def latents_of(self, inputs: Tensor, modality: str) -> Tensor:
        """Latents (B, num_latents, latent_dim) after attending to a batch of `modality`.

        In evaluation without gradients, the batch is processed in chunks that fit into `EVALUATION_BYTES`.
        """
        # An export has a symbolic batch size, on which it must not branch.
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self._latents_of(inputs, modality)
        chunks = inputs.split(self.samples_per_chunk(inputs, modality))
        return torch.cat([self._latents_of(chunk, modality) for chunk in chunks])

    def samples_per_chunk(self, inputs: Tensor, modality: str) -> int:
        """Number of samples whose keys and values fit into `EVALUATION_BYTES`, at least 1."""
        read = self.inputs[modality]
        width = read.width if self._skips_projection(inputs, modality) else read.kv.out_features
        sample_bytes = read.count(inputs) * width * inputs.element_size()
        return max(1, EVALUATION_BYTES // max(1, sample_bytes))

    def _latents_of(self, inputs: Tensor, modality: str) -> Tensor:
        read = self.inputs[modality]
        elements, mask = read.elements(inputs)
        if self._skips_projection(inputs, modality):
            weights = read.kv.weight.chunk(len(self.reads))
            return self.encoded([Unprojected(elements, weight, mask) for weight in weights])
        return self.encoded(self._split(read.kv(elements), mask))

    def _skips_projection(self, inputs: Tensor, modality: str) -> bool:
        # On a CPU this shortens a training step of a tiny network on images by a quarter.
        return inputs.device.type == "cpu" and self.inputs[modality].width < self.head_width

    def project(self, inputs: Tensor, modality: str) -> tuple[Tensor, Tensor | None]:
        """Project a batch to the keys and values of every cross-attention, side by side.

        The caller bounds the memory: split large batches by `samples_per_chunk`.

        Returns:
            (B, N, reads · 2 · inner), and a bool mask (B, N), True = attend, or None to attend to all.
        """
        return self.inputs[modality](inputs)

    def trunk(self, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, feature_width) from the keys, values and mask that `project` returns."""
        return self.pooled(self.encoded(self._split(kv, mask)))

    def encoded(self, seen: Sequence[Projected | Unprojected]) -> Tensor:
        """Latents (B, num_latents, latent_dim); each cross-attention attends to its entry of `seen`."""
        latents = self.latents[None]
        for read, blocks, part in zip(self.reads, self.blocks, seen, strict=True):
            latents = read(latents, part)
            for block in blocks:
                latents = block(latents)
        return latents

    def pooled(self, latents: Tensor) -> Tensor:
        """Features (B, feature_width): the mean latent after a linear layer."""
        return self.readout(latents.mean(dim=1))

    def _split(self, kv: Tensor, mask: Tensor | None) -> list[Projected]:
        """Keys and values of each cross-attention."""
        return [Projected(part, mask) for part in kv.chunk(len(self.reads), dim=-1)]
