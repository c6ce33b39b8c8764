"""Layer types that are injected into architectures.

An architecture takes a `Layers` record and builds its convolutions and linears from it: `SHARABLE` holds
CPG's layers, which can carry piggymasks, and `PLAIN` holds torch's own.

If a layer's outputs are several equal groups that grow separately (keys and values, the halves of a gated
unit), its attribute `fused` is the number of groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PICK_THRESHOLD = 0.005


class _PickWeights(torch.autograd.Function):
    """w · 1[m > threshold] on earlier tasks' weights, w elsewhere; straight-through gradient (CPG, eq. 3)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, piggymask: Tensor, earlier: Tensor) -> Tensor:
        return weight * (piggymask > PICK_THRESHOLD).logical_or_(~earlier)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, piggymask, earlier = ctx.saved_tensors
        picked = (piggymask > PICK_THRESHOLD).logical_or_(~earlier)
        weight_grad = grad * picked if ctx.needs_input_grad[0] else None
        piggymask_grad = grad * weight * earlier if ctx.needs_input_grad[1] else None
        return weight_grad, piggymask_grad, None


class _Sharable(nn.Module):
    """A layer whose weight several tasks share. Without a piggymask it acts like the plain layer.

    Attributes:
        piggymask: real-valued, with the weight's shape; picks among the weights in `earlier`.
        earlier: bool, with the weight's shape; True for weights owned by earlier tasks.
    """

    def add_piggymask(self, values: Tensor, *, earlier: Tensor) -> None:
        """Add a trainable mask by which the current task picks among the weights in `earlier`."""
        self.register_parameter("piggymask", nn.Parameter(values))
        self.register_buffer("earlier", earlier, persistent=False)


def effective_weight(layer: nn.Module) -> Tensor:
    """Weight of a convolution or linear layer as the current task sees it."""
    piggymask = getattr(layer, "piggymask", None)
    if piggymask is None:
        return layer.weight
    return _PickWeights.apply(layer.weight, piggymask, layer.earlier)


class SharableConv2d(_Sharable, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, effective_weight(self), self.bias)


class SharableLinear(_Sharable, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, effective_weight(self), self.bias)


class PrivateLinear(nn.Linear):
    """A linear layer that tasks do not share: like biases and norms, it is copied for each task."""


@dataclass(frozen=True)
class Layers:
    """Layer types to inject into an architecture."""

    conv2d: Callable[..., nn.Conv2d]
    linear: Callable[..., nn.Linear]


SHARABLE = Layers(conv2d=SharableConv2d, linear=SharableLinear)
PLAIN = Layers(conv2d=nn.Conv2d, linear=nn.Linear)
