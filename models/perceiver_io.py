"""Perceiver IO (Jaegle et al. 2022) with an input for every modality."""

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
        depth: latent self-attention blocks.
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
    """Latents read the inputs once, then each other; their mean goes through a linear to the features.

    Args:
        layers: the layer types to build from.
        dropout: of attention weights and of the feed-forwards' hidden units.
        width: latents, feed-forwards and features are so many times as wide, rounded down. The widths of
            attention heads and of the decoder's queries stay.
        in_channels, size: of the input images.
        sizes: any of `Sizes`.

    Raises:
        ValueError: for a width that leaves nothing of a latent.
    """
    features = PerceiverIOFeatures(
        layers=layers, dropout=dropout, width=width, channels=in_channels, size=size, sizes=Sizes(**sizes)
    )
    features.init_linears()
    return PerceiverIO(features=features, feature_width=features.readout.out_features)


class PerceiverIO(MultimodalNetwork):
    """Perceiver IO with one linear head a task, and a decoder for output queries."""

    def forward(self, inputs: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of the active head, or what the decoder answers to `queries`.

        Args:
            queries: (M, queries_dim), or (B, M, queries_dim) with queries of each sample's own; the answers
                have the shape (B, M, queries_dim).
        """
        if queries is None:
            return super().forward(inputs)
        return self.features.decoder(queries, self.features.latents_of(inputs, self.modality))


class PerceiverIOFeatures(PerceiverFeatures):
    """A Perceiver that reads the inputs once, with a decoder for output queries."""

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


# A decoder is a head of another kind: what a task asks of the latents is its own, and weights that
# classification never trains must not count among those that tasks share and prune.
_DECODER_LAYERS = Layers(conv2d=nn.Conv2d, linear=PrivateLinear)


class Decoder(CrossAttention):
    """Output queries look at the latents (Perceiver IO, section 3.1).

    Args:
        width: of the queries.
        latent_dim: width of the latents.
        heads, head_width, dropout: of the attention.
    """

    def __init__(self, *, width: int, latent_dim: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__(
            layers=_DECODER_LAYERS, width=width, heads=heads, head_width=head_width, dropout=dropout
        )
        self.latent_norm = nn.LayerNorm(latent_dim)
        self.kv = PrivateLinear(latent_dim, 2 * heads * head_width, bias=False)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """Queries (M, width) or (B, M, width), and latents (B, N, latent_dim), to answers (B, M, width)."""
        if queries.dim() == 2:
            queries = queries[None]
        return super().forward(queries, Projected(self.kv(self.latent_norm(latents))))
