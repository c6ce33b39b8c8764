"""Forward passes over some rows of a batch that compute what they would within the whole batch.

Several processes can thus share a batch: dropout is drawn for the whole batch and cut up, so that masks do
not depend on the number of processes, and batch norms in training use the statistics of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.dropout import drop_


class Rows(TorchFunctionMode):
    """Within this context, a network's inputs are rows `start` to `stop` of a batch of `total` rows.

    Tensors whose first dimension is a multiple of the number of rows belong to the rows, all others to the
    whole batch. Random draws other than dropouts and `Tensor.bernoulli_` are left as they are.

    Args:
        start, stop, total: rows.
        all_reduce: sums a tensor over the processes, in place; may be called after the context, in backward.
    """

    def __init__(self, start: int, stop: int, total: int, *, all_reduce: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.start, self.count, self.total = start, stop - start, total
        self.all_reduce = all_reduce

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        replaced = _REPLACED.get(func)
        if replaced is None:
            return func(*args, **(kwargs or {}))
        return replaced(self, func, *args, **(kwargs or {}))

    def reduced(self, value: Tensor) -> Tensor:
        """A tensor of this process's, summed over the processes."""
        self.all_reduce(value)
        return value

    def drawn(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """The part of `draw(a tensor of ones of the whole batch)` that belongs to the rows.

        Args:
            like: the tensor that is drawn for. The ones have its memory format, on which draws depend.
        """
        per_row, rest = divmod(len(like), self.count) if like.dim() else (0, 1)
        if rest:
            return draw(torch.ones_like(like))
        shape = (per_row * self.total, *like.shape[1:])
        outermost = like.stride(0) * len(like) == like.numel()
        dense = outermost and torch.ops.aten.is_non_overlapping_and_dense(like)
        strides = like.stride() if dense else torch.empty(shape, device="meta").stride()
        ones = torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device).fill_(1)
        return draw(ones)[per_row * self.start : per_row * (self.start + self.count)]


def _dropout(
    rows: Rows, func: Callable, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return func(input, p, training, inplace)
    scale = rows.drawn(input, lambda ones: func(ones, p, True))
    return input.mul_(scale) if inplace else input * scale


def _drop(rows: Rows, func: Callable, values: Tensor, p: float) -> float:
    per_row = values.numel() // rows.count
    return func(values, p, before=rows.start * per_row, total=rows.total * per_row)


def _bernoulli(rows: Rows, func: Callable, filled: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return filled.copy_(rows.drawn(filled, lambda ones: func(ones, *args, **kwargs)))


def _attention(
    rows: Rows,
    func: Callable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention whose dropout is drawn for the whole batch, in torch's order of operations."""
    if dropout_p == 0.0 or is_causal or enable_gqa:
        return func(*(query, key, value, attn_mask, dropout_p, is_causal), scale=scale, enable_gqa=enable_gqa)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.ops.aten._safe_softmax(scores, -1)
    return _dropout(rows, F.dropout, weights, dropout_p) @ value


def _batch_norm(
    rows: Rows,
    func: Callable,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    count = input.numel() // input.shape[1] // rows.count * rows.total
    output, mean, variance = _BatchNorm.apply(input, weight, bias, rows, count, eps)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
    return output


class _BatchNorm(Function):
    """Batch norm over the rows of all processes (Ioffe & Szegedy 2015).

    Gradients of weight and bias are this process's part, like those of all other parameters.
    """

    @staticmethod
    def forward(
        ctx, input: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, count: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.rows, ctx.count = rows, count
        ctx.over = [0, *range(2, input.dim())]
        ctx.shape = [1, -1, *[1] * (input.dim() - 2)]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = rows.reduced(wide.sum(ctx.over)) / count
        # Not from the sum of squares, which would lose digits.
        centred = wide - mean.view(ctx.shape)
        variance = rows.reduced(centred.square().sum(ctx.over)) / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, inverse)
        output = centred.mul_(inverse.view(ctx.shape))
        if weight is not None:
            output = output.mul_(weight.view(ctx.shape)).add_(bias.view(ctx.shape))
        ctx.mark_non_differentiable(mean, variance)
        return output.to(input.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse = ctx.saved_tensors
        normed = (input.to(mean.dtype) - mean.view(ctx.shape)).mul_(inverse.view(ctx.shape))
        wide = grad.to(mean.dtype)
        grad_bias, grad_weight = wide.sum(ctx.over), (wide * normed).sum(ctx.over)
        # Summed over all processes, since every row acts on the statistics.
        both = ctx.rows.reduced(torch.stack((grad_bias, grad_weight))) / ctx.count
        scale = inverse if weight is None else inverse * weight
        inner = wide - both[0].view(ctx.shape) - normed.mul_(both[1].view(ctx.shape))
        grad_input = inner.mul_(scale.view(ctx.shape)).to(input.dtype)
        if weight is None:
            return grad_input, None, None, None, None, None
        return grad_input, grad_weight, grad_bias, None, None, None


_REPLACED: dict[Callable, Callable] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout),
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    Tensor.bernoulli_: _bernoulli,
    drop_: _drop,
}
