"""Stages 2-1 and 3-2: train and prune a task's own network, or train the task on a growing backbone."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from data.tables import Task
from methods.cpg import reasons_to_grow, width_multipliers
from methods.ownership import SharedNetwork, redraw_freed
from pipeline.architectures import SHARABLE, Builder, check_transfers
from pipeline.flags import EVERY
from pipeline.fleet import backbone_of, candidates_of, check_of_fleet, read_widths
from pipeline.recipe import (
    InSequenceRecipe,
    OnBackboneRecipe,
    OwnNetworkRecipe,
    PruningSchedule,
    recorded_freed,
)
from pipeline.train_task import TaskRun, run_tasks
from training.checkpoints import fingerprint
from training.outputs import remove_stale
from utils.errors import UserError
from utils.files import json_text, update_json, write_changed
from utils.paths import (
    CONFIG_JSON,
    TRAIN_CSV,
    checkpoint_in,
    checkpoint_name,
    record_file,
    sparsity_folder,
    width_folder,
    widths_file,
)
from utils.significance import at_chance

BACKBONE_REMEDY = "run wo_backbone.sh and select_pruning_ratio_of_backbone.sh for the backbone first"


class Backbones:
    """Where the backbones' networks come from, and where targets on them go.

    Attributes:
        transfers: whether targets bring K/V projections of their own.
    """

    transfers = False

    def checkpoint(self, task: TaskRun, backbone: str) -> Path:
        """The backbone's checkpoint, from which the task starts."""
        folder = task.args.load_folder or task.fleet.pruned(task.table.name, backbone)
        return checkpoint_in(folder, remedy=BACKBONE_REMEDY)

    def target_folder(self, task: TaskRun, backbone: str) -> Path:
        """Folder of the task on its backbone, in the layout."""
        return task.paths.target(task.table.name, backbone, task.task.name)


def run(args: argparse.Namespace, *, backbones: Backbones | None = None, modality: str | None = None) -> None:
    """Train, prune or evaluate, as `--mode` says, every task in `--dataset`.

    Args:
        modality: keeps only the tasks of this modality.

    Raises:
        UserError: for an architecture that belongs to the other script of stage 3-2.
    """
    source = backbones or Backbones()

    def stages(task: TaskRun) -> Sequence[CPGTask]:
        if args.backbone is not None:
            check_transfers(task.build, transfers=source.transfers)
        return [CPGTask(task, backbones=source, backbone=backbone) for backbone in backbones_of(task)]

    run_tasks(args, layers=SHARABLE, stages=stages, modality=modality)


def backbones_of(task: TaskRun) -> Sequence[str | None]:
    """Names of the backbones to train the task on, as `--backbone` says; None: from scratch."""
    args = task.args
    if args.backbone is None:
        return [None]
    if args.backbone == EVERY:
        return [backbone.name for backbone in candidates_of(task.task, args, table=task.table)]
    return [backbone_of(task.task, asked=args.backbone, table=task.table, pairs=task.pairs_file).name]


class CPGTask:
    """One task's own network, or the task on a backbone.

    Attributes:
        backbone: the backbone's name; None to train from scratch.
        multiplier: initial width multiplier.
    """

    def __init__(self, task: TaskRun, *, backbones: Backbones, backbone: str | None) -> None:
        self.task = task
        self.args = task.args
        self.name: str = task.task.name
        self.config: str = task.table.name
        self.backbones = backbones
        self.backbone = backbone
        self.multiplier = task.width_multiplier

    @property
    def folder(self) -> Path:
        """Output folder of the task's networks."""
        paths = self.task.paths
        if self.args.save_folder:
            return self.args.save_folder
        if self.args.mode == ["prune"]:
            return paths.pruned(self.config, self.name)
        if self.backbone is not None:
            return self.backbones.target_folder(self.task, self.backbone)
        if self.multiplier != 1.0:
            return paths.control(self.config, self.name, width_multiplier=self.multiplier)
        return paths.single_scratch(self.config, self.name)

    @property
    def pruned(self) -> Path:
        """Folder of the pruned networks."""
        if self.args.save_folder and self.args.mode == ["prune"]:
            return self.args.save_folder
        return self.task.paths.pruned(self.config, self.name)

    def work(self) -> None:
        """Do what the flags request."""
        if self.args.mode == ["inference"]:
            self.task.inspect(self.args.load_folder or self.folder)
            return
        if "finetune" in self.args.mode:
            if self.backbone is None:
                self.learn_alone()
            else:
                self.learn_on_backbone()
        if "prune" in self.args.mode:
            self.prune()

    # The task's own network

    def learn_alone(self) -> None:
        """Stage 2-1, first half: train the task's own network, before pruning."""
        recipe = OwnNetworkRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            epochs=self.args.epochs,
            lr=self.args.lr,
            width_multiplier=self.multiplier,
            pretrained=self.task.origin,
        )
        payload = self.task.train_new(recipe, folder=self.folder)
        accuracy = payload["metrics"]["validation_accuracy"]
        in_layout = self.folder == self.task.paths.single_scratch(self.config, self.name)
        if in_layout or self.args.pruning_ratio_to_acc_record_file:
            self.record(0.0, accuracy)
        logging.info("Accuracy of %s without a backbone: %.4f", self.name, accuracy)

    def record(self, sparsity: float, accuracy: float) -> None:
        """Record an accuracy in the file of accuracies by sparsity."""
        path = self.args.pruning_ratio_to_acc_record_file or record_file(self.pruned)
        update_json(path, {str(sparsity): accuracy})

    def prune(self) -> None:
        """Stage 2-1, second half: prune to each ratio in turn."""
        initial = self.args.initial_sparsity
        if initial:
            start = sparsity_folder(self.pruned, initial)
        else:
            start = self.task.paths.single_scratch(self.config, self.name)
        source = checkpoint_in(
            self.args.load_folder or start, remedy="train the task first, with --mode finetune"
        )
        ratios = self.args.target_sparsity
        parent = self.task.load(source)
        for ratio, payload in prune_gradually(
            self.task,
            parent,
            schedule=PruningSchedule.from_args(self.args),
            source=source,
            pruned=self.pruned,
            ratios=ratios,
            initial=initial,
        ):
            self.record(ratio, payload["metrics"]["validation_accuracy"])

    # The task on a backbone

    def learn_on_backbone(self) -> None:
        """Stage 3-2: train the target on its backbone's pruned network, grown until wide enough."""
        source = self.backbones.checkpoint(self.task, self.backbone)
        backbone = self.task.load(source)
        check_of_fleet(backbone, self.args, where=source)
        try:
            self.task.restore(backbone, source).index_of(self.backbone)
        except UserError as error:
            raise UserError(f"{source}: {error}: correct --load_folder or --backbone") from error
        baseline = self.task.baseline()
        widest = self.args.max_allowed_network_width_multiplier
        if self.multiplier > widest:
            raise UserError(
                f"--network_width_multiplier {self.multiplier} exceeds "
                f"--max_allowed_network_width_multiplier {widest}: lower one or raise the other"
            )

        if not self.args.list_unfinished:
            warn_at_chance(baseline, task=self.name, labels=self.task.data.validation.labels)

        def too_small(metrics: dict) -> list[str]:
            return reasons_to_grow(
                accuracy=metrics["validation_accuracy"],
                baseline=baseline,
                train_accuracy=metrics["train_accuracy"],
            )

        payload, widths = grow(
            width_multipliers(self.multiplier, widest),
            train_at=lambda multiplier: self.learn_at_width(multiplier, backbone=backbone, source=source),
            too_small=too_small,
            task=self.name,
        )
        self.finish_target(widths)
        logging.info(
            "Final accuracy of %s on %s: %.4f at width multiplier %s (scratch baseline %.4f)",
            self.name,
            self.backbone,
            payload["metrics"]["validation_accuracy"],
            max(widths),
            baseline,
        )

    def learn_at_width(self, multiplier: float, *, backbone: dict, source: Path) -> dict:
        """Train the target on its backbone at one width; returns the finished payload."""
        recipe = OnBackboneRecipe(
            run=self.task.recipe,
            samples=self.task.samples,
            epochs=self.args.epochs,
            lr=self.args.lr,
            lr_mask=self.args.lr_mask,
            width_multiplier=multiplier,
            backbone=self.backbone,
            parent=fingerprint(backbone),
            freed=recorded_freed(self.args.freed),
        )
        return self.task.train(
            recipe,
            folder=width_folder(self.folder, multiplier),
            begin=lambda: on_top_of(
                backbone, source=source, task=self.task.task, build=self.task.build, recipe=recipe
            ),
        )

    def finish_target(self, widths: dict[float, dict]) -> None:
        """Write the metrics of every width and the widest checkpoint to the target's folder.

        This is done last, so that the target's folder only ever holds the final width. Widths that an
        earlier run tried count too, unless this run redoes the target.
        """
        if widths_file(self.folder).exists() and not self.args.overwrite:
            earlier = read_widths(self.folder)
            if max(earlier) > max(widths):
                logging.info("Keeping the target of an earlier run, at width multiplier %s", max(earlier))
            widths = earlier | widths
            widths = {width: metrics | {"grow": width < max(widths)} for width, metrics in widths.items()}
        name = checkpoint_name(self.args.epochs)
        final = self.folder / name
        source = width_folder(self.folder, max(widths))
        write_changed(final, (source / name).read_bytes())
        write_changed(self.folder / TRAIN_CSV, (source / TRAIN_CSV).read_bytes())
        if (source / CONFIG_JSON).exists():  # earlier versions wrote none
            write_changed(self.folder / CONFIG_JSON, (source / CONFIG_JSON).read_bytes())
        names = {"config": self.config, "task": self.name, "backbone": self.backbone}
        remove_stale(final, made_by=names)
        write_changed(widths_file(self.folder), widths_text(widths))


def on_top_of(
    before: dict,
    *,
    source: Path,
    task: Task,
    build: Builder,
    recipe: OnBackboneRecipe | InSequenceRecipe,
) -> SharedNetwork:
    """The network in the payload `before`, grown to the recipe's width, with the task begun."""
    shared = SharedNetwork.from_payload(before, build=build, source=source)
    shared.begin_task(task.name, num_classes=task.num_classes, width=recipe.width, modality=task.modality)
    if recipe.freed:
        redraw_freed(shared, only_dead_units=recipe.freed == "dead")
    return shared


def grow(
    multipliers: Sequence[float],
    *,
    train_at: Callable[[float], dict],
    too_small: Callable[[dict], Sequence[str]],
    task: str,
) -> tuple[dict, dict[float, dict]]:
    """Train at increasing width multipliers until the network is wide enough.

    Args:
        train_at: trains at one width and returns the finished payload.
        too_small: the reasons to grow, from the payload's metrics; empty if the network is wide enough.
        task: the task's name, for the log.

    Returns:
        The payload of the last width, and the metrics of each width tried, with "grow": whether the network
        grew after it.
    """
    widths: dict[float, dict] = {}
    for multiplier in multipliers:
        payload = train_at(multiplier)
        reasons = too_small(payload["metrics"])
        grows = bool(reasons) and multiplier != multipliers[-1]
        widths[multiplier] = payload["metrics"] | {"grow": grows}
        if grows:
            logging.info("It's time to expand the Network")
        if reasons:
            state = "too small" if grows else "too small, but at its maximum width"
            logging.info("%s at width multiplier %s is %s: %s", task, multiplier, state, ", ".join(reasons))
        if not grows:
            break
    return payload, widths


def widths_text(widths: dict[float, dict]) -> str:
    """The metrics of every width tried, as JSON."""
    return json_text({str(width): widths[width] for width in sorted(widths)})


def prune_gradually(
    task: TaskRun,
    parent: dict,
    *,
    schedule: PruningSchedule,
    source: Path,
    pruned: Path,
    ratios: Sequence[float],
    initial: float = 0.0,
) -> Iterator[tuple[float, dict]]:
    """Prune a network to each ratio in turn, each starting from the previous one.

    Args:
        parent: the payload of the network to start from, whose sparsity is `initial`.
        source: where the payload comes from, for messages.
        pruned: folder of the pruned networks.

    Yields:
        Each ratio with the finished payload.
    """
    for ratio in ratios:
        recipe = schedule.recipe(
            run=task.recipe,
            samples=task.samples,
            initial=initial,
            final=ratio,
            parent=fingerprint(parent),
        )
        folder = sparsity_folder(pruned, ratio)
        begin = partial(task.restore, parent, source)
        parent = task.train(recipe, folder=folder, begin=begin)
        accuracy = parent["metrics"]["validation_accuracy"]
        logging.info("Accuracy of %s at sparsity %s: %.4f", task.task.name, ratio, accuracy)
        yield ratio, parent
        source, initial = folder, ratio


def warn_at_chance(baseline: float, *, task: str, labels: Tensor | None) -> None:
    """Log a warning if a scratch baseline is not above chance: what it decides is then arbitrary.

    Args:
        labels: of the samples that the baseline was measured on, int64 (N,); None if they are unknown.
    """
    if labels is None or not at_chance(baseline, labels.tolist()):
        return
    if at_chance(1.0, labels.tolist()):
        logging.warning(
            "%d samples are too few to tell the scratch baseline of %s, %.4f, from chance: neither pruning "
            "ratio nor growth should be decided by it; give the task more images",
            *(len(labels), task, baseline),
        )
    else:
        logging.warning(
            "The scratch baseline of %s, %.4f, is not above chance (%d samples): neither pruning ratio nor "
            "growth should be decided by it; train the scratch network for longer, with another --lr or "
            "another --arch",
            *(task, baseline, len(labels)),
        )


def log_choice(ratio: float, *, task: str, accuracy: float, baseline: float) -> None:
    """Log the chosen ratio, 0.0 for the unpruned network, and the accuracy at it."""
    logging.info("%s: scratch baseline %.4f, accuracy %.4f at sparsity %s", task, baseline, accuracy, ratio)
    if ratio:
        logging.info("We choose pruning ratio %s (%s)", ratio, task)
    else:
        logging.info("We select scratch: no pruned network of %s reaches the baseline", task)
