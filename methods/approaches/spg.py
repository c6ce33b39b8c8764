"""SPG: parameter-level soft-masking (Konishi et al. 2023).

After each task, the importance of every feature parameter is computed from gradients over that task's data.
While later tasks are learned, the parameter's gradient is scaled down by its importance.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from methods.approaches.base import Approach, ClippedHead, TaskPasses, train_on_learned_statistics
from models.network import Network
from training.method import Batch, Method
from training.parallel import split

# Batch size of the importance pass. Larger batches are only faster: the gradient is summed over the whole
# training set, and its scale does not matter.
IMPORTANCE_BATCH = 512

# Heads that share one forward pass; bounds the memory for their gradients.
HEADS_AT_ONCE = 16


def normalised_importance(gradient: Tensor) -> Tensor:
    """γ = |tanh((g − mean g) / std g)| of one parameter tensor; 0 if the gradient is constant.

    Invariant to the scale of the gradient. std is the sample standard deviation (n − 1).
    """
    if gradient.numel() < 2:
        return torch.zeros_like(gradient)
    std = gradient.std()
    importance = ((gradient - gradient.mean()) / std).tanh_().abs_()
    # Also 0 where std is NaN: an importance must never be NaN.
    return torch.where(std > 0, importance, 0.0)


def task_importance(
    *, network: Network, batches: Callable[[], Iterable[Batch]], autocast: AbstractContextManager
) -> dict[str, Tensor]:
    """Importance of every feature parameter to the tasks of a network, from the newest task's samples.

    The newest task's head contributes the gradient of the cross-entropy, each earlier head that of the sum of
    its logits (cross-head importance). Gradients are summed over all samples, with dropout on if the network
    is in training mode. The importance is the maximum of γ over the heads.

    Args:
        network: the newest task's head is the last one.
        batches: makes one pass over the newest task's training samples per call.
    """
    parameters = dict(network.features.named_parameters())
    # A backbone may name its last layer, each of whose outputs becomes one feature.
    layer = getattr(network.features, "last", None)
    last = [name for name in parameters if layer is not None and name.startswith(f"{layer}.")]
    below = [name for name in parameters if name not in last]
    heads = list(network.classifiers)
    largest = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    forward = split(network.features)

    def take(gradients: Iterable[tuple[str, Tensor]]) -> None:
        for name, gradient in gradients:
            torch.maximum(largest[name], normalised_importance(gradient), out=largest[name])

    for first in range(0, len(heads), HEADS_AT_ONCE):
        group = heads[first : first + HEADS_AT_ONCE]
        totals = [_Total() for _ in group]
        # The gradient of a sum of logits with respect to the features is the same for every sample: the
        # column sums w of the head's weight. Row i of the last layer affects only feature i, so its gradient
        # is w_i times the one for w = 1, which all earlier heads share.
        shared, own = _Total(), _Total()
        for inputs, labels in batches():
            with autocast:
                features = forward(inputs)
            gradients = _Gradients(features, parameters)
            if last and first < len(heads) - 1:
                shared.add(gradients.at(torch.ones_like(features), last))
            cut = features.detach().requires_grad_()
            for head, total in zip(group, totals, strict=True):
                newest = head is heads[-1]
                with autocast:
                    logits = head(cut)
                    loss = cross_entropy(logits, labels, reduction="sum") if newest else logits.sum()
                (upstream,) = torch.autograd.grad(loss, cut)
                if last and newest:
                    own.add(gradients.at(upstream, last))
                total.add(gradients.at(upstream, below))
        for head, total in zip(group, totals, strict=True):
            take(zip(below, total.sums, strict=True))
            if not last:
                continue
            if head is heads[-1]:
                take(zip(last, own.sums, strict=True))
            else:
                factor = head.weight.detach().sum(0)
                take(
                    (name, value * factor.view(-1, *[1] * (value.dim() - 1)))
                    for name, value in zip(last, shared.sums, strict=True)
                )
    return largest


class _Total:
    """A running sum of lists of tensors."""

    def __init__(self) -> None:
        self.sums: Sequence[Tensor] | None = None

    def add(self, values: Sequence[Tensor]) -> None:
        if self.sums is None:
            self.sums = values
        else:
            torch._foreach_add_(self.sums, values)


class _Gradients:
    """Gradients of one forward pass, which serves any number of backward passes."""

    def __init__(self, features: Tensor, parameters: dict[str, nn.Parameter]) -> None:
        self.features = features
        self.parameters = parameters

    def at(self, upstream: Tensor, names: Sequence[str]) -> Sequence[Tensor]:
        """Gradients of the named parameters, given the features' own."""
        chosen = [self.parameters[name] for name in names]
        return torch.autograd.grad(self.features, chosen, upstream, retain_graph=True)


class SoftMaskedSGD(Optimizer):
    """SGD without momentum whose step is w ← w − lr · s ⊙ g.

    The scaling is fused into the update: writing the scaled gradient back first would add a tenth to the
    time of a step, which is memory-bound.

    Args:
        scaled: (parameter, s) pairs; s is a tensor of the parameter's shape, a scalar tensor, or None for 1.
    """

    def __init__(self, scaled: Iterable[tuple[nn.Parameter, Tensor | None]]) -> None:
        pairs = list(scaled)
        super().__init__([parameter for parameter, _ in pairs], {"lr": 0.0})
        self.scales = [scale for _, scale in pairs]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        (group,) = self.param_groups
        for parameter, scale in zip(group["params"], self.scales, strict=True):
            if parameter.grad is None:
                continue
            if scale is None:
                parameter.add_(parameter.grad, alpha=-group["lr"])
            else:
                parameter.addcmul_(parameter.grad, scale, value=-group["lr"])


class AccumulatedImportance(ClippedHead):
    """Updates the importance after a task: Γ ← max(Γ, γ)."""

    def __init__(self, *, spg: "SPG", passes: TaskPasses) -> None:
        super().__init__(network=spg.network, clip=spg.settings.clip)
        self.spg = spg
        self.passes = passes

    def after_task(self) -> None:
        train_on_learned_statistics(self.network)
        newest = task_importance(
            network=self.network,
            batches=lambda: self.passes.batches(IMPORTANCE_BATCH),
            autocast=self.passes.autocast,
        )
        importance = self.spg.importance
        for name, value in newest.items():
            importance[name] = torch.maximum(importance[name], value) if name in importance else value


class SPG(Approach):
    """Scales gradients by 1 − Γ, where Γ is the importance to earlier tasks.

    Attributes:
        importance: Γ (0 to 1) by feature parameter; empty until the first task is learned.
    """

    def __init__(self, **setup: Any) -> None:
        super().__init__(**setup)
        self.importance: dict[str, Tensor] = {}

    def method(self, passes: TaskPasses) -> Method:
        return AccumulatedImportance(spg=self, passes=passes)

    def optimizer(self) -> Optimizer:
        head = self.network.classifiers[self.network.active].parameters()
        scales, head_scale = soft_masks(self.importance)
        return SoftMaskedSGD(
            [
                *((value, scales.get(name)) for name, value in self.feature_parameters().items()),
                *((parameter, head_scale) for parameter in head),
            ]
        )

    def to(self, device: torch.device) -> Self:
        super().to(device)
        self.importance = {name: value.to(device) for name, value in self.importance.items()}
        return self

    def kept(self) -> Iterable[Tensor]:
        return self.importance.values()

    def layer_importance(self) -> dict[str, float]:
        return {
            name.removesuffix(".weight"): round(value.mean().item(), 6)
            for name, value in self.importance.items()
            if name.endswith(".weight")
        }

    def payload(self) -> dict:
        return super().payload() | {"importance": dict(self.importance)}

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> Self:
        approach = super().from_payload(payload, source, **setup)
        approach.importance = dict(payload["importance"])
        return approach


def soft_masks(importance: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Gradient scales: 1 − Γ, and for the head 1 − mean(Γ over all feature parameters).

    Returns:
        1 − Γ by parameter name, and the head's factor as a scalar tensor; {} and None for a first task.
    """
    if not importance:
        return {}, None
    total = sum(value.double().sum() for value in importance.values())
    mean = total / sum(value.numel() for value in importance.values())
    return {name: 1.0 - value for name, value in importance.items()}, (1.0 - mean).float()
