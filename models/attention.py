"""Pre-norm attention and feed-forward blocks of Perceivers (Jaegle et al. 2021)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from models.layers import Layers


@dataclass(frozen=True)
class Projected:
    """Inputs of an attention as keys and values.

    Attributes:
        kv: (B, N, 2 · inner), keys and values side by side.
        mask: bool (B, N), True = attend; None: attend to all.
    """

    kv: Tensor
    mask: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples. Unlike `len`, it stays symbolic when a network is exported."""
        return self.kv.shape[0]

    def attend(self, queries: Tensor, *, heads: int, dropout: float) -> Tensor:
        """Multi-head attention, softmax(q kᵀ / √d) v in each head of width d (Vaswani et al. 2017, eq. 1).

        Args:
            queries: (B, M, heads · d).
            heads: number of heads.
            dropout: dropout probability of attention weights.

        Returns:
            (B, M, heads · d). Zeros for a sample that is masked entirely.
        """
        q, k, v = (_heads(tensor, heads) for tensor in (queries, *self.kv.chunk(2, dim=-1)))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=_over_heads(self.mask), dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Unprojected:
    """Inputs of an attention before the projection to keys and values.

    Since q · (K x) = (Kᵀ q) · x and Σ a (V x) = V Σ a x, the queries can attend to the elements x directly,
    without computing keys and values. This is cheaper if elements are narrower than a head.

    Attributes:
        elements: (B, N, width).
        weight: (2 · inner, width), K over V.
        mask: bool (B, N), True = attend; None: attend to all.
    """

    elements: Tensor
    weight: Tensor
    mask: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.elements.shape[0]

    def attend(self, queries: Tensor, *, heads: int, dropout: float) -> Tensor:
        """Return what `Projected.attend` returns for the projected elements."""
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
    """(B, N) to (B, 1, 1, N), which broadcasts over heads and queries."""
    return None if mask is None else mask[:, None, None, :]


class CrossAttention(nn.Module):
    """Attention from latents or other queries to given keys and values.

    Args:
        layers: layer types to build from.
        width: width of the queries and of the output.
        heads, head_width: number and width of the heads; neither grows with the network.
        dropout: dropout probability of attention weights.
    """

    def __init__(self, *, layers: Layers, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.q = layers.linear(width, heads * head_width, bias=False)
        self.out = layers.linear(heads * head_width, width)

    def forward(self, inputs: Tensor, seen: Projected | Unprojected) -> Tensor:
        """Map (B, M, width), or (1, M, width) shared by all samples, to (B, M, width)."""
        queries = self.q(self.norm(inputs)).expand(seen.samples, -1, -1)
        return self.out(self._attend(queries, seen))

    def _attend(self, queries: Tensor, seen: Projected | Unprojected) -> Tensor:
        return seen.attend(queries, heads=self.heads, dropout=self.dropout if self.training else 0.0)


class SelfAttention(CrossAttention):
    """Attention among latents; see `CrossAttention` for the arguments."""

    def __init__(self, *, layers: Layers, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__(layers=layers, width=width, heads=heads, head_width=head_width, dropout=dropout)
        self.kv = layers.linear(width, 2 * heads * head_width, bias=False)
        self.kv.fused = 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, M, width) to the same shape."""
        normed = self.norm(inputs)
        return self.out(self._attend(self.q(normed), Projected(self.kv(normed))))


class FeedForward(nn.Module):
    """Two linears with a gated GELU in between, x · GELU(g) (Shazeer 2020).

    Args:
        layers: layer types to build from.
        width: width of inputs and outputs.
        hidden: number of hidden units.
        dropout: dropout probability of hidden units.
    """

    def __init__(self, *, layers: Layers, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = layers.linear(width, 2 * hidden)
        self.up.fused = 2
        self.drop = nn.Dropout(dropout)
        self.down = layers.linear(hidden, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, M, width) to the same shape."""
        values, gates = self.up(self.norm(inputs)).chunk(2, dim=-1)
        return self.down(self.drop(values * gelu(gates)))


class CrossBlock(nn.Module):
    """Cross-attention and a feed-forward, each with a residual connection.

    Args:
        layers: layer types to build from.
        width: width of the latents.
        hidden: number of hidden units of the feed-forward.
        heads, head_width: number and width of the attention heads.
        dropout: dropout probability of attention weights and of hidden units.
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
        """Map latents (B, M, width), or (1, M, width), to (B, M, width); cross-attention takes `seen`."""
        latents = latents + self.attention(latents, *seen)
        return latents + self.feed_forward(latents)


class SelfBlock(CrossBlock):
    """Self-attention and a feed-forward; see `CrossBlock` for the arguments."""

    attention_type = SelfAttention
