"""Experience replay (`er`): "On Tiny Episodic Memories in Continual Learning" (Chaudhry et al. 2019)."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.approaches.base import Approach, ClippedHeads, TaskPasses, setting
from training.method import Method


@dataclass(frozen=True)
class EROptions:
    er_buffer: int = setting(500, kind="positive_int", help="Samples of earlier tasks that `er` keeps.")
    er_batch: int = setting(64, kind="positive_int", help="Samples that `er` replays per step.")


@dataclass(frozen=True)
class Buffer:
    """Samples of earlier tasks: a uniform draw from all that were offered.

    Args:
        inputs: as stored, (M, …); uint8 for images.
        labels, tasks: int64 (M,): the class within the task, and the index of the task, from 0.
        keys: float64 (M,), uniform in [0, 1); see `reservoir`.
    """

    inputs: Tensor
    labels: Tensor
    tasks: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> "Buffer":
        """The samples with the given indices."""
        return Buffer(**{name: value[rows] for name, value in vars(self).items()})

    def joined(self, other: "Buffer") -> "Buffer":
        """These samples, then the other ones."""
        return Buffer(
            **{name: torch.cat([value, getattr(other, name)]) for name, value in vars(self).items()}
        )

    def to(self, device: torch.device) -> "Buffer":
        """The same samples on `device`."""
        return Buffer(**{name: value.to(device) for name, value in vars(self).items()})


def reservoir(offered: Buffer, *, size: int) -> Buffer:
    """Keep the `size` samples with the smallest keys, in their order.

    Every sample draws its key once, when it is first offered. So at any time the buffer is a uniform draw
    without replacement from all samples offered so far, as in Vitter's reservoir sampling (1985), and
    samples that were dropped are not needed again.
    """
    kept = offered.keys.argsort(stable=True)[:size].sort().values
    return offered.at(kept)


class ER(Approach):
    """Trains on the newest task's samples together with samples of earlier tasks.

    Every step descends the mean cross-entropy over the union of a batch B of the newest task and a batch R
    drawn uniformly, without replacement, from the buffer (algorithm 1):

        (Σ_B CE + Σ_R CE) / (|B| + |R|)

    A replayed sample competes only with the classes of its own task. All heads are trained. After a task, its
    training samples are offered to the buffer once, by reservoir sampling. (In the paper they are offered
    during the only epoch.) The buffer holds raw samples.

    Attributes:
        buffer: None until the first task is learned.
    """

    Options = EROptions

    def __init__(self, **setup: Any) -> None:
        super().__init__(**setup)
        self.buffer: Buffer | None = None

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def method(self, passes: TaskPasses) -> Method:
        return Replay(er=self, passes=passes)

    def remember(self, inputs: Tensor, labels: Tensor) -> None:
        """Offer the newest task's samples to the buffer."""
        newest = Buffer(
            inputs=inputs,
            labels=labels,
            tasks=torch.full_like(labels, len(self.tasks) - 1),
            keys=torch.rand(len(labels), dtype=torch.float64, device=labels.device),
        )
        offered = newest if self.buffer is None else self.buffer.joined(newest)
        self.buffer = reservoir(offered, size=self.options.er_buffer)

    def to(self, device: torch.device) -> Self:
        super().to(device)
        self.buffer = None if self.buffer is None else self.buffer.to(device)
        return self

    def kept(self) -> Iterable[Tensor]:
        return () if self.buffer is None else vars(self.buffer).values()

    def payload(self) -> dict:
        return super().payload() | {"buffer": {} if self.buffer is None else dict(vars(self.buffer))}

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> Self:
        approach = super().from_payload(payload, source, **setup)
        stored = payload["buffer"]
        if stored:
            approach.buffer = Buffer(**{item.name: stored[item.name] for item in fields(Buffer)})
        return approach


class Replay(ClippedHeads):
    """Adds samples of the buffer to the loss of every step; after the task, updates the buffer."""

    def __init__(self, *, er: ER, passes: TaskPasses) -> None:
        super().__init__(network=er.network, clip=er.settings.clip)
        self.er = er
        self.passes = passes
        sizes = list(er.tasks.values())[:-1]
        device = next(er.network.parameters()).device
        # Of all earlier classes side by side: each class's task, and each task's first class.
        self.task_of = torch.tensor([task for task, size in enumerate(sizes) for _ in range(size)])
        self.first_class = torch.tensor([sum(sizes[:task]) for task in range(len(sizes))])
        self.task_of, self.first_class = self.task_of.to(device), self.first_class.to(device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        newest = cross_entropy(logits, labels)
        buffer = self.er.buffer
        if buffer is None:
            return newest
        rows = torch.randperm(len(buffer), device=labels.device)[: self.er.options.er_batch]
        share = len(rows) / (len(rows) + len(labels))
        return (1 - share) * newest + share * self.replayed(buffer.at(rows))

    def replayed(self, samples: Buffer) -> Tensor:
        """Mean cross-entropy of samples of earlier tasks."""
        features = self.network.encode(self.passes.to_inputs(samples.inputs))
        logits = torch.cat([head(features) for head in self.network.classifiers[:-1]], dim=1)
        logits = logits.masked_fill(self.task_of != samples.tasks[:, None], -torch.inf)
        return cross_entropy(logits, self.first_class[samples.tasks] + samples.labels)

    def after_task(self) -> None:
        self.er.remember(*self.passes.stored)
