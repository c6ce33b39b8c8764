"""The rule `race`: a target trains on each candidate for a few epochs, and nothing of it is kept."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.loading import Batches
from data.tables import Task
from pipeline.architectures import Builder
from pipeline.cpg import on_top_of
from pipeline.recipe import RaceRecipe
from training.checkpoints import fingerprint, load_checkpoint
from training.loop import Compute, Diverged, fit


@dataclass(frozen=True)
class Finish:
    """Accuracy and mean loss on the target's held-out samples after the last epoch."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A target that trains on candidates as in stage 3-2, at width multiplier 1.

    Attributes:
        batches: of the target's samples under the held-out protocol.
        build: builds networks with sharable layers.
        projection: the target's own K/V projection, which it brings along; empty without K/V transfers.
    """

    target: Task
    recipe: RaceRecipe
    batches: Batches
    build: Builder
    projection: Mapping[str, Tensor]
    compute: Compute

    def finish_on(self, candidate: Task, source: Path) -> Finish | None:
        """Train on the candidate's pruned network in `source`; None if the loss diverges."""
        build, compute = self.build, self.compute
        payload = load_checkpoint(source, architecture=build.name, layers=build.layers, sizes=build.sizes)
        recipe = self.recipe.on(candidate.name, parent=fingerprint(payload))
        if self.projection:
            payload = payload | {"arrivals": {self.target.name: dict(self.projection)}}
        torch.manual_seed(recipe.draws)
        shared = on_top_of(payload, source=source, task=self.target, build=build, recipe=recipe)
        shared.to(compute.device)
        try:
            progress = fit(
                shared.network,
                learner=recipe.learner(shared, batches=self.batches, compute=compute),
                batches=self.batches,
                compute=compute,
                seed=recipe.draws,
                title=f"{self.target.name}, race on {candidate.name}",
                remedy=f"lower {recipe.lr_flag}",
            )
        except Diverged as error:
            logging.warning("%s: this candidate is out of the race", error)
            return None
        last = progress.history[-1]
        return Finish(accuracy=last["val_accuracy"], loss=last["val_loss"])
