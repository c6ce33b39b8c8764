"""PackNet (Mallya & Lazebnik 2018): prune a share of the smallest weights at once, then retrain."""

from torch.optim import Optimizer

from methods.gradual_pruning import GradualPruning
from methods.ownership import SharedNetwork


class PackNetPruning(GradualPruning):
    """Retraining the newest task after one cut, made before the first step.

    Args:
        sparsity: share of each layer's own and free weights that is free afterwards.
    """

    def __init__(
        self, *, shared: SharedNetwork, weight_decay: float, optimizer: Optimizer, sparsity: float
    ) -> None:
        super().__init__(
            shared=shared,
            weight_decay=weight_decay,
            optimizer=optimizer,
            initial=sparsity,
            final=sparsity,
            interval=1,
            span=0,
        )

    def before_task(self) -> None:
        # A resumed run cuts again: what was cut is 0, so the same weights are the smallest.
        self.prune(self.final)
