#!/usr/bin/env python3
"""Stage 3-1b: put every target's own K/V projection into its backbone's network."""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data.tables import Table, Task, load_table
from data.text_encoders import load_encoder
from methods.kv_transfer import bring, own_projection
from methods.ownership import SharedNetwork
from models import ARCHITECTURES as SHARABLE
from packnet_models import ARCHITECTURES as PLAIN
from tools.cpg_run import BACKBONE_REMEDY
from tools.task_run import FROM_CSV, backbone_of, check_text_encoder
from utils import arguments, errors, logs
from utils.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.paths import checkpoint_in, kv_transfer_file
from utils.runs import require_same


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    transfers = Transfers(args, table=table)
    with logs.to_file(transfers.paths.stage_log(table.name, "transfer_kv")):
        logs.configuration(vars(args))
        targets = table.select(args.target_id or args.dataset)
        arguments.check_of_one_task(args, targets)
        for target in targets:
            transfers.make(target)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    arguments.add_files(parser)
    arguments.add_overwrite(parser)
    group = parser.add_argument_group("K/V transfer")
    group.add_argument("--target_id", help="The targets: ids, names or ranges (default: --dataset).")
    group.add_argument(
        "--backbone",
        default=FROM_CSV,
        help=f"The backbone: a name, an id, or {FROM_CSV} for the one that stage 3-1 chose.",
    )
    arguments.add_chosen_pairs(group)
    group.add_argument(
        "--baseline_folder",
        type=Path,
        help="Folder of the targets' own networks, <task>/checkpoint-<epoch>.pth.tar (default: the scratch "
        "networks of stage 1, by the layout).",
    )
    group.add_argument(
        "--load_folder",
        type=Path,
        help="Folder of the backbone's checkpoint; the new one goes beside it (default: by the layout).",
    )
    parser.set_defaults(**arguments.MULTIMODAL)
    return parser.parse_args(argv)


class Transfers:
    """The K/V transfers between the networks of a table."""

    def __init__(self, args: argparse.Namespace, *, table: Table) -> None:
        self.args = args
        self.table = table
        self.paths = arguments.paths_of(args)
        self.pairs = arguments.pairs_file(args, table.name)
        arguments.check_transfers(self.builder(SHARABLE), transfers=True)

    def make(self, target: Task) -> None:
        """Write the backbone's checkpoint once more, with the target's projection waiting in it."""
        backbone = backbone_of(target, asked=self.args.backbone, table=self.table, pairs=self.pairs)
        folder = self.args.load_folder or self.paths.pruned(self.table.name, backbone.name)
        source = checkpoint_in(folder, remedy=BACKBONE_REMEDY)
        payload, receiving = self.load(source, registry=SHARABLE, layers="sharable")
        folder = (self.args.baseline_folder or self.paths.baselines(self.table.name)) / target.name
        own = checkpoint_in(folder, remedy="run run_pickaback/baseline.sh for the target first")
        own_payload, giving = self.load(own, registry=PLAIN, layers="plain")
        encoder = load_encoder(self.args.text_encoder) if target.modality == "text" else None
        check_text_encoder(own_payload, task=target, encoder=encoder, where=own)
        pair = {
            "target": target.name,
            "backbone": fingerprint(payload),
            "projection": fingerprint(own_payload),
        }
        destination = kv_transfer_file(source, target.name)
        if self.is_finished(destination, pair):
            return
        try:
            projection = own_projection(giving, target.name)
            bring(projection, into=receiving, target=target.name)
        except UserError as error:
            raise UserError(f"{own} to {source}: {error}") from error
        in_layout = self.args.baseline_folder is None
        arrived = {"task_table": own_payload.get("task_table", {}), "in_layout": in_layout}
        made = {"arrivals": receiving.arrivals, "kv_transfer": pair, "arrived_from": arrived}
        save_checkpoint(destination, payload | made)
        logging.info(
            "K/V transfer [%s => %s]: %s of %s inputs into %s",
            *(target.name, backbone.name, ", ".join(map(str, projection)), target.modality, destination),
        )

    def is_finished(self, destination: Path, pair: dict) -> bool:
        """Whether the transfer is made already; refuses one that was made from other networks."""
        if self.args.overwrite or not destination.exists():
            return False
        payload = load_checkpoint(destination, architecture=self.args.arch, layers="sharable")
        require_same(payload.get("kv_transfer", {}), pair, where=destination)
        logging.info("%s is finished: skipped (--overwrite redoes it)", destination)
        return True

    def builder(self, registry: Mapping[str, Callable]) -> arguments.Builder:
        """Makes the networks of `registry`."""
        return arguments.asked_architecture(
            registry, self.args, in_channels=self.table.channels, size=self.table.size
        )

    def load(
        self, path: Path, *, registry: Mapping[str, Callable], layers: str
    ) -> tuple[dict, SharedNetwork]:
        """The content of a checkpoint, and the network in it."""
        build = self.builder(registry)
        payload = load_checkpoint(path, architecture=self.args.arch, layers=layers, sizes=build.sizes)
        return payload, SharedNetwork.from_payload(payload, build=build, source=path)


if __name__ == "__main__":
    errors.run(main)
