"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune")."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from methods.ownership import OwnedTraining, SharedNetwork


def sparsity_at(step: int, *, initial: float, final: float, span: int) -> float:
    """The cubic schedule: the sparsity due after `step` of `span` steps (eq. 1)."""
    done = min(step / span, 1.0)
    return final + (initial - final) * (1.0 - done) ** 3


def smallest(weight: Tensor, *, among: Tensor, share: float) -> Tensor:
    """Bool mask of the weights of `among` (bool) up to the k-th smallest |w|, k = round(share · count)."""
    count = int(among.sum())
    k = round(share * count)
    if k == 0:
        return torch.zeros_like(among)
    magnitude = weight.abs()
    cut = magnitude[among].kthvalue(k).values
    return among & (magnitude <= cut)


class GradualPruning(OwnedTraining):
    """Retraining the newest task while its smallest weights are set free.

    A pruned weight becomes 0 at once and stays 0, its momentum with it. (The published code zeroes it
    only at the next validation, and until then lets momentum move it.) Piggymasks stay as they are.

    Args:
        optimizer: of the weights; the momentum of pruned weights is cleared.
        initial, final: sparsity in each layer, among the task's and free weights, before and after.
        interval: prune every `interval` steps, and at the last step of the span.
        span: steps over which the sparsity grows.
    """

    def __init__(
        self,
        *,
        shared: SharedNetwork,
        weight_decay: float,
        optimizer: Optimizer,
        initial: float,
        final: float,
        interval: int,
        span: int,
    ) -> None:
        super().__init__(shared=shared, weight_decay=weight_decay)
        self.optimizer = optimizer
        self.initial, self.final = initial, final
        self.interval, self.span = interval, span
        self.step = 0

    def after_step(self) -> None:
        self.step += 1
        if self.step <= self.span and (self.step % self.interval == 0 or self.step == self.span):
            self.prune(sparsity_at(self.step, initial=self.initial, final=self.final, span=self.span))

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Bring every layer to `sparsity`."""
        index = len(self.shared.tasks)
        released = {
            name: smallest(layer.weight, among=(layer.owner == 0) | (layer.owner == index), share=sparsity)
            for name, layer in self.shared.layers().items()
        }
        self.shared.release(released)
        for name, layer in self.shared.layers().items():
            momentum = self.optimizer.state[layer.weight].get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(released[name], 0.0)
        self.refresh()

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
