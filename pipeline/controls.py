"""Controls of stage 3-2: other ways to reuse a backbone's network.

Both start from the network of stage 2-1 before pruning, the best that the backbone's device has.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.loading import Batches, Samples, evaluation_batches, load_task
from methods.footprint import stored_bytes
from methods.ownership import SharedNetwork
from models.network import Network
from pipeline.architectures import SHARABLE
from pipeline.cpg import backbones_of
from pipeline.fleet import check_of_fleet
from pipeline.recipe import CopyRecipe, ProbeRecipe
from pipeline.train_task import TaskRun, run_tasks
from training.checkpoints import fingerprint
from training.loop import evaluate
from training.outputs import Unfinished, require_same
from utils.files import json_text, read_json, write_atomically
from utils.paths import checkpoint_in, control_file

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


def run(args: argparse.Namespace) -> None:
    """Run the control `--reuse` on every task in `--dataset`."""
    control = STAGES[args.reuse]
    run_tasks(
        args,
        layers=SHARABLE,
        stages=lambda task: [control(task, backbone=backbone) for backbone in backbones_of(task)],
    )


class Control:
    """A target that reuses a backbone's unpruned network.

    Attributes:
        folder: output folder, with the metrics in `control.json`.
    """

    def __init__(self, task: TaskRun, *, backbone: str) -> None:
        self.task = task
        self.backbone = backbone
        self.config = task.table.name
        self.folder: Path = task.args.save_folder or task.paths.reused(
            self.config, backbone, task.task.name, how=task.args.reuse
        )

    def source(self) -> tuple[Path, dict]:
        """The backbone's unpruned checkpoint and its payload."""
        folder = self.task.args.load_folder or self.task.fleet.single_scratch(self.config, self.backbone)
        path = checkpoint_in(folder, remedy="run run_pickaback/wo_backbone.sh for the backbone first")
        payload = self.task.load(path)
        check_of_fleet(payload, self.task.args, where=path)
        return path, payload

    def reused(self, payload: dict, path: Path) -> Network:
        """The backbone's network as its own task sees it, on the device."""
        shared = self.task.restore(payload, path)
        return shared.as_task(self.backbone).to(self.task.compute.device)

    def is_finished(self, stamp: dict) -> bool:
        """Whether `control.json` is written.

        Raises:
            UserError: if another recipe wrote it.
            Unfinished: if it is missing, and unfinished work is only being listed.
        """
        output = control_file(self.folder)
        if self.task.args.overwrite or not output.exists():
            if self.task.args.list_unfinished:
                raise Unfinished
            return False
        found = read_json(output, remedy="delete it").get("arguments", {})
        require_same(found, stamp, where=output)
        logging.info("%s is finished: skipped (--overwrite redoes it)", output)
        return True

    def write(self, metrics: dict, *, stamp: dict) -> None:
        """Write `control.json`, and log the accuracy."""
        entry = {"backbone": self.backbone, "arguments": stamp, "metrics": metrics}
        write_atomically(control_file(self.folder), json_text(entry))
        logging.info(
            "Control (%s) of %s on %s: test accuracy %.4f",
            *(self.task.args.reuse, self.task.task.name, self.backbone, metrics["test_accuracy"]),
        )


class Copy(Control):
    """Fine-tune a dense copy, which loses the backbone's own task."""

    def work(self) -> None:
        """Train the copy, and measure what it keeps of the backbone's task."""
        path, payload = self.source()
        recipe = CopyRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            epochs=self.task.args.epochs,
            lr=self.task.args.lr,
            width_multiplier=self.task.width_multiplier,
            backbone=self.backbone,
            parent=fingerprint(payload),
        )
        if self.is_finished(recipe.stamp()):
            return

        def begin() -> SharedNetwork:
            shared = self.task.new_network(width=recipe.width)
            copied = self.task.restore(payload, path).as_task(self.backbone)
            shared.network.features.load_state_dict(copied.features.state_dict())
            return shared

        finished = self.task.train(recipe, folder=self.folder, begin=begin)
        before = self.reused(payload, path)
        tests = self.tests_of_backbone(payload)
        kept = evaluate(before, tests.test(), autocast=self.task.compute.autocast).accuracy
        shared = self.task.restore(finished, self.folder)
        before.features.load_state_dict(shared.as_task(self.task.task.name).features.state_dict())
        left = evaluate(before, tests.test(), autocast=self.task.compute.autocast).accuracy
        both = (self.task.restore(payload, path), shared)
        metrics = finished["metrics"] | {
            "backbone_accuracy_before": kept,
            "backbone_accuracy_after": left,
            "bytes": sum(stored_bytes(network)["weights"] for network in both),
        }
        self.write(metrics, stamp=recipe.stamp())

    def tests_of_backbone(self, payload: dict) -> Batches:
        """The test samples of the backbone's task, normalised as it was trained."""
        made_with = payload.get("arguments", {})
        data = load_task(
            self.task.table,
            self.task.table.task(self.backbone),
            data_root=self.task.args.data_root,
            protocol="published",
            seed=self.task.recipe.seed,
            device=self.task.compute.device,
            text_encoder=self.task.args.text_encoder,
            train_per_class=made_with.get("train_per_class", 0),
        )
        return Batches(
            data, batch_size=self.task.recipe.batch_size, val_batch_size=self.task.args.val_batch_size
        )


class Probe(Control):
    """Fit a linear classifier to frozen features; the validation samples choose its L2 penalty."""

    def work(self) -> None:
        """Fit the classifier, unless it is finished."""
        path, payload = self.source()
        recipe = ProbeRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            backbone=self.backbone,
            parent=fingerprint(payload),
            strengths=STRENGTHS,
        )
        if self.is_finished(recipe.stamp()):
            return
        network = self.reused(payload, path)
        data = self.task.data
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        inputs = {split: self.features(network, samples) for split, samples in splits.items()}
        labels = {split: samples.labels.cpu().numpy() for split, samples in splits.items()}
        tried = []
        for strength in STRENGTHS:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            classifier.fit(inputs["train"], labels["train"])
            reached = {
                f"{split}_accuracy": float(classifier.score(inputs[split], labels[split])) for split in inputs
            }
            tried.append(reached | {"strength": strength})
        self.write(max(tried, key=lambda metrics: metrics["validation_accuracy"]), stamp=recipe.stamp())

    @torch.no_grad()
    def features(self, network: Network, samples: Samples) -> np.ndarray:
        """Features (N, width) of the samples, float64."""
        size = self.task.args.val_batch_size
        with self.task.compute.autocast:
            parts = [
                network.encode(inputs)
                for inputs, _ in evaluation_batches(samples, self.task.data.to_inputs, batch_size=size)
            ]
        return torch.cat(parts).double().cpu().numpy()


STAGES = {"copy": Copy, "probe": Probe}
