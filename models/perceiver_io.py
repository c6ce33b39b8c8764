"""Perceiver IO (Jaegle et al. 2022) with an input for every modality."""

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from models.attention import CrossAttention, FeedForward, SelfAttention, latent_vectors
from models.layers import Layers, PrivateLinear
from models.modalities import Encoding, modality_inputs
from models.network import MultimodalNetwork


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the network, each a keyword of `perceiver_io`.

    Attributes:
        num_latents, latent_dim: how many latent vectors, and how wide.
        depth: latent self-attention blocks.
        cross_heads, cross_dim_head, latent_heads, latent_dim_head: heads of the attentions, and their width.
        num_freq_bands, max_freq: of the position encoding of images.
        max_text_length: tokens that have a position.
        queries_dim: width of the decoder's output queries.
        feature_width: of the features that a head sees.
    """

    num_latents: int = 256
    latent_dim: int = 512
    depth: int = 3
    cross_heads: int = 1
    cross_dim_head: int = 64
    latent_heads: int = 8
    latent_dim_head: int = 64
    num_freq_bands: int = 6
    max_freq: float = 10.0
    max_text_length: int = 512
    queries_dim: int = 512
    feature_width: int = 84


SIZES = asdict(Sizes())
PRESETS = {
    "base": {},
    "tiny": {"num_latents": 32, "latent_dim": 128, "depth": 2, "latent_heads": 4},
}
FEED_FORWARD_FACTOR = 4


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
    features = PerceiverIO(
        layers=layers, dropout=dropout, width=width, channels=in_channels, size=size, sizes=Sizes(**sizes)
    )
    return PerceiverIONetwork(features=features, feature_width=features.readout.out_features)


class PerceiverIONetwork(MultimodalNetwork):
    """Perceiver IO with one linear head a task, and a decoder for output queries."""

    def forward(self, inputs: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of the active head, or what the decoder answers to `queries`.

        Args:
            queries: (M, queries_dim), or (B, M, queries_dim) with queries of each sample's own; the answers
                have the shape (B, M, queries_dim).
        """
        if queries is None:
            return super().forward(inputs)
        return self.features.decode(*self.features.project(inputs, self.modality), queries)


class PerceiverIO(nn.Module):
    """The features of Perceiver IO; arguments as of `perceiver_io`.

    All that is tied to a modality lies in `inputs[modality]`; the rest, the trunk, is common to all.
    """

    def __init__(
        self, *, layers: Layers, dropout: float, width: float, channels: int, size: int, sizes: Sizes
    ) -> None:
        super().__init__()
        latent, hidden, features = (
            int(count * width)
            for count in (sizes.latent_dim, FEED_FORWARD_FACTOR * sizes.latent_dim, sizes.feature_width)
        )
        if min(latent, features) < 1:
            raise ValueError(f"a Perceiver at width {width:.3g} has nothing left of its latents")
        encoding = Encoding(
            num_freq_bands=sizes.num_freq_bands,
            max_freq=sizes.max_freq,
            max_text_length=sizes.max_text_length,
        )
        kv_width = 2 * sizes.cross_heads * sizes.cross_dim_head
        cross = {"heads": sizes.cross_heads, "head_width": sizes.cross_dim_head, "dropout": dropout}
        own = {"heads": sizes.latent_heads, "head_width": sizes.latent_dim_head, "dropout": dropout}
        self.inputs = modality_inputs(channels=channels, size=size, kv_width=kv_width, encoding=encoding)
        self.latents = latent_vectors(sizes.num_latents, latent)
        self.cross_attention = CrossAttention(layers=layers, width=latent, **cross)
        self.cross_feed_forward = FeedForward(layers=layers, width=latent, hidden=hidden, dropout=dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": SelfAttention(layers=layers, width=latent, **own),
                    "feed_forward": FeedForward(layers=layers, width=latent, hidden=hidden, dropout=dropout),
                }
            )
            for _ in range(sizes.depth)
        )
        self.readout = layers.linear(latent, features)
        self.decoder = Decoder(width=sizes.queries_dim, latent=latent, **cross)

    def forward(self, inputs: Tensor, *, modality: str = "image") -> Tensor:
        """Features (B, feature_width) of a batch of `modality` (shapes: see `models.modalities`)."""
        return self.trunk(*self.project(inputs, modality))

    def project(self, inputs: Tensor, modality: str) -> tuple[Tensor, Tensor | None]:
        """Keys and values (B, N, 2 · inner) of the inputs; the mask bool (B, N), True = attend, or None."""
        return self.inputs[modality](inputs)

    def trunk(self, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, feature_width) from keys and values."""
        return self.readout(self.encoded(kv, mask).mean(dim=1))

    def encoded(self, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents (B, num_latents, latent_dim) that have read the inputs and each other."""
        latents = self.latents[None]
        latents = latents + self.cross_attention(latents, kv, mask)
        latents = latents + self.cross_feed_forward(latents)
        for block in self.blocks:
            latents = latents + block["attention"](latents)
            latents = latents + block["feed_forward"](latents)
        return latents

    def decode(self, kv: Tensor, mask: Tensor | None, queries: Tensor) -> Tensor:
        """What the latents answer to `queries`: (B, M, queries_dim), from (M, queries_dim) or as many."""
        return self.decoder(queries, self.encoded(kv, mask))


# Built of private layers, as it is a head of another kind: what a task asks of the latents is its own, and
# weights that classification never trains must not count among those that tasks share and prune.
_DECODER_LAYERS = Layers(conv2d=nn.Conv2d, linear=PrivateLinear)


class Decoder(CrossAttention):
    """Output queries look at the latents (Perceiver IO, section 3.1).

    Args:
        width: of the queries.
        latent: width of the latents.
    """

    def __init__(self, *, width: int, latent: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__(
            layers=_DECODER_LAYERS, width=width, heads=heads, head_width=head_width, dropout=dropout
        )
        self.latent_norm = nn.LayerNorm(latent)
        self.kv = PrivateLinear(latent, 2 * heads * head_width, bias=False)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """Queries (M, width) or (B, M, width), latents (B, N, latent) to (B, M, width)."""
        if queries.dim() == 2:
            queries = queries[None]
        return super().forward(queries, self.kv(self.latent_norm(latents)))
