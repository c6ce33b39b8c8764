"""PackNet (Mallya & Lazebnik 2018): prune a share of the smallest weights in one cut, then retrain."""

from torch.optim import Optimizer

from methods.gradual_pruning import GradualPruning
from methods.ownership import SharedNetwork


class PackNetPruning(GradualPruning):
    """Retrains the newest task after a single cut, made before the first step.

    Args:
        sparsity: share of each layer's own and free weights that is free after the cut.
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
        # A resumed run repeats the cut: the cut weights are 0, and so still the smallest.
        self.prune(self.final)
