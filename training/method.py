"""Hooks through which a continual-learning method acts on the training loop."""

from torch import Tensor
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]


class Method:
    """A continual-learning method. The default hooks do plain training."""

    def before_task(self) -> None:
        """Called before the first step of a task, and again when the task is resumed."""

    def before_epoch(self, epoch: int) -> None:
        """Called before epoch `epoch`, counted from 1."""

    def select(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Restrict the logits (B, classes) to the classes possible for the labels (B,)."""
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise, from logits (B, classes) and labels (B,)."""
        return cross_entropy(logits, labels)

    def after_backward(self) -> None:
        """Edit gradients."""

    def after_step(self) -> None:
        """Edit weights."""

    def after_task(self) -> None:
        """Called after the last step of a task."""

    def state_dict(self) -> dict:
        """State that a resumed run needs beyond the network and the optimizers."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
