"""PackNet (Mallya & Lazebnik 2018) on a sequence of tasks (`packnet`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from methods import footprint
from methods.approaches.base import MONITORED, Approach, TaskPasses, setting
from methods.ownership import OwnedTraining, SharedNetwork
from methods.packnet import PackNetPruning
from models.network import Network
from training.loop import Learner


@dataclass(frozen=True)
class PackNetOptions:
    packnet_share: float | None = setting(
        None,
        kind="share",
        help="Share of weights that `packnet` frees after each task (default: 1 - 1/(remaining tasks + 1)).",
    )


class PackNet(Approach):
    """Tasks own disjoint weights of one network.

    Each task is trained on the free weights, pruned, and retrained from a tenth of the learning rate. (The
    published PackNet lowers its rate after half of the epochs; here the plateau rule lowers it, as for all
    approaches.)
    """

    Options = PackNetOptions

    def new_network(self) -> Network:
        self.shared = SharedNetwork(build=self.build)
        return self.shared.network

    @classmethod
    def stages(cls, *, remaining: int) -> tuple[str, ...]:
        return ("train", "prune") if remaining else ("train",)

    def begin_task(self, name: str, num_classes: int) -> None:
        self.shared.begin_task(name, num_classes=num_classes)
        self.tasks[name] = num_classes
        self.epochs, self.seconds = 0, 0.0

    def learner(self, stage: str, passes: TaskPasses, *, epochs: int) -> Learner:
        optimizer = self.optimizer()
        if stage == "train":
            method = ClippedTraining(shared=self.shared, clip=self.settings.clip)
        else:
            remaining = self.total - len(self.tasks)
            share = self.options.packnet_share
            method = ClippedPruning(
                shared=self.shared,
                clip=self.settings.clip,
                optimizer=optimizer,
                sparsity=1 - 1 / (remaining + 1) if share is None else share,
            )
        return Learner(
            method=method,
            optimizers={"weights": optimizer},
            schedules={"weights": self.settings.schedule(scale=1.0 if stage == "train" else 0.1)},
            epochs=epochs,
            monitor=MONITORED,
        )

    def as_task(self, name: str) -> nn.Module:
        return self.shared.as_task(name)

    def to(self, device: torch.device) -> Self:
        self.shared.to(device)
        return self

    def stored_bytes(self) -> int:
        return footprint.stored_bytes(self.shared)["total"]

    def payload(self) -> dict:
        return self.shared.payload() | {"sequence": self.run_record()}

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> Self:
        approach = cls(**setup)
        approach.shared = SharedNetwork.from_payload(payload, build=approach.build, source=source)
        approach.network = approach.shared.network
        approach.tasks = {record.name: record.num_classes for record in approach.shared.tasks}
        approach.load_run_record(payload["sequence"])
        return approach


class ClippedTraining(OwnedTraining):
    """Trains the free weights, clipping the gradient norm of the active head like the other approaches."""

    def __init__(self, *, shared: SharedNetwork, clip: float, **arguments: Any) -> None:
        super().__init__(shared=shared, weight_decay=0.0, **arguments)
        self.clip = clip

    def after_backward(self) -> None:
        super().after_backward()
        network = self.shared.network
        clip_grad_norm_(network.classifiers[network.active].parameters(), self.clip)


class ClippedPruning(ClippedTraining, PackNetPruning):
    """Retrains after the cut, with the same clipping."""
