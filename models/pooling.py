"""ReLU followed by 2×2 average pooling in one operation."""

import torch
from torch import Tensor, nn


class _ReluAvgPool(torch.autograd.Function):
    # avg_pool2d is scalar code on the CPU and costs a third of a LeNet-5 step; sums of strided slices
    # vectorise, and the backward pass needs one buffer less than ReLU and pooling apart.
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
        batch, channels, height, width = grad.shape
        spread = (grad * 0.25)[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        return torch.ops.aten.threshold_backward(spread.reshape(inputs.shape), inputs, 0)


class ReluAvgPool2d(nn.Module):
    """max(x, 0), then the mean of each 2×2 window: (B, C, H, W) to (B, C, H/2, W/2), H and W even."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.device.type != "cpu":
            return nn.functional.avg_pool2d(inputs.relu(), 2)
        return _ReluAvgPool.apply(inputs)
