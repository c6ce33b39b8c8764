"""Elastic weight consolidation (`ewc`, Kirkpatrick et al. 2017), as in the experiments of HAT."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.approaches.base import (
    Approach,
    ClippedHead,
    TaskPasses,
    setting,
    train_on_learned_statistics,
)
from training.method import Method

# Batch size of the Fisher pass, which squares the mean gradient of each batch.
FISHER_BATCH = 20


@dataclass(frozen=True)
class EWCOptions:
    ewc_lambda: float = setting(5000.0, kind="positive_float", help="Weight of the `ewc` penalty.")


class EWC(Approach):
    """Pulls feature parameters back to their values after the last task, weighted by Fisher information.

    The loss gains λ/2 · Σ F (w − w*)² (eq. 3). F is the mean over the learned tasks of their empirical Fisher
    information: the squared gradient of a batch of 20 samples, averaged over batches.

    Attributes:
        fisher, anchors: F and w* by feature parameter; empty until the first task is learned.
    """

    Options = EWCOptions

    def __init__(self, **setup: Any) -> None:
        super().__init__(**setup)
        self.fisher: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    def method(self, passes: TaskPasses) -> Method:
        return Consolidation(ewc=self, passes=passes)

    def to(self, device: torch.device) -> Self:
        super().to(device)
        self.fisher = {name: value.to(device) for name, value in self.fisher.items()}
        self.anchors = {name: value.to(device) for name, value in self.anchors.items()}
        return self

    def kept(self) -> Iterable[Tensor]:
        return [*self.fisher.values(), *self.anchors.values()]

    def payload(self) -> dict:
        return super().payload() | {"fisher": dict(self.fisher), "anchors": dict(self.anchors)}

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> Self:
        approach = super().from_payload(payload, source, **setup)
        approach.fisher, approach.anchors = dict(payload["fisher"]), dict(payload["anchors"])
        return approach


class Consolidation(ClippedHead):
    """Adds the gradient of the penalty; after the task, updates the Fisher information."""

    def __init__(self, *, ewc: EWC, passes: TaskPasses) -> None:
        super().__init__(network=ewc.network, clip=ewc.settings.clip)
        self.ewc = ewc
        self.passes = passes

    @torch.no_grad()
    def after_backward(self) -> None:
        super().after_backward()
        for name, parameter in self.ewc.feature_parameters().items():
            if name in self.ewc.fisher:
                pull = (parameter - self.ewc.anchors[name]).mul_(self.ewc.fisher[name])
                parameter.grad.add_(pull, alpha=self.ewc.options.ewc_lambda)

    def after_task(self) -> None:
        ewc = self.ewc
        learned = len(ewc.tasks)
        newest = self.fisher_information()
        for name, value in newest.items():
            if name in ewc.fisher:
                value = (ewc.fisher[name] * (learned - 1) + value) / learned
            ewc.fisher[name] = value
        ewc.anchors = {name: value.detach().clone() for name, value in ewc.feature_parameters().items()}

    def fisher_information(self) -> dict[str, Tensor]:
        """Mean squared gradient of the newest task's cross-entropy, by parameter name."""
        train_on_learned_statistics(self.network)
        parameters = self.ewc.feature_parameters()
        totals = {name: torch.zeros_like(value) for name, value in parameters.items()}
        count = 0
        for inputs, labels in self.passes.batches(FISHER_BATCH):
            with self.passes.autocast:
                loss = cross_entropy(self.network(inputs), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for total, gradient in zip(totals.values(), gradients, strict=True):
                total.addcmul_(gradient, gradient, value=len(labels))
            count += len(labels)
        return {name: total / count for name, total in totals.items()}
