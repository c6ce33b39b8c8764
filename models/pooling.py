"""ReLU and 2×2 average pooling after a convolution, in forms that are fast on a CPU.

avg_pool2d is scalar code there and, with small channel counts, costs a third of a LeNet-5 step; a
convolution with 3 input and 6 output channels uses a third of the processor's vector lanes.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad


class _ReluAvgPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        rectified = inputs.relu()
        rows = rectified[:, :, ::2] + rectified[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        spread = interpolate(grad * 0.25, scale_factor=2)
        return torch.ops.aten.threshold_backward(spread, inputs, 0)


class ReluAvgPool2d(nn.Module):
    """max(x, 0), then the mean of each 2×2 window: (B, C, H, W) to (B, C, H/2, W/2), H and W even."""

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or inputs.device.type != "cpu":
            return avg_pool2d(inputs.relu(), 2)
        return _ReluAvgPool.apply(inputs)


def conv2d_by_windows(inputs: Tensor, weight: Tensor) -> Tensor:
    """A convolution without padding whose outputs are sorted by their place in 2×2 pooling windows.

    One convolution of stride 2 with four shifted copies of the kernel computes them all; the mean over
    the second dimension is then the average pooling.

    Args:
        inputs: (B, C, H, W).
        weight: (O, C, K, K), where H − K + 1 and W − K + 1 are even.

    Returns:
        (B, 4, O, (H − K + 1)/2, (W − K + 1)/2), the windows' places in reading order.
    """
    shifted = [pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    return conv2d(inputs, torch.cat(shifted), stride=2).unflatten(1, (4, weight.shape[0]))
