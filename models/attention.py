"""The blocks that Perceivers are made of, with layer norm before each (Jaegle et al. 2021)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from models.layers import Layers


@dataclass(frozen=True)
class Projected:
    """What attention looks at, as keys and values.

    Attributes:
        kv: (B, N, 2 · inner), keys and values side by side.
        mask: bool (B, N), True for what is attended to; None: all of it.
    """

    kv: Tensor
    mask: Tensor | None = None

    @property
    def samples(self) -> int:
        """How many samples there are; left open where a network is exported, unlike by `len`."""
        return self.kv.shape[0]

    def attend(self, queries: Tensor, *, heads: int, dropout: float) -> Tensor:
        """Multi-head attention, softmax(q kᵀ / √d) v in each head of width d (Vaswani et al. 2017, eq. 1).

        Args:
            queries: (B, M, heads · d).
            dropout: probability of dropping an attention weight.

        Returns:
            (B, M, heads · d). Zeros where a sample attends to nothing.
        """
        q, k, v = (_heads(tensor, heads) for tensor in (queries, *self.kv.chunk(2, dim=-1)))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=_over_heads(self.mask), dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Unprojected:
    """What attention looks at, before the projection to keys and values.

    As q · (K x) = (Kᵀ q) · x and Σ a (V x) = V Σ a x, the queries can look at the elements x themselves,
    and no keys and values are ever made. That is less work where elements are narrower than a head.

    Attributes:
        elements: (B, N, width).
        weight: (2 · inner, width), K over V.
        mask: bool (B, N), True for what is attended to; None: all of it.
    """

    elements: Tensor
    weight: Tensor
    mask: Tensor | None = None

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.elements.shape[0]

    def attend(self, queries: Tensor, *, heads: int, dropout: float) -> Tensor:
        """The same as with keys and values; see `Projected`."""
        to_keys, to_values = self.weight.unflatten(0, (2, heads, -1))
        q = _heads(queries, heads)
        scale = q.shape[-1] ** -0.5
        elements = self.elements[:, None].expand(-1, heads, -1, -1)
        mixed = scaled_dot_product_attention(
            q @ to_keys, elements, elements, attn_mask=_over_heads(self.mask), dropout_p=dropout, scale=scale
        )
        return (mixed @ to_values.transpose(1, 2)).transpose(1, 2).flatten(2)


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """(B, N, heads · d) to (B, heads, N, d)."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _over_heads(mask: Tensor | None) -> Tensor | None:
    """(B, N) to (B, 1, 1, N), the same for every head and query."""
    return None if mask is None else mask[:, None, None, :]


class CrossAttention(nn.Module):
    """Latents, or other queries, look at keys and values that were made elsewhere.

    Args:
        layers: the layer types to build from.
        width: of the queries, and of the output.
        heads, head_width: of the attention; neither grows with the network.
        dropout: of attention weights.
    """

    def __init__(self, *, layers: Layers, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.q = layers.linear(width, heads * head_width, bias=False)
        self.out = layers.linear(heads * head_width, width)

    def forward(self, inputs: Tensor, seen: Projected | Unprojected) -> Tensor:
        """(B, M, width), or (1, M, width) for the same queries in every sample, to (B, M, width)."""
        queries = self.q(self.norm(inputs)).expand(seen.samples, -1, -1)
        return self.out(self._attend(queries, seen))

    def _attend(self, queries: Tensor, seen: Projected | Unprojected) -> Tensor:
        return seen.attend(queries, heads=self.heads, dropout=self.dropout if self.training else 0.0)


class SelfAttention(CrossAttention):
    """Latents look at each other; the arguments are those of `CrossAttention`."""

    def __init__(self, *, layers: Layers, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__(layers=layers, width=width, heads=heads, head_width=head_width, dropout=dropout)
        self.kv = layers.linear(width, 2 * heads * head_width, bias=False)
        self.kv.fused = 2

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, M, width) to the same."""
        normed = self.norm(inputs)
        return self.out(self._attend(self.q(normed), Projected(self.kv(normed))))


class FeedForward(nn.Module):
    """Two linears with a gated GELU between them, x · GELU(g) (Shazeer 2020).

    Args:
        layers: the layer types to build from.
        width: of inputs and outputs.
        hidden: width between the linears.
        dropout: of hidden units.
    """

    def __init__(self, *, layers: Layers, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = layers.linear(width, 2 * hidden)
        self.up.fused = 2
        self.drop = nn.Dropout(dropout)
        self.down = layers.linear(hidden, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, M, width) to the same."""
        values, gates = self.up(self.norm(inputs)).chunk(2, dim=-1)
        return self.down(self.drop(values * gelu(gates)))


class CrossBlock(nn.Module):
    """Cross-attention and a feed-forward, each added to what it sees.

    Args:
        layers: the layer types to build from.
        width, hidden: of the latents, and within the feed-forward.
        heads, head_width: of the attention.
        dropout: of attention weights and of hidden units.
    """

    attention_type: type[CrossAttention] = CrossAttention

    def __init__(
        self, *, layers: Layers, width: int, hidden: int, heads: int, head_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = self.attention_type(
            layers=layers, width=width, heads=heads, head_width=head_width, dropout=dropout
        )
        self.feed_forward = FeedForward(layers=layers, width=width, hidden=hidden, dropout=dropout)

    def forward(self, latents: Tensor, *seen: Projected | Unprojected) -> Tensor:
        """Latents (B, M, width), or (1, M, width), that have looked at what is there to be seen."""
        latents = latents + self.attention(latents, *seen)
        return latents + self.feed_forward(latents)


class SelfBlock(CrossBlock):
    """Self-attention and a feed-forward; the arguments are those of `CrossBlock`."""

    attention_type = SelfAttention
