"""Perceiver IO (Jaegle et al. 2022) with one input projection per modality."""

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from models.attention import CrossAttention, Projected
from models.layers import Layers, PrivateLinear
from models.network import MultimodalNetwork
from models.perceiver import PerceiverFeatures, TrunkSizes


@dataclass(frozen=True, kw_only=True)
class Sizes(TrunkSizes):
    """Sizes of Perceiver IO.

    Attributes:
        depth: number of latent self-attention blocks.
        queries_dim: width of the decoder's output queries.
    """

    depth: int = 3
    queries_dim: int = 512


PERCEIVER_IO_SIZES = asdict(Sizes())


def perceiver_io(
    *,
    layers: Layers,
    dropout: float,
    width: float = 1.0,
    in_channels: int = 3,
    size: int = 32,
    **sizes: float,
) -> MultimodalNetwork:
    """Build a Perceiver IO: latents attend to the inputs once, then to each other.

    The features are the mean latent after a linear layer.

    Args:
        layers: layer types to build from.
        dropout: dropout probability of attention weights and of hidden units of the feed-forwards.
        width: multiplier of the widths of latents, feed-forwards and features, which are rounded down.
            Attention heads and the decoder's queries keep their width.
        in_channels, size: channels and side (in pixels) of the input images.
        sizes: any field of `Sizes`.

    Raises:
        ValueError: if the width leaves no latent units or no features.
    """
    features = PerceiverIOFeatures(
        layers=layers, dropout=dropout, width=width, channels=in_channels, size=size, sizes=Sizes(**sizes)
    )
    features.init_linears()
    return PerceiverIO(features=features, feature_width=features.readout.out_features)


class PerceiverIO(MultimodalNetwork):
    """Perceiver IO with one linear head per task and a decoder for output queries."""

    def forward(self, inputs: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of the active head, or the decoder's outputs (B, M, queries_dim).

        Args:
            inputs: a batch of the current modality.
            queries: (M, queries_dim) for all samples, or (B, M, queries_dim); None: no decoding.
        """
        if queries is None:
            return super().forward(inputs)
        return self.features.decoder(queries, self.features.latents_of(inputs, self.modality))


class PerceiverIOFeatures(PerceiverFeatures):
    """Latents that attend to the inputs once, and a decoder for output queries."""

    def __init__(
        self, *, layers: Layers, dropout: float, width: float, channels: int, size: int, sizes: Sizes
    ) -> None:
        super().__init__(
            layers=layers,
            dropout=dropout,
            width=width,
            channels=channels,
            size=size,
            reads=1,
            blocks=sizes.depth,
            sizes=sizes,
        )
        self.decoder = Decoder(
            width=sizes.queries_dim,
            latent_dim=self.latent_dim,
            heads=sizes.cross_heads,
            head_width=sizes.cross_dim_head,
            dropout=dropout,
        )


# Like a head, the decoder belongs to one task. Classification never trains it, so its weights must not count
# among those that tasks share and prune.
_DECODER_LAYERS = Layers(conv2d=nn.Conv2d, linear=PrivateLinear)


class Decoder(CrossAttention):
    """Cross-attention from output queries to the latents (Perceiver IO, section 3.1).

    Args:
        width: width of the queries.
        latent_dim: width of the latents.
        heads, head_width, dropout: see `CrossAttention`.
    """

    def __init__(self, *, width: int, latent_dim: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__(
            layers=_DECODER_LAYERS, width=width, heads=heads, head_width=head_width, dropout=dropout
        )
        self.latent_norm = nn.LayerNorm(latent_dim)
        self.kv = PrivateLinear(latent_dim, 2 * heads * head_width, bias=False)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """Map queries (M, width) or (B, M, width) and latents (B, N, latent_dim) to (B, M, width)."""
        if queries.dim() == 2:
            queries = queries[None]
        return super().forward(queries, Projected(self.kv(self.latent_norm(latents))))
