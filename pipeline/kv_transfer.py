"""Stage 3-1b: K/V transfers between the networks of a table."""

import argparse
import logging
from pathlib import Path

from data.tables import Table, Task, load_table
from data.text_encoders import load_encoder
from methods.kv_transfer import bring, own_projection
from methods.ownership import SharedNetwork
from pipeline.architectures import PLAIN, SHARABLE, check_transfers, requested_architecture
from pipeline.cpg import BACKBONE_REMEDY
from pipeline.flags import changed
from pipeline.fleet import (
    backbone_of,
    check_of_fleet,
    check_text_encoder,
    fleet_paths,
    pairs_file,
    paths_of,
    selected_tasks,
    transferred_checkpoint,
)
from pipeline.recipe import TransferRecipe
from training.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from training.outputs import require_same
from utils import logs
from utils.errors import UserError
from utils.folders import alone_in
from utils.paths import checkpoint_in


def run(args: argparse.Namespace) -> None:
    """Transfer the K/V projection of every target."""
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    transfers = Transfers(args, table=table)
    with logs.to_file(transfers.paths.stage_log(table.name, "transfer_kv")):
        logs.configuration(changed(args))
        for target in selected_tasks(args, table, spec=args.target_id):
            transfers.make(target)


class Transfers:
    """K/V transfers between the networks of a table."""

    def __init__(self, args: argparse.Namespace, *, table: Table) -> None:
        self.args = args
        self.table = table
        self.paths = paths_of(args)
        self.fleet = fleet_paths(args)
        self.pairs = pairs_file(args, table.name)
        self.builders = {
            layers: requested_architecture(args, layers=layers, in_channels=table.channels, size=table.size)
            for layers in (PLAIN, SHARABLE)
        }
        check_transfers(self.builders[SHARABLE], transfers=True)

    def make(self, target: Task) -> None:
        """Write a copy of the backbone's checkpoint that also holds the target's projection."""
        backbone = backbone_of(target, asked=self.args.backbone, table=self.table, pairs=self.pairs)
        folder = self.args.load_folder or self.fleet.pruned(self.table.name, backbone.name)
        source = checkpoint_in(folder, remedy=BACKBONE_REMEDY)
        destination = transferred_checkpoint(
            source, target=target, backbone=backbone.name, args=self.args, config=self.table.name
        )
        with alone_in(destination.parent):
            self.transfer(target, source=source, backbone=backbone, destination=destination)

    def transfer(self, target: Task, *, source: Path, backbone: Task, destination: Path) -> None:
        """Write the copy of the backbone's checkpoint at `source`, unless it is finished."""
        payload, receiving = self.load(source, layers=SHARABLE)
        check_of_fleet(payload, self.args, where=source)
        folder = (self.args.baseline_folder or self.paths.baselines(self.table.name)) / target.name
        own = checkpoint_in(folder, remedy="run run_pickaback/baseline.sh for the target first")
        own_payload, giving = self.load(own, layers=PLAIN)
        identity = load_encoder(self.args.text_encoder).identity if target.modality == "text" else None
        check_text_encoder(own_payload, task=target, identity=identity, where=own)
        recipe = TransferRecipe(
            target=target.name, backbone=fingerprint(payload), projection=fingerprint(own_payload)
        )
        if self.is_finished(destination, recipe):
            return
        try:
            projection = own_projection(giving, target.name)
            bring(projection, into=receiving, target=target.name)
        except UserError as error:
            raise UserError(f"{own} to {source}: {error}") from error
        in_layout = self.args.baseline_folder is None
        arrived = {"task_table": own_payload.get("task_table", {}), "in_layout": in_layout}
        made = {"arrivals": receiving.arrivals, "kv_transfer": recipe.stamp(), "arrived_from": arrived}
        save_checkpoint(destination, payload | made)
        logging.info(
            "K/V transfer [%s => %s]: %s of %s inputs into %s",
            *(target.name, backbone.name, ", ".join(map(str, projection)), target.modality, destination),
        )

    def is_finished(self, destination: Path, recipe: TransferRecipe) -> bool:
        """Whether the transfer is finished; refuses one made from other networks."""
        if self.args.overwrite or not destination.exists():
            return False
        payload = load_checkpoint(destination, architecture=self.args.arch, layers=SHARABLE)
        require_same(payload.get("kv_transfer", {}), recipe.stamp(), where=destination)
        logging.info("%s is finished: skipped (--overwrite redoes it)", destination)
        return True

    def load(self, path: Path, *, layers: str) -> tuple[dict, SharedNetwork]:
        """Load a checkpoint; return its payload and the network in it."""
        build = self.builders[layers]
        payload = load_checkpoint(path, architecture=build.name, layers=layers, sizes=build.sizes)
        return payload, SharedNetwork.from_payload(payload, build=build, source=path)
