"""The probes of a search: each task's own samples, or probes that all devices share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.probes import Probes, noise_probes, probes_in_folder, probes_of_task
from data.tables import Table, Task
from methods.modeldiff import Model
from pipeline.flags import NOISE, PUBLIC
from pipeline.recipe import ProbesRecipe
from utils.errors import UserError
from utils.seeds import derive_seed


class SharedProbes:
    """Probes that no device provides, drawn once for all targets of a modality.

    Args:
        recipe: what kind of probes, and how many.
        pool: a task of the table, or a folder of images; None for other kinds than `PUBLIC`.
    """

    def __init__(
        self,
        recipe: ProbesRecipe,
        *,
        pool: str | None,
        table: Table,
        data_root: Path,
        text_encoder: str,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.pool = pool
        self.table = table
        self.data_root = data_root
        self.text_encoder = text_encoder
        self.device = device
        self._drawn: dict[str, Probes] = {}

    def recorded(self, target: Task, candidates: Sequence[Task]) -> ProbesRecipe:
        """The recipe of a target's probes.

        Raises:
            UserError: if there are no shared probes for the target or for one of its candidates.
        """
        if self.recipe.probes is None:
            return self.recipe
        odd = [task.name for task in candidates if task.modality != target.modality]
        if odd:
            raise UserError(
                f"--probes {self.recipe.probes}: target {target.name} reads {target.modality}s, and "
                f"candidate {odd[0]} does not: use --candidates same, or --probes own"
            )
        return replace(self.recipe, pool=self.drawn(target).fingerprint)

    def given_to(self, model: Model, *, target: Task) -> Model:
        """A network under comparison for `target`, with the shared probes in place of its own."""
        if self.recipe.probes is None:
            return model
        return replace(model, probes=self.drawn(target).halves[int(model.id == target.id)])

    def drawn(self, target: Task) -> Probes:
        """The shared probes for a target.

        Raises:
            UserError: if there are none of its modality, or if the pool is the target itself.
        """
        pool = self._public_pool(target) if self.recipe.probes == PUBLIC else None
        if self.recipe.probes == NOISE and target.modality != "image":
            raise UserError(
                f"--probes {NOISE}: target {target.name} reads {target.modality}s, and noise is an image: "
                f"use --probes {PUBLIC} or own"
            )
        if target.modality not in self._drawn:
            self._drawn[target.modality] = self._draw(pool).to(self.device)
        return self._drawn[target.modality]

    def _draw(self, pool: Task | Path | None) -> Probes:
        count, seed = self.recipe.val_batch_size, derive_seed(self.recipe.seed, self.table.name, "probes")
        if pool is None:
            return noise_probes(count, table=self.table, seed=seed)
        if isinstance(pool, Path):
            return probes_in_folder(pool, count, table=self.table, seed=seed)
        return probes_of_task(
            pool,
            count,
            table=self.table,
            data_root=self.data_root,
            seed=seed,
            text_encoder=self.text_encoder,
        )

    def _public_pool(self, target: Task) -> Task | Path:
        pool = self.table.public_pool(self.pool)
        modality = "image" if isinstance(pool, Path) else pool.modality
        if pool == target:
            raise UserError(
                f"--public_probes {self.pool} is target {target.name} itself: name another pool, or use "
                "--probes own, which sends the target's samples"
            )
        if modality != target.modality:
            raise UserError(
                f"--public_probes {self.pool} holds {modality}s, and target {target.name} reads "
                f"{target.modality}s: name another pool"
            )
        return pool
