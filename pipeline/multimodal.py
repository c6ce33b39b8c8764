"""Stage 3-2 across modalities: targets that bring their own K/V projection to a backbone."""

import argparse
from pathlib import Path

from data.tables import MODALITIES
from pipeline import cpg
from pipeline.architectures import PLAIN
from pipeline.flags import add_multimodal
from pipeline.fleet import check_text_encoder, transferred_checkpoint
from pipeline.train_task import TaskRun
from training.checkpoints import fingerprint, load_checkpoint
from utils.errors import UserError
from utils.paths import checkpoint_in, checkpoints_in


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of stage 3-2 across modalities."""
    add_multimodal(parser, modalities=MODALITIES)


def run(args: argparse.Namespace) -> None:
    """Train, prune or evaluate, as `--mode` says, every task selected by `--dataset` and `--modality`."""
    backbones = TransferredBackbones(kv_transfer=not args.no_kv_transfer)
    cpg.run(args, backbones=backbones, modality=args.modality)


class TransferredBackbones(cpg.Backbones):
    """Backbones that hold the K/V projections of their targets.

    Args:
        kv_transfer: False for the control, which starts from the backbones' own projections.
    """

    transfers = True

    def __init__(self, *, kv_transfer: bool) -> None:
        self.kv_transfer = kv_transfer

    def target_folder(self, task: TaskRun, backbone: str) -> Path:
        return task.paths.target(task.table.name, backbone, task.task.name, kv_transfer=self.kv_transfer)

    def checkpoint(self, task: TaskRun, backbone: str) -> Path:
        """The backbone's chosen checkpoint, which holds the task's projection.

        Raises:
            UserError: if there is no such checkpoint, if either network has been retrained since, or if the
                projection was trained with another text encoder.
        """
        chosen = super().checkpoint(task, backbone)
        if not self.kv_transfer:
            return chosen
        transferred = transferred_checkpoint(
            chosen, target=task.task, backbone=backbone, args=task.args, config=task.table.name
        )
        if not transferred.is_file():
            raise UserError(f"{transferred} not found: run run_pickaback/transfer_kv.sh first")
        payload = task.load(transferred)
        pair, arrived = payload.get("kv_transfer", {}), payload.get("arrived_from", {})
        check_text_encoder(arrived, task=task.task, identity=task.data.encoder_identity, where=transferred)
        made_from = {chosen: (pair.get("backbone"), task.load(chosen))}
        folder = task.paths.baselines(task.table.name) / task.task.name
        if arrived.get("in_layout") and checkpoints_in(folder):
            own = checkpoint_in(folder, remedy="")
            own_payload = load_checkpoint(own, architecture=task.build.name, layers=PLAIN)
            made_from[own] = pair.get("projection"), own_payload
        for path, (made_with, found) in made_from.items():
            if made_with != fingerprint(found):
                raise UserError(
                    f"{transferred} was made from another network than {path}: "
                    "redo it with OVERWRITE=1 bash run_pickaback/transfer_kv.sh"
                )
        return transferred
