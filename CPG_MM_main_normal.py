#!/usr/bin/env python3
"""Stage 3-2 across modalities: train the target on a backbone that holds the target's own K/V projection."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.tables import MODALITIES
from models import ARCHITECTURES
from tools import cpg_run
from tools.task_run import run_tasks
from utils import errors
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.paths import kv_transfer_file


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
    return cpg_run.parse(parser, argv)


class MultimodalRun(cpg_run.CPGRun):
    """One task's own network, or the task with its own K/V projection on a backbone of any modality."""

    @property
    def target_folder(self) -> Path:
        return self.paths.target(
            self.table.name, self.backbone, self.task.name, kv_transfer=not self.args.no_kv_transfer
        )

    def backbone_file(self) -> Path:
        """The backbone's chosen checkpoint, with the task's projection waiting in it.

        Raises:
            UserError: if there is none, or if it was made before the backbone's network was redone.
        """
        chosen = super().backbone_file()
        if self.args.no_kv_transfer:
            return chosen
        transferred = kv_transfer_file(chosen, self.task.name)
        if not transferred.is_file():
            raise UserError(f"{transferred} not found: run run_pickaback/transfer_kv.sh first")
        made_from = self.load(transferred).get("kv_transfer", {}).get("backbone")
        if made_from != fingerprint(self.load(chosen)):
            raise UserError(
                f"{transferred} was made from another network than {chosen}: "
                "redo it with OVERWRITE=1 bash run_pickaback/transfer_kv.sh"
            )
        return transferred


if __name__ == "__main__":
    errors.run(main)
