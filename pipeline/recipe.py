"""Everything that affects a result: one frozen dataclass per stage.

A stage builds its learner from its recipe alone and stamps its output with the same recipe. No setting can
thus affect a result without being recorded, and output from a different recipe is refused.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from data.loading import Batches, TaskData
from data.text_encoders import MAX_TOKENS
from methods.approaches.base import Approach, Settings, TaskPasses
from methods.cpg import (
    CPG,
    freeze_epoch,
    piggymask_optimizer,
    piggymask_schedule,
    piggymasks_of,
    weight_optimizer,
    weight_schedule,
)
from methods.gradual_pruning import GradualPruning
from methods.ownership import OwnedTraining, SharedNetwork
from methods.packnet import PackNetPruning
from pipeline.architectures import Builder, resolved_clip_grad_norm
from pipeline.flags import OWN
from training.loop import Compute, Learner
from training.method import Method
from training.schedules import Schedule, StepSchedule
from utils.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that affect a result.

    Fields that hold recipes, settings or mappings are flattened in the stamp. A field marked `in_stage` is
    recorded as part of the stage's name; one marked `omit_if_off` is recorded only if it is on.
    """

    def stamp(self) -> dict[str, Any]:
        """Every setting, as plain numbers and strings."""
        entries: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata.get("in_stage") or (item.metadata.get("omit_if_off") and not value):
                continue
            if isinstance(value, Recipe):
                entries |= value.stamp()
            elif isinstance(value, Mapping):
                entries |= value
            elif is_dataclass(value):
                entries |= vars(value)
            else:
                entries[item.name] = list(value) if isinstance(value, tuple) else value
        return entries


@dataclass(frozen=True, kw_only=True)
class RunRecipe(Recipe):
    """Settings common to all training runs under the same flags.

    Attributes:
        arch_file: digest of the file that defines the architecture; None for one of this project's.
        sizes: the architecture's sizes besides the width.
        clip_grad_norm: resolved value; None disables clipping.
    """

    arch: str
    arch_file: str | None = field(default=None, metadata={"omit_if_off": True})
    sizes: Mapping[str, Any]
    seed: int
    protocol: str
    precision: str
    nondeterministic: bool = field(metadata={"omit_if_off": True})
    batch_size: int
    weight_decay: float
    clip_grad_norm: float | None

    @classmethod
    def from_args(cls, args: argparse.Namespace, *, build: Builder) -> "RunRecipe":
        return cls(
            arch=str(args.arch),
            arch_file=build.file,
            sizes=build.sizes,
            seed=args.seed,
            protocol=args.protocol,
            precision=args.precision,
            nondeterministic=args.nondeterministic,
            batch_size=args.batch_size,
            weight_decay=args.weight_decay,
            clip_grad_norm=resolved_clip_grad_norm(args.clip_grad_norm, build=build),
        )


@dataclass(frozen=True, kw_only=True)
class SamplesRecipe(Recipe):
    """The samples of a task.

    Attributes:
        data: fingerprint of the samples and of their preprocessing.
        text_encoder, max_tokens: for texts, the encoder's identity and the maximum number of tokens.
        train_per_class: training samples drawn per class; None if all are used.
    """

    config: str
    task: str
    data: str
    text_encoder: str | None = field(default=None, metadata={"omit_if_off": True})
    max_tokens: int | None = field(default=None, metadata={"omit_if_off": True})
    train_per_class: int | None = field(default=None, metadata={"omit_if_off": True})

    @classmethod
    def of(cls, data: TaskData) -> "SamplesRecipe":
        texts = {} if data.encoder is None else text_entries(data.encoder.identity)
        return cls(
            config=data.table.name,
            task=data.task.name,
            data=data.fingerprint,
            train_per_class=data.train_per_class,
            **texts,
        )


def text_entries(identity: str) -> dict[str, Any]:
    """Stamp entries of a text task besides its data, by name, so that a refusal can name what differs."""
    return {"text_encoder": identity, "max_tokens": MAX_TOKENS}


# One training run on one task of a table


@dataclass(frozen=True, kw_only=True)
class StageRecipe(Recipe, ABC):
    """One training run: the settings common to all stages, and this stage's own.

    Attributes:
        lr: initial learning rate of the weights.
    """

    run: RunRecipe
    samples: SamplesRecipe
    epochs: int
    lr: float

    @property
    @abstractmethod
    def stage(self) -> str:
        """Name of the stage."""

    @property
    def title(self) -> str:
        """Title of the progress bar and in messages."""
        return f"{self.samples.task}, {self.stage}"

    @property
    def draws(self) -> int:
        """Seed of the initial weights and of every draw."""
        return derive_seed(self.run.seed, self.samples.config, self.samples.task, self.stage)

    @property
    def lr_flag(self) -> str:
        """The flag that sets the learning rate, for messages."""
        return "--lr"

    @abstractmethod
    def learner(self, model: SharedNetwork, *, batches: Batches, compute: Compute) -> Learner:
        """Build the learner for the newest task of a network."""

    def stamp(self) -> dict[str, Any]:
        return super().stamp() | {"stage": self.stage}

    def _learner(self, method: Method, **trained: tuple[Optimizer, Schedule]) -> Learner:
        """Build a learner from (optimizer, schedule) pairs by name, the weights' first."""
        return Learner(
            method=method,
            optimizers={name: optimizer for name, (optimizer, _) in trained.items()},
            schedules={name: schedule for name, (_, schedule) in trained.items()},
            epochs=self.epochs,
            clip_grad_norm=self.run.clip_grad_norm,
        )


def recorded_probes(asked: str) -> str | None:
    """The kind of probes that a recipe records for `--probes`."""
    return None if asked == OWN else asked


def recorded_freed(freed: str) -> str | None:
    """`--freed` as recipes record it. Earlier versions, which do not record it, started at zero."""
    return None if freed == "zero" else freed


def short_run_entries(epochs: int, *, lr: float) -> dict[str, Any]:
    """Entries that only runs of one or two epochs have.

    Earlier versions put their learning-rate drops before the first epoch, or merged them.
    """
    if epochs >= 3:
        return {}
    drops = sorted(weight_schedule(lr=lr, epochs=epochs).drops.items())
    return {"lr_drops": [f"{factor:g} after {epoch}" for epoch, factor in drops]}


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(StageRecipe):
    """Training with CPG's schedule: two learning-rate drops, at fixed fractions of the epochs.

    Attributes:
        width_multiplier: the network's width multiplier during training.
    """

    width_multiplier: float

    @property
    def width(self) -> float:
        """The factor on the number of channels."""
        return self.width_multiplier**0.5

    def stamp(self) -> dict[str, Any]:
        return super().stamp() | short_run_entries(self.epochs, lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class ScratchRecipe(TrainingRecipe):
    """Stage 1: a scratch network with PackNet's ownership.

    Attributes:
        pretrained: origin of the initial weights; None for random ones.
    """

    pretrained: str | None

    @property
    def stage(self) -> str:
        return "baseline"

    def learner(self, model: SharedNetwork, *, batches: Batches, compute: Compute) -> Learner:
        method = OwnedTraining(shared=model, weight_decay=self.run.weight_decay)
        schedule = weight_schedule(lr=self.lr, epochs=self.epochs)
        return self._learner(method, weights=(weight_optimizer(model), schedule))


@dataclass(frozen=True, kw_only=True)
class PackNetPruningRecipe(StageRecipe):
    """One cut of a scratch network, then retraining.

    Attributes:
        sparsity: share of each layer's weights that is freed.
        parent: fingerprint of the network that is pruned.
    """

    sparsity: float = field(metadata={"in_stage": True})
    parent: str

    @property
    def stage(self) -> str:
        return f"prune {self.sparsity}"

    def learner(self, model: SharedNetwork, *, batches: Batches, compute: Compute) -> Learner:
        optimizer = weight_optimizer(model)
        method = PackNetPruning(
            shared=model,
            weight_decay=self.run.weight_decay,
            optimizer=optimizer,
            sparsity=self.sparsity,
        )
        return self._learner(method, weights=(optimizer, StepSchedule(self.lr)))


@dataclass(frozen=True, kw_only=True)
class CPGRecipe(TrainingRecipe, ABC):
    """Training with CPG: the task's own weights, and piggymasks over those of earlier tasks.

    Attributes:
        lr_mask: learning rate of the piggymasks; None for a network without any.
        parent: fingerprint of the network that training starts from.
        pretrained: origin of the initial weights if there is no parent; None for random ones.
    """

    lr_mask: float | None = None
    parent: str | None = None
    pretrained: str | None = None

    def learner(self, model: SharedNetwork, *, batches: Batches, compute: Compute) -> Learner:
        schedule = weight_schedule(lr=self.lr, epochs=self.epochs)
        trained = {"weights": (weight_optimizer(model), schedule)}
        if piggymasks_of(model):
            schedule = piggymask_schedule(lr=self.lr_mask, epochs=self.epochs)
            trained["piggymasks"] = piggymask_optimizer(model), schedule
        method = CPG(
            shared=model,
            weight_decay=self.run.weight_decay,
            freeze_after=freeze_epoch(self.epochs),
        )
        return self._learner(method, **trained)


@dataclass(frozen=True, kw_only=True)
class OwnNetworkRecipe(CPGRecipe):
    """Stage 2-1: a task's own network before pruning, and the control at a grown width."""

    @property
    def stage(self) -> str:
        return "scratch"


@dataclass(frozen=True, kw_only=True)
class OnBackboneRecipe(CPGRecipe):
    """Stage 3-2: a target on its backbone at one width.

    Attributes:
        freed: how weights that pruning freed start, "random" or "dead"; None: at zero, as published.
    """

    backbone: str
    freed: str | None = field(default=None, metadata={"omit_if_off": True})

    @property
    def stage(self) -> str:
        return f"width {self.width_multiplier}"


@dataclass(frozen=True, kw_only=True)
class CopyRecipe(CPGRecipe):
    """Control: a dense copy of the backbone's unpruned network, fine-tuned on the target."""

    backbone: str

    @property
    def stage(self) -> str:
        return "copy"


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe(Recipe):
    """Control: a linear classifier on the frozen features of the backbone's unpruned network.

    Attributes:
        parent: fingerprint of the network.
        strengths: inverse strengths of the L2 penalty that are tried.
    """

    run: RunRecipe
    samples: SamplesRecipe
    backbone: str
    parent: str
    strengths: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class InSequenceRecipe(CPGRecipe):
    """One task of a sequence at one width, on top of the tasks before it.

    Attributes:
        freed: how weights that pruning freed start, "random" or "dead"; None: at zero, as published.
    """

    freed: str | None = field(default=None, metadata={"omit_if_off": True})

    @property
    def stage(self) -> str:
        return f"in sequence, width {self.width_multiplier}"


@dataclass(frozen=True, kw_only=True)
class GradualPruningRecipe(StageRecipe):
    """Gradual pruning from one sparsity to the next.

    Attributes:
        pruning_interval: epochs during which the sparsity grows.
        pruning_frequency: steps between cuts.
        parent: fingerprint of the network that is pruned.
    """

    initial_sparsity: float
    final_sparsity: float = field(metadata={"in_stage": True})
    pruning_interval: int
    pruning_frequency: int
    parent: str

    @property
    def stage(self) -> str:
        return f"prune {self.final_sparsity}"

    @property
    def lr_flag(self) -> str:
        return "--prune_lr"

    def learner(self, model: SharedNetwork, *, batches: Batches, compute: Compute) -> Learner:
        for piggymask in piggymasks_of(model):  # fixed while pruning: skip their gradients
            piggymask.requires_grad_(False)
        optimizer = weight_optimizer(model)
        method = GradualPruning(
            shared=model,
            weight_decay=self.run.weight_decay,
            optimizer=optimizer,
            initial=self.initial_sparsity,
            final=self.final_sparsity,
            interval=self.pruning_frequency,
            span=min(self.pruning_interval, self.epochs) * batches.steps_per_epoch,
        )
        return self._learner(method, weights=(optimizer, StepSchedule(self.lr)))


# Several training runs, and choices


@dataclass(frozen=True, kw_only=True)
class PruningSchedule(Recipe):
    """How a network is pruned from one ratio to the next.

    Attributes:
        prune_epochs, prune_lr: epochs and learning rate at each ratio.
        pruning_interval: epochs during which the sparsity grows.
        pruning_frequency: steps between two cuts.
    """

    prune_epochs: int
    prune_lr: float
    pruning_interval: int
    pruning_frequency: int

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "PruningSchedule":
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    def recipe(
        self, *, run: RunRecipe, samples: SamplesRecipe, initial: float, final: float, parent: str
    ) -> GradualPruningRecipe:
        """The pruning of the network `parent` from sparsity `initial` to `final`."""
        return GradualPruningRecipe(
            run=run,
            samples=samples,
            epochs=self.prune_epochs,
            lr=self.prune_lr,
            initial_sparsity=initial,
            final_sparsity=final,
            pruning_interval=self.pruning_interval,
            pruning_frequency=self.pruning_frequency,
            parent=parent,
        )


@dataclass(frozen=True, kw_only=True)
class SequenceTaskRecipe(Recipe):
    """One task of a sequence, from training to the chosen ratio, except the room left for later tasks.

    Attributes:
        baseline: accuracy of the task's scratch network.
        parent: fingerprint of the network that the previous task left; None for a first task.
        pretrained: origin of the initial weights of a first task; None: random.
        freed: as in `InSequenceRecipe`.
    """

    run: RunRecipe
    samples: SamplesRecipe
    epochs: int
    lr: float
    lr_mask: float
    pruning: PruningSchedule
    target_sparsity: tuple[float, ...]
    allow_acc_loss: float
    stop_pruning_early: bool
    network_width_multiplier: float
    max_allowed_network_width_multiplier: float
    baseline: float
    parent: str | None
    pretrained: str | None
    freed: str | None = field(default=None, metadata={"omit_if_off": True})

    def stamp(self) -> dict[str, Any]:
        return super().stamp() | short_run_entries(self.epochs, lr=self.lr)

    def at_width(self, multiplier: float) -> InSequenceRecipe:
        """The task's training at one width multiplier."""
        return InSequenceRecipe(
            run=self.run,
            samples=self.samples,
            epochs=self.epochs,
            lr=self.lr,
            lr_mask=self.lr_mask,
            width_multiplier=multiplier,
            parent=self.parent,
            pretrained=self.pretrained,
            freed=self.freed,
        )


@dataclass(frozen=True, kw_only=True)
class ProbesRecipe(Recipe):
    """The probes on which networks are compared.

    Attributes:
        val_batch_size: number of probes for either network.
        probes: "public" or "noise"; None: each task contributes its own samples.
        pool: fingerprint of the probes that all devices share; None for tasks' own.
    """

    val_batch_size: int
    seed: int
    protocol: str
    probes: str | None = field(default=None, metadata={"omit_if_off": True})
    pool: str | None = field(default=None, metadata={"omit_if_off": True})


@dataclass(frozen=True, kw_only=True)
class LabelledSampleRecipe(Recipe):
    """The training samples of a target from which rules by labels are computed.

    Attributes:
        rule_samples: their maximum number.
    """

    rule_samples: int


@dataclass(frozen=True, kw_only=True)
class RaceRecipe(Recipe):
    """Training of a target on its candidates for a few epochs, as in stage 3-2 at width multiplier 1.

    Attributes:
        race_epochs: epochs on each candidate.
        freed: as in `OnBackboneRecipe`.
    """

    run: RunRecipe
    samples: SamplesRecipe
    race_epochs: int
    lr: float
    lr_mask: float
    freed: str | None = field(default=None, metadata={"omit_if_off": True})

    def on(self, candidate: str, *, parent: str) -> OnBackboneRecipe:
        """The training on one candidate, whose pruned network has the fingerprint `parent`."""
        return OnBackboneRecipe(
            run=self.run,
            samples=self.samples,
            epochs=self.race_epochs,
            lr=self.lr,
            lr_mask=self.lr_mask,
            width_multiplier=1.0,
            backbone=candidate,
            parent=parent,
            freed=self.freed,
        )


@dataclass(frozen=True, kw_only=True)
class SearchRecipe(Recipe):
    """The choice of a target's backbone.

    Attributes:
        candidates: ids of the tasks compared.
        networks: fingerprints of the target's network and samples, then of each candidate's.
        max_iterations, epsilon: number and size of the probes' mutations.
        select: the selection rule, or the given backbone.
        pruned: fingerprints of the candidates' pruned networks, if the rule needs them.
        sample: the target's labelled sample, if the rule needs it.
        race: the training on the candidates, with the rule "race".
        finalists: number of candidates that the rule chooses among, the best by `first_rule`; None: all.
    """

    candidates: tuple[int, ...]
    networks: tuple[str, ...]
    probes: ProbesRecipe
    max_iterations: int
    epsilon: float
    precision: str
    nondeterministic: bool = field(metadata={"omit_if_off": True})
    select: str
    pruned: tuple[str, ...] = field(default=(), metadata={"omit_if_off": True})
    sample: LabelledSampleRecipe | None = field(default=None, metadata={"omit_if_off": True})
    race: RaceRecipe | None = field(default=None, metadata={"omit_if_off": True})
    finalists: int | None = field(default=None, metadata={"omit_if_off": True})
    first_rule: str | None = field(default=None, metadata={"omit_if_off": True})

    def stamp(self) -> dict[str, Any]:
        # Earlier versions took +ε whenever it beat the best score, even if -ε was better still.
        better = {"mutation": "better sign"} if self.max_iterations else {}
        return super().stamp() | better


@dataclass(frozen=True, kw_only=True)
class TransferRecipe(Recipe):
    """A K/V transfer.

    Attributes:
        target: the task whose projection is transferred.
        backbone, projection: fingerprints of the networks that receive and provide it.
    """

    target: str
    backbone: str
    projection: str


@dataclass(frozen=True, kw_only=True)
class ContinualRecipe(Recipe):
    """An approach on a sequence of tasks, without the data.

    Attributes:
        arch_file: digest of the file that defines the architecture; None for one of this project's.
        width: factor on the number of channels.
        dropout: of the first two convolutions, and of the rest; None for an architecture without dropout.
        settings: settings shared by all approaches.
        options: the approach's own settings.
        definition: hash of the sequence's entry in a user's own file; None for a sequence of the project.
    """

    seq: str
    appr: str
    arch: str
    arch_file: str | None = field(default=None, metadata={"omit_if_off": True})
    seed: int
    precision: str
    nondeterministic: bool = field(metadata={"omit_if_off": True})
    epochs: int
    batch_size: int
    width: float
    dropout: tuple[float, float] | None
    settings: Settings
    options: object
    definition: str | None = field(default=None, metadata={"omit_if_off": True})


@dataclass(frozen=True, kw_only=True)
class ContinualStageRecipe(Recipe):
    """One stage of learning one task of a sequence.

    Attributes:
        data: fingerprint of the samples of all tasks so far.
    """

    run: ContinualRecipe
    task: str
    stage: str
    data: str

    lr_flag: ClassVar[str] = "--lr"

    @property
    def title(self) -> str:
        """Title of the progress bar and in messages."""
        return f"{self.task}, {self.stage}"

    @property
    def draws(self) -> int:
        """Seed of the initial weights and of every draw."""
        return derive_seed(self.run.seed, self.run.seq, self.task, self.stage)

    def learner(self, model: Approach, *, batches: Batches, compute: Compute) -> Learner:
        """Build the learner for the newest task."""
        passes = TaskPasses(
            batches=lambda size: batches.resized(size).epoch(None),
            autocast=compute.autocast,
            stored=(batches.samples.inputs, batches.samples.labels),
            to_inputs=batches.to_inputs,
        )
        return model.learner(self.stage, passes, epochs=self.run.epochs)
