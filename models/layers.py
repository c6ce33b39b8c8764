"""The layer types that an architecture is written in terms of.

An architecture takes a `Layers` record and builds its convolutions and linears from it: `SHARABLE` gives
CPG's layers, which carry piggymasks, `PLAIN` gives torch's own.

A layer whose outputs are several equal groups that grow separately (keys and values, the halves of a gated
unit) says how many in the attribute `fused`; a layer without it has one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PICK_THRESHOLD = 0.005


class _PickWeights(torch.autograd.Function):
    """w · 1[m > threshold] on earlier tasks' weights, w elsewhere; straight through to m (CPG, eq. 3)."""

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
    """A layer whose weight several tasks share. Without a piggymask it is the plain layer.

    Attributes:
        piggymask: real-valued, of the weight's shape; it picks among the weights in `earlier`.
        earlier: bool, of the weight's shape; the weights that earlier tasks own.
    """

    def add_piggymask(self, values: Tensor, *, earlier: Tensor) -> None:
        """Let the current task pick among the weights in `earlier` by a trainable mask."""
        self.register_parameter("piggymask", nn.Parameter(values))
        self.register_buffer("earlier", earlier, persistent=False)


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer that the current task sees."""
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
    """A linear layer that tasks do not share: each has a copy of its own, as of biases and norms."""


@dataclass(frozen=True)
class Layers:
    """The layer types injected into an architecture."""

    conv2d: Callable[..., nn.Conv2d]
    linear: Callable[..., nn.Linear]


SHARABLE = Layers(conv2d=SharableConv2d, linear=SharableLinear)
PLAIN = Layers(conv2d=nn.Conv2d, linear=nn.Linear)
