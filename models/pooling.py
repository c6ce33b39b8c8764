"""Convolution, ReLU and 2×2 average pooling in forms that are fast on CPUs.

On CPUs, avg_pool2d is scalar code and takes a third of a training step of LeNet-5. A convolution with 3
input and 6 output channels uses only a third of the vector lanes.
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
    """ReLU and 2×2 average pooling: (B, C, H, W) to (B, C, H/2, W/2), H and W even."""

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or inputs.device.type != "cpu":
            return avg_pool2d(inputs.relu(), 2)
        return _ReluAvgPool.apply(inputs)


def conv2d_by_windows(inputs: Tensor, weight: Tensor) -> Tensor:
    """Unpadded convolution with outputs grouped by their position within 2×2 pooling windows.

    One convolution with stride 2 and four shifted copies of the kernel computes all outputs. The mean over
    the second dimension then is the average pooling.

    Args:
        inputs: (B, C, H, W).
        weight: (O, C, K, K); H − K + 1 and W − K + 1 must be even.

    Returns:
        (B, 4, O, (H − K + 1)/2, (W − K + 1)/2); positions within a window in row-major order.
    """
    shifted = [pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    return conv2d(inputs, torch.cat(shifted), stride=2).unflatten(1, (4, weight.shape[0]))
