"""PackNet (Mallya & Lazebnik 2018): prune a share of the smallest weights at once, then retrain."""

from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from methods.gradual_pruning import GradualPruning
from methods.ownership import OwnedTraining, SharedNetwork
from methods.sequence import WATCHED, Naive, Settings, TaskPasses
from models.network import Network
from utils.training import Learner


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


class PackNet(Naive):
    """Tasks in turn own weights of one network (`packnet`).

    Each is trained on the free weights, pruned, and retrained from a tenth of the learning rate.
    """

    def new_network(self) -> Network:
        self.shared = SharedNetwork(build=self.settings.build)
        return self.shared.network

    @classmethod
    def stages(cls, *, remaining: int) -> tuple[str, ...]:
        return ("train", "prune") if remaining else ("train",)

    def begin_task(self, name: str, num_classes: int) -> None:
        self.shared.begin_task(name, num_classes=num_classes)
        self.tasks[name] = num_classes
        self.epochs, self.seconds = 0, 0.0

    def learner(self, stage: str, passes: TaskPasses) -> Learner:
        optimizer = self.optimizer()
        if stage == "train":
            method = OwnedTraining(shared=self.shared, weight_decay=0.0)
        else:
            remaining = self.settings.total - len(self.tasks)
            share = self.settings.packnet_share
            method = PackNetPruning(
                shared=self.shared,
                weight_decay=0.0,
                optimizer=optimizer,
                sparsity=1 - 1 / (remaining + 1) if share is None else share,
            )
        return Learner(
            method=method,
            optimizers={"weights": optimizer},
            schedules={"weights": self.settings.schedule(scale=1.0 if stage == "train" else 0.1)},
            watch=WATCHED,
        )

    def as_task(self, name: str) -> nn.Module:
        return self.shared.as_task(name)

    def to(self, device: torch.device) -> "PackNet":
        self.shared.to(device)
        return self

    def payload(self) -> dict:
        return self.shared.payload() | {"sequence": self.noted()}

    @classmethod
    def from_payload(cls, payload: dict, source: Path, *, settings: Settings) -> "PackNet":
        learned = cls(settings)
        learned.shared = SharedNetwork.from_payload(payload, build=settings.build, source=source)
        learned.network = learned.shared.network
        learned.tasks = {record.name: record.num_classes for record in learned.shared.tasks}
        learned.take_note(payload["sequence"])
        return learned
