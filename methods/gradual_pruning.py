"""Gradual magnitude pruning (Zhu & Gupta 2017, "To prune, or not to prune")."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from methods.ownership import OwnedTraining, SharedNetwork


def sparsity_at(step: int, *, initial: float, final: float, span: int) -> float:
    """The cubic schedule, s(t) = s_f + (s_i − s_f)(1 − t / span)³ (Zhu & Gupta 2017, eq. 1).

    Args:
        step: t, counted from the first step of the span; after the span the sparsity stays at `final`.
        initial: s_i.
        final: s_f.
        span: steps over which the sparsity grows; nΔ in the paper.
    """
    done = min(step / span, 1.0)
    return final + (initial - final) * (1.0 - done) ** 3


def smallest(weight: Tensor, *, among: Tensor, k: int) -> Tensor:
    """Select the weights whose magnitude is at most the k-th smallest one.

    Never waits for the device.

    Args:
        weight: any shape.
        among: bool, of the weight's shape; the weights to choose from, at least `k`.
        k: how many to select; ties with the k-th are selected as well.

    Returns:
        A bool mask of the weight's shape.
    """
    if k == 0:
        return torch.zeros_like(among)
    magnitude = weight.abs().masked_fill_(~among, torch.inf)
    # Equal to kthvalue, which a GPU runs in a single thread block.
    cut = magnitude.flatten().topk(k, largest=False, sorted=False).values.max()
    return among & (magnitude <= cut)


class GradualPruning(OwnedTraining):
    """Retrain the newest task while its smallest weights are set free.

    A pruned weight becomes 0 at once and stays 0, its momentum with it. (The published code zeroes it
    only at the next validation, and until then lets momentum move it.) Piggymasks do not change.

    Args:
        optimizer: Optimizer of the weights. The momentum of pruned weights is cleared.
        initial, final: Sparsity of each layer before and after the span, among the task's and free weights.
        interval: Steps between two cuts; Δ in the paper. The last step of the span always cuts.
        span: Steps over which the sparsity grows; nΔ in the paper.
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
        # Pruning moves weights from the task to free, so their count per layer stays the same. On the host,
        # so that a cut need not wait for the device.
        layers = shared.layers()
        counts = torch.stack([self._prunable(layer.owner).sum() for layer in layers.values()])
        self._counts = dict(zip(layers, counts.tolist(), strict=True))

    def after_step(self) -> None:
        self.step += 1
        if self.step <= self.span and (self.step % self.interval == 0 or self.step == self.span):
            self.prune(sparsity_at(self.step, initial=self.initial, final=self.final, span=self.span))

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Bring every layer to `sparsity`: free its k = round(sparsity · count) smallest weights."""
        layers = self.shared.layers()
        released = {
            name: smallest(
                layer.weight,
                among=self._prunable(layer.owner),
                k=round(sparsity * self._counts[name]),
            )
            for name, layer in layers.items()
        }
        self.shared.release(released)
        for name, layer in layers.items():
            momentum = self.optimizer.state[layer.weight].get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(released[name], 0.0)
        self.refresh()

    def _prunable(self, owner: Tensor) -> Tensor:
        """Bool mask of the weights that are free or owned by the newest task."""
        return (owner == 0) | (owner == len(self.shared.tasks))

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
