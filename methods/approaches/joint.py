"""Joint training on all tasks (`mtl`), an upper bound for learning them in sequence."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.approaches.base import Approach, ClippedHeads, TaskPasses
from models.network import Network
from training.method import Method


class Joint(Approach):
    """One network trained on the samples of all tasks. Labels index the classes of all tasks, in order."""

    joint = True

    def begin_task(self, name: str, num_classes: int) -> None:
        super().begin_task(name, num_classes)
        self.network.active = None

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> "Joint":
        approach = super().from_payload(payload, source, **setup)
        approach.network.active = None
        return approach

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def method(self, passes: TaskPasses) -> Method:
        sizes = list(self.tasks.values())
        task_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes), output_size=sum(sizes))
        device = next(self.network.parameters()).device
        return OwnTaskOnly(network=self.network, clip=self.settings.clip, task_of=task_of.to(device))


class OwnTaskOnly(ClippedHeads):
    """Restricts the logits of a sample to the classes of its own task.

    Args:
        task_of: int64 (classes of all tasks,), the task of each class.
    """

    def __init__(self, *, network: Network, clip: float, task_of: Tensor) -> None:
        super().__init__(network=network, clip=clip)
        self.task_of = task_of

    def select(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.masked_fill(self.task_of != self.task_of[labels, None], -torch.inf)
