#!/usr/bin/env python3
"""Stage 3-2 across modalities: train the target on a backbone that holds the target's own K/V projection."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.tables import MODALITIES
from models import ARCHITECTURES
from tools import cpg_run
from tools.task_run import check_text_encoder, run_tasks
from utils import arguments, errors
from utils.checkpoints import fingerprint, load_checkpoint
from utils.errors import UserError
from utils.paths import checkpoint_in, checkpoints_in, kv_transfer_file


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    run_tasks(
        args,
        script=MultimodalRun,
        registry=ARCHITECTURES,
        layers=cpg_run.LAYERS,
        modality=args.modality,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cpg_run.parser(__doc__)
    group = parser.add_argument_group("multimodal")
    group.add_argument(
        "--modality", choices=MODALITIES, help="Only the tasks of this modality (default: of any)."
    )
    group.add_argument(
        "--no_kv_transfer",
        action="store_true",
        help="On a backbone: start from its own projections, as a control (default: from the checkpoint of "
        "stage 3-1b).",
    )
    parser.set_defaults(**arguments.MULTIMODAL)
    args = cpg_run.parse(parser, argv)
    if args.no_kv_transfer and args.backbone is None:
        parser.error("--no_kv_transfer is about a backbone: give --backbone")
    return args


class MultimodalRun(cpg_run.CPGRun):
    """One task's own network, or the task with its own K/V projection on a backbone of any modality."""

    transfers = True

    @property
    def target_folder(self) -> Path:
        return self.paths.target(
            self.table.name, self.backbone, self.task.name, kv_transfer=not self.args.no_kv_transfer
        )

    def backbone_file(self) -> Path:
        """The backbone's chosen checkpoint, with the task's projection waiting in it.

        Raises:
            UserError: if there is none, or if it was made before one of the two networks was redone, or from
                one that knows texts by another encoder.
        """
        chosen = super().backbone_file()
        if self.args.no_kv_transfer:
            return chosen
        transferred = kv_transfer_file(chosen, self.task.name)
        if not transferred.is_file():
            raise UserError(f"{transferred} not found: run run_pickaback/transfer_kv.sh first")
        payload = self.load(transferred)
        pair, arrived = payload.get("kv_transfer", {}), payload.get("arrived_from", {})
        check_text_encoder(arrived, task=self.task, encoder=self.data.encoder, where=transferred)
        made_from = {chosen: (pair.get("backbone"), self.load(chosen))}
        folder = self.paths.baselines(self.table.name) / self.task.name
        if arrived.get("in_layout") and checkpoints_in(folder):
            own = checkpoint_in(folder, remedy="")
            own_payload = load_checkpoint(own, architecture=self.args.arch, layers="plain")
            made_from[own] = pair.get("projection"), own_payload
        for path, (made_with, found) in made_from.items():
            if made_with != fingerprint(found):
                raise UserError(
                    f"{transferred} was made from another network than {path}: "
                    "redo it with OVERWRITE=1 bash run_pickaback/transfer_kv.sh"
                )
        return transferred


if __name__ == "__main__":
    errors.run(main)
