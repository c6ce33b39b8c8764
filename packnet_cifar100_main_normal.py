#!/usr/bin/env python3
"""Stage 1: train every task's scratch network, with PackNet's layers and masks."""

import argparse
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from methods.cpg import BASELINE_DIGITS, weight_optimizer, weight_schedule
from methods.ownership import OwnedTraining, SharedNetwork
from methods.packnet import PackNetPruning
from packnet_models import ARCHITECTURES
from tools.task_run import TaskRun, final_width, run_tasks
from utils import arguments, errors
from utils.checkpoints import fingerprint
from utils.files import update_json
from utils.paths import checkpoint_in, sparsity_folder
from utils.training import Learner, StepSchedule

LAYERS = "plain"


def main(argv: Sequence[str] | None = None) -> None:
    run_tasks(parse(argv), script=PackNetRun, registry=ARCHITECTURES, layers=LAYERS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    arguments.add_common(parser)
    arguments.add_training(parser)
    arguments.add_report(parser)
    group = parser.add_argument_group("PackNet")
    group.add_argument(
        "--mode",
        choices=("finetune", "prune", "inference"),
        default="finetune",
        help="Train; or prune once and retrain; or evaluate a checkpoint.",
    )
    group.add_argument(
        "--target_sparsity",
        type=arguments.sparsity,
        nargs="+",
        default=[0.5],
        help="Shares to prune in --mode prune, each from the unpruned network.",
    )
    arguments.add_width(group)
    arguments.add_chosen_pairs(group)
    args = parser.parse_args(argv)
    arguments.check_report(parser, args)
    if args.load_folder and args.mode == "finetune":
        parser.error("--load_folder: --mode finetune starts from scratch")
    return args


class PackNetRun(TaskRun):
    """One task's scratch network."""

    @cached_property
    def multiplier(self) -> float:
        if self.args.network_width_multiplier == arguments.FROM_TARGET:
            pairs = arguments.pairs_file(self.args, self.table.name)
            return final_width(self.paths, table=self.table, target=self.task, pairs=pairs)
        return self.args.network_width_multiplier

    @cached_property
    def layout(self) -> Path:
        return self.paths.baselines(self.table.name, width_multiplier=self.multiplier) / self.task.name

    @property
    def folder(self) -> Path:
        return self.args.save_folder or self.layout

    def run(self) -> None:
        if self.args.mode == "finetune":
            self.finetune()
        elif self.args.mode == "prune":
            for sparsity in self.args.target_sparsity:
                self.prune(sparsity)
        else:
            self.look_at(self.args.load_folder or self.layout)

    def finetune(self) -> None:
        def learner(shared: SharedNetwork) -> Learner:
            return Learner(
                method=OwnedTraining(shared=shared, weight_decay=self.args.weight_decay),
                optimizers={"weights": weight_optimizer(shared)},
                schedules={"weights": weight_schedule(lr=self.args.lr, epochs=self.args.epochs)},
            )

        payload = self.learn(
            folder=self.folder,
            stage="baseline",
            epochs=self.args.epochs,
            begin=lambda: self.new_network(width=self.multiplier**0.5),
            learner=learner,
            lr=self.args.lr,
            width_multiplier=self.multiplier,
            pretrained=self.origin,
        )
        accuracy = payload["metrics"]["validation_accuracy"]
        logging.info("Scratch accuracy of %s: %.4f", self.task.name, accuracy)
        if self.folder == self.layout or self.args.jsonfile:
            path = self.args.jsonfile or self.paths.baseline_file(
                self.table.name, width_multiplier=self.multiplier
            )
            update_json(path, {self.task.name: f"{accuracy:.{BASELINE_DIGITS}f}"})

    def prune(self, sparsity: float) -> None:
        source = self.args.load_folder or self.layout
        path = checkpoint_in(source, remedy="train the task first, with --mode finetune")
        parent = self.load(path)

        def learner(shared: SharedNetwork) -> Learner:
            optimizer = weight_optimizer(shared)
            return Learner(
                method=PackNetPruning(
                    shared=shared,
                    weight_decay=self.args.weight_decay,
                    optimizer=optimizer,
                    sparsity=sparsity,
                ),
                optimizers={"weights": optimizer},
                schedules={"weights": StepSchedule(self.args.lr)},
            )

        payload = self.learn(
            folder=sparsity_folder(self.args.save_folder or self.layout / "prune", sparsity),
            stage=f"prune {sparsity}",
            epochs=self.args.epochs,
            begin=lambda: SharedNetwork.from_payload(parent, build=self.build, source=path),
            learner=learner,
            lr=self.args.lr,
            parent=fingerprint(parent),
        )
        accuracy = payload["metrics"]["validation_accuracy"]
        logging.info("Accuracy of %s at sparsity %s: %.4f", self.task.name, sparsity, accuracy)


if __name__ == "__main__":
    errors.run(main)
