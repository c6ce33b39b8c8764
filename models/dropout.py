"""Fast dropout for CPUs, alone and fused with the adjacent ReLU and max-pooling.

On CPUs, torch draws dropout masks one number at a time, which takes almost half of a training step of SPG's
network. Here each random 64-bit word of the default generator serves four elements. Other devices use
torch's own dropout.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, max_pool2d
from torch.overrides import handle_torch_function, has_torch_function_unary

# Elements per chunk, so that mask and values stay in the CPU's cache.
_CHUNK = 1 << 17

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def drop_(values: Tensor, p: float, *, before: int = 0, total: int | None = None) -> float:
    """Zero each element of a CPU tensor in place with probability `p`.

    The probability is exact to 1/65536: an element is kept if 16 random bits are below (1 − p) · 65536,
    rounded. The bits come from torch's default generator and do not depend on the number of threads.

    Args:
        values: floating-point, dense in memory, in any memory format.
        p: dropout probability, 0 ≤ p < 1.
        before, total: the values are part of a larger tensor, for which the bits are drawn: the number of
            elements before them in memory, and of all elements.

    Returns:
        The factor that restores the expected value.

    Raises:
        ValueError: if `p` is out of range, or if the tensor is not dense.
    """
    if has_torch_function_unary(values):  # models.rows
        return handle_torch_function(drop_, (values,), values, p)
    kept = round((1.0 - p) * 65536)
    if not 0 < kept <= 65536:
        raise ValueError(f"dropout probability {p} is outside [0, 1)")
    if kept == 65536:
        return 1.0
    flat = values.as_strided((values.numel(),), (1,))
    if not torch.ops.aten.is_non_overlapping_and_dense(values):
        raise ValueError("values are not dense in memory")
    # Masks are all ones or all zeros and as wide as the elements, so a bitwise and applies them.
    integer = _INTEGERS[values.element_size()]
    bits = flat.view(integer)
    drawn = len(flat) if total is None else total
    words = torch.empty(-(-drawn // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    words = words[before : before + len(flat)]
    for start in range(0, len(flat), _CHUNK):
        part = bits[start : start + _CHUNK]
        mask = words[start : start + len(part)].lt_(kept - 32768).neg_()
        part.bitwise_and_(mask.to(integer))
    return 65536 / kept


class _Drop(torch.autograd.Function):
    """In-place ReLU and dropout; the output is positive exactly where the gradient passes."""

    @staticmethod
    def forward(ctx, inputs: Tensor, p: float) -> Tensor:
        ctx.mark_dirty(inputs)
        ctx.scale = drop_(inputs, p)
        inputs.relu_().mul_(ctx.scale)
        ctx.save_for_backward(inputs)
        return inputs

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, output, 0).mul_(ctx.scale), None


class _DropPool(torch.autograd.Function):
    """ReLU, dropout and 2×2 max-pooling.

    ReLU commutes with the maximum, so it is applied after pooling, to a quarter of the elements. Where the
    result is positive, the maximum was not dropped, so the backward pass needs no mask.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, p: float) -> Tensor:
        # Overwriting the inputs is safe: a convolution does not save its output for the backward pass.
        ctx.scale = drop_(inputs, p)
        pooled, index = torch.ops.aten.max_pool2d_with_indices(inputs, [2, 2])
        pooled.relu_().mul_(ctx.scale)
        ctx.save_for_backward(inputs, pooled, index)
        return pooled

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        inputs, pooled, index = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, pooled, 0).mul_(ctx.scale)
        spread = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, inputs, [2, 2], [2, 2], [0, 0], [1, 1], False, index
        )
        return spread, None


class ReluDropout(nn.Module):
    """ReLU, then dropout with probability `p` in training; may overwrite its input."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or inputs.device.type != "cpu":
            return dropout(inputs.relu(), self.p, self.training)
        return _Drop.apply(inputs, self.p)


class ReluDropoutMaxPool2d(nn.Module):
    """ReLU, dropout with probability `p` in training, and 2×2 max-pooling; may overwrite its input.

    Maps (B, C, H, W) to (B, C, ⌊H/2⌋, ⌊W/2⌋).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or inputs.device.type != "cpu":
            return max_pool2d(dropout(inputs, self.p, self.training), 2).relu()
        return _DropPool.apply(inputs, self.p)
