"""Stage 1: the scratch network of a task, with PackNet's ownership."""

import argparse
import logging
from pathlib import Path

from methods.cpg import BASELINE_DIGITS
from pipeline.architectures import PLAIN
from pipeline.recipe import PackNetPruningRecipe, ScratchRecipe
from pipeline.train_task import TaskRun, run_tasks
from training.checkpoints import fingerprint
from utils.files import update_json
from utils.paths import checkpoint_in, sparsity_folder


def run(args: argparse.Namespace) -> None:
    """Train, prune or evaluate, as `--mode` says, every task in `--dataset`."""
    run_tasks(args, layers=PLAIN, stages=lambda task: [ScratchTask(task)])


class ScratchTask:
    """One task's scratch network.

    Attributes:
        multiplier: the network's width multiplier.
        layout: the network's folder in the layout.
        folder: the folder to write to.
    """

    def __init__(self, task: TaskRun) -> None:
        self.task = task
        self.args = task.args
        self.name: str = task.task.name
        self.multiplier = task.width_multiplier
        self.layout: Path = (
            task.paths.baselines(task.table.name, width_multiplier=self.multiplier) / self.name
        )
        self.folder: Path = self.args.save_folder or self.layout

    def work(self) -> None:
        """Do what the flags request."""
        if self.args.mode == "finetune":
            self.finetune()
        elif self.args.mode == "prune":
            for sparsity in self.args.target_sparsity:
                self.prune(sparsity)
        else:
            self.task.inspect(self.args.load_folder or self.layout)

    def finetune(self) -> None:
        """Train the scratch network, and record its accuracy in the baseline file."""
        recipe = ScratchRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            epochs=self.args.epochs,
            lr=self.args.lr,
            width_multiplier=self.multiplier,
            pretrained=self.task.origin,
        )
        payload = self.task.train_new(recipe, folder=self.folder)
        accuracy = payload["metrics"]["validation_accuracy"]
        logging.info("Scratch accuracy of %s: %.4f", self.name, accuracy)
        if self.folder == self.layout or self.args.jsonfile:
            path = self.args.jsonfile or self.task.paths.baseline_file(
                self.task.table.name, width_multiplier=self.multiplier
            )
            update_json(path, {self.name: f"{accuracy:.{BASELINE_DIGITS}f}"})

    def prune(self, sparsity: float) -> None:
        """Cut the scratch network once, and retrain it."""
        source = self.args.load_folder or self.layout
        path = checkpoint_in(source, remedy="train the task first, with --mode finetune")
        parent = self.task.load(path)
        recipe = PackNetPruningRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            epochs=self.args.epochs,
            lr=self.args.lr,
            sparsity=sparsity,
            parent=fingerprint(parent),
        )
        payload = self.task.train(
            recipe,
            folder=sparsity_folder(self.args.save_folder or self.layout / "prune", sparsity),
            begin=lambda: self.task.restore(parent, path),
        )
        accuracy = payload["metrics"]["validation_accuracy"]
        logging.info("Accuracy of %s at sparsity %s: %.4f", self.name, sparsity, accuracy)
