"""What the CPG scripts share: a task's own network, pruned gradually, or the task on a backbone."""

import argparse
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from methods.cpg import (
    CPG,
    must_grow,
    piggymask_optimizer,
    piggymasks_of,
    weight_optimizer,
    weight_schedule,
    width_multipliers,
)
from methods.gradual_pruning import GradualPruning
from methods.ownership import SharedNetwork
from tools.task_run import TaskRun, backbone_of, final_width, read_widths
from utils import arguments
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.files import json_text, update_json, write_changed
from utils.paths import (
    TRAIN_CSV,
    checkpoint_in,
    checkpoint_name,
    checkpoints_in,
    record_file,
    sparsity_folder,
    width_folder,
    widths_file,
)
from utils.training import Learner, StepSchedule

LAYERS = "sharable"
BACKBONE_REMEDY = "run wo_backbone.sh and select_pruning_ratio_of_backbone.sh for the backbone first"


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with all flags of a CPG script."""
    parser = arguments.parser(description)
    arguments.add_common(parser)
    arguments.add_training(parser)
    arguments.add_report(parser)
    group = parser.add_argument_group("CPG")
    group.add_argument(
        "--mode",
        choices=("finetune", "prune", "inference"),
        nargs="+",
        default=["finetune"],
        help="Train, prune gradually, or evaluate a checkpoint; `finetune prune` does both in turn.",
    )
    group.add_argument(
        "--backbone",
        help="Train on this task's pruned network: a name, an id, or from_csv for the one that stage 3-1 "
        "chose (default: train from scratch).",
    )
    arguments.add_chosen_pairs(group)
    group.add_argument(
        "--lr_mask", type=arguments.positive_float, default=1e-4, help="Learning rate of piggymasks."
    )
    arguments.add_width(group)
    group.add_argument(
        "--max_allowed_network_width_multiplier",
        type=arguments.positive_float,
        default=2.0,
        help="On a backbone, or in sequence: the widest that the network may grow, in steps of 0.5.",
    )
    group = parser.add_argument_group("gradual pruning")
    arguments.add_sparsities(group)
    group.add_argument(
        "--initial_sparsity",
        type=arguments.sparsity,
        default=0.0,
        help="Sparsity to start the first ratio from; above 0, its network is the starting point.",
    )
    group.add_argument(
        "--prune_epochs", type=arguments.positive_int, default=20, help="Epochs at each pruning ratio."
    )
    group.add_argument(
        "--prune_lr", type=arguments.positive_float, default=1e-3, help="Learning rate while pruning."
    )
    group.add_argument(
        "--pruning_interval",
        type=arguments.positive_int,
        default=4,
        help="Epochs, of the --prune_epochs, over which the sparsity grows.",
    )
    group.add_argument(
        "--pruning_frequency", type=arguments.positive_int, default=10, help="Steps between two cuts."
    )
    arguments.add_record_file(group)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags in `argv`; impossible combinations end with the usage."""
    args = parser.parse_args(argv)
    arguments.check_report(parser, args)
    if args.target_sparsity != sorted(set(args.target_sparsity)) or (
        args.target_sparsity[0] <= args.initial_sparsity
    ):
        parser.error("--target_sparsity must grow from one value to the next, above --initial_sparsity")
    if "inference" in args.mode and len(args.mode) > 1:
        parser.error("--mode inference stands alone")
    if args.backbone and "prune" in args.mode:
        parser.error("--mode prune prunes a task's own network: leave out --backbone")
    if args.load_folder and args.mode == ["finetune"] and not args.backbone:
        parser.error("--load_folder: --mode finetune starts from it only with --backbone")
    if len(args.mode) > 1 and (args.load_folder or args.save_folder):
        parser.error("--load_folder and --save_folder are of one mode: give finetune and prune in turn")
    return args


class CPGRun(TaskRun):
    """One task's own network, or the task on a backbone.

    Attributes:
        transfers: whether targets bring K/V projections of their own to their backbones.

    Raises:
        UserError: for an architecture whose targets do the other on a backbone.
    """

    transfers = False

    def __init__(self, args: argparse.Namespace, **task: Any) -> None:
        super().__init__(args, **task)
        if args.backbone is not None:
            arguments.check_transfers(self.build, transfers=self.transfers)

    @cached_property
    def backbone(self) -> str | None:
        """The backbone's name; None to train from scratch."""
        if self.args.backbone is None:
            return None
        return backbone_of(self.task, asked=self.args.backbone, table=self.table, pairs=self.pairs_file).name

    @property
    def pairs_file(self) -> Path:
        """CSV of the chosen backbones."""
        return arguments.pairs_file(self.args, self.table.name)

    @property
    def target_folder(self) -> Path:
        """Folder of the task on its backbone."""
        return self.paths.target(self.table.name, self.backbone, self.task.name)

    def backbone_file(self) -> Path:
        """The checkpoint of the backbone that the task starts from."""
        folder = self.args.load_folder or self.paths.pruned(self.table.name, self.backbone)
        return checkpoint_in(folder, remedy=BACKBONE_REMEDY)

    @cached_property
    def multiplier(self) -> float:
        if self.args.network_width_multiplier == arguments.FROM_TARGET:
            return final_width(self.paths, table=self.table, target=self.task, pairs=self.pairs_file)
        return self.args.network_width_multiplier

    @cached_property
    def folder(self) -> Path:
        config, task = self.table.name, self.task.name
        if self.args.save_folder:
            return self.args.save_folder
        if self.args.mode == ["prune"]:
            return self.paths.pruned(config, task)
        if self.backbone is not None:
            return self.target_folder
        if self.multiplier != 1.0:
            return self.paths.control(config, task, width_multiplier=self.multiplier)
        return self.paths.single_scratch(config, task)

    def run(self) -> None:
        if self.args.mode == ["inference"]:
            self.look_at(self.args.load_folder or self.folder)
            return
        if "finetune" in self.args.mode:
            if self.backbone is None:
                self.learn_alone()
            else:
                self.learn_on_backbone()
        if "prune" in self.args.mode:
            self.prune()

    def learner(self, shared: SharedNetwork) -> Learner:
        """CPG over the newest task: weights, and piggymasks where there are any."""
        epochs = self.args.epochs
        optimizers = {"weights": weight_optimizer(shared)}
        schedules = {"weights": weight_schedule(lr=self.args.lr, epochs=self.args.epochs)}
        if piggymasks_of(shared):
            optimizers["piggymasks"] = piggymask_optimizer(shared)
            schedules["piggymasks"] = StepSchedule(self.args.lr_mask, drops={epochs * 5 // 10: 0.2})
        method = CPG(shared=shared, weight_decay=self.args.weight_decay, freeze_after=epochs * 7 // 10)
        return Learner(method=method, optimizers=optimizers, schedules=schedules)

    def learn_alone(self) -> None:
        """Stage 2-1, first half: the task's own network, before pruning."""
        payload = self.learn(
            folder=self.folder,
            stage="scratch",
            epochs=self.args.epochs,
            begin=lambda: self.new_network(width=self.multiplier**0.5),
            learner=self.learner,
            lr=self.args.lr,
            width_multiplier=self.multiplier,
            pretrained=self.origin,
        )
        accuracy = payload["metrics"]["validation_accuracy"]
        in_layout = self.folder == self.paths.single_scratch(self.table.name, self.task.name)
        if in_layout or self.args.pruning_ratio_to_acc_record_file:
            self.record(0.0, accuracy)
        logging.info("Accuracy of %s without a backbone: %.4f", self.task.name, accuracy)

    # Pruning.

    @property
    def pruned(self) -> Path:
        """Folder of the pruned networks."""
        if self.args.save_folder and self.args.mode == ["prune"]:
            return self.args.save_folder
        return self.paths.pruned(self.table.name, self.task.name)

    def record(self, sparsity: float, accuracy: float) -> None:
        path = self.args.pruning_ratio_to_acc_record_file or record_file(self.pruned)
        update_json(path, {str(sparsity): accuracy})

    def prune(self) -> None:
        """Stage 2-1, second half: the pruning ratios in turn."""
        if self.args.initial_sparsity:
            start = sparsity_folder(self.pruned, self.args.initial_sparsity)
        else:
            start = self.paths.single_scratch(self.table.name, self.task.name)
        source = checkpoint_in(
            self.args.load_folder or start, remedy="train the task first, with --mode finetune"
        )
        parent = self.load(source)
        initial = self.args.initial_sparsity
        for sparsity in self.args.target_sparsity:
            parent = self.prune_from(
                parent,
                source=source,
                folder=sparsity_folder(self.pruned, sparsity),
                initial=initial,
                final=sparsity,
            )
            initial = sparsity
            accuracy = parent["metrics"]["validation_accuracy"]
            self.record(sparsity, accuracy)
            logging.info("Accuracy of %s at sparsity %s: %.4f", self.task.name, sparsity, accuracy)

    def prune_from(self, parent: dict, *, source: Path, folder: Path, initial: float, final: float) -> dict:
        """Prune the network in `parent` from one sparsity to the next into `folder`.

        Returns:
            The new payload.
        """

        def learner(shared: SharedNetwork) -> Learner:
            for piggymask in piggymasks_of(shared):  # they stay as they are: no gradients to compute
                piggymask.requires_grad_(False)
            optimizer = weight_optimizer(shared)
            method = GradualPruning(
                shared=shared,
                weight_decay=self.args.weight_decay,
                optimizer=optimizer,
                initial=initial,
                final=final,
                interval=self.args.pruning_frequency,
                span=min(self.args.pruning_interval, self.args.prune_epochs) * self.batches.steps_per_epoch,
            )
            schedules = {"weights": StepSchedule(self.args.prune_lr)}
            return Learner(method=method, optimizers={"weights": optimizer}, schedules=schedules)

        return self.learn(
            folder=folder,
            stage=f"prune {final}",
            epochs=self.args.prune_epochs,
            begin=lambda: SharedNetwork.from_payload(parent, build=self.build, source=source),
            learner=learner,
            lr_flag="--prune_lr",
            lr=self.args.prune_lr,
            initial_sparsity=initial,
            pruning_interval=self.args.pruning_interval,
            pruning_frequency=self.args.pruning_frequency,
            parent=fingerprint(parent),
        )

    # On a backbone.

    def learn_on_backbone(self) -> None:
        """Stage 3-2: the target on its backbone's pruned network, wider and wider as need be."""
        source = self.backbone_file()
        backbone = self.load(source)
        held = SharedNetwork.from_payload(backbone, build=self.build, source=source)
        try:
            held.index_of(self.backbone)
        except UserError as error:
            raise UserError(f"{source}: {error}: correct --load_folder or --backbone") from error
        baseline = self.baseline()
        widest = self.args.max_allowed_network_width_multiplier
        if self.multiplier > widest:
            raise UserError(
                f"--network_width_multiplier {self.multiplier} is over "
                f"--max_allowed_network_width_multiplier {widest}: lower one or raise the other"
            )
        widths = {}
        multipliers = width_multipliers(self.multiplier, widest)
        for multiplier in multipliers:
            metrics = self.learn_at_width(multiplier, backbone=backbone, source=source)["metrics"]
            grow = must_grow(
                accuracy=metrics["validation_accuracy"],
                baseline=baseline,
                train_accuracy=metrics["train_accuracy"],
            )
            widths[multiplier] = metrics | {"grow": grow}
            if not grow:
                break
            if multiplier != multipliers[-1]:
                logging.info("It's time to expand the Network")
        self.finish_target(widths)
        accuracy = metrics["validation_accuracy"]
        logging.info(
            "Final accuracy of %s on %s: %.4f at width multiplier %s (scratch baseline %.4f)",
            self.task.name,
            self.backbone,
            accuracy,
            multiplier,
            baseline,
        )

    def learn_at_width(self, multiplier: float, *, backbone: dict, source: Path) -> dict:
        """The target on its backbone at one width; returns the finished payload."""

        def begin() -> SharedNetwork:
            shared = SharedNetwork.from_payload(backbone, build=self.build, source=source)
            shared.begin_task(
                self.task.name,
                num_classes=self.task.num_classes,
                width=multiplier**0.5,
                modality=self.task.modality,
            )
            return shared

        return self.learn(
            folder=width_folder(self.folder, multiplier),
            stage=f"width {multiplier}",
            epochs=self.args.epochs,
            begin=begin,
            learner=self.learner,
            lr=self.args.lr,
            lr_mask=self.args.lr_mask,
            width_multiplier=multiplier,
            backbone=self.backbone,
            parent=fingerprint(backbone),
        )

    def finish_target(self, widths: dict[float, dict]) -> None:
        """Put the figures of every width, and the checkpoint of the widest, in place.

        Only now: what lies in the target's folder is what it ended at, never a width on the way. Widths
        that an earlier run tried count too, unless this one redoes the target.
        """
        if widths_file(self.folder).exists() and not self.args.overwrite:
            earlier = read_widths(self.folder)
            if max(earlier) > max(widths):
                logging.info(
                    "The target stays as an earlier run left it, at width multiplier %s", max(earlier)
                )
            widths = earlier | widths
        name = checkpoint_name(self.args.epochs)
        final = self.folder / name
        source = width_folder(self.folder, max(widths))
        write_changed(final, (source / name).read_bytes())
        write_changed(self.folder / TRAIN_CSV, (source / TRAIN_CSV).read_bytes())
        for path in checkpoints_in(self.folder).values():
            if path != final:
                path.unlink()
        entries = {str(width): widths[width] for width in sorted(widths)}
        write_changed(widths_file(self.folder), json_text(entries))
