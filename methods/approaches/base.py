"""Base class and shared settings of the approaches to a sequence of tasks."""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from methods import footprint
from models.network import Network
from training.loop import Learner
from training.method import Batch, Method
from training.schedules import PlateauSchedule, Schedule
from utils.errors import UserError

# The metric that picks the best epoch and drives the learning-rate schedule.
MONITORED = "val_loss"


def setting(default: Any, *, kind: str, help: str) -> Any:
    """Declare a field of a settings dataclass, which becomes a flag of the same name.

    Args:
        kind: positive_float, positive_int, non_negative_float, non_negative_int or share (at least 0, less
            than 1).
        help: text for `--help`.
    """
    return field(default=default, metadata={"kind": kind, "help": help})


@dataclass(frozen=True)
class Settings:
    """Settings shared by all approaches. Defaults are those of the published code (Konishi et al. 2023)."""

    lr: float = setting(0.25, kind="positive_float", help="Initial learning rate.")
    lr_factor: float = setting(
        1 / 3, kind="positive_float", help="Factor applied to the learning rate on a plateau."
    )
    lr_patience: int = setting(
        4,
        kind="non_negative_int",
        help="Patience: epochs without improvement before the learning rate is reduced.",
    )
    lr_floor: float = setting(1e-3, kind="positive_float", help="Minimum learning rate.")
    lr_threshold: float = setting(
        1e-4,
        kind="non_negative_float",
        help="Smallest relative decrease of the validation loss that counts as an improvement.",
    )
    stop_after: int = setting(
        5,
        kind="positive_int",
        help="End a task after this many epochs without improvement at the minimum learning rate.",
    )
    clip: float = setting(
        10_000.0, kind="positive_float", help="Clip the gradient norm of the head to this value."
    )

    def schedule(self, *, scale: float = 1.0) -> Schedule:
        """A new schedule that starts at `scale` times the learning rate."""
        return PlateauSchedule(
            self.lr * scale,
            factor=self.lr_factor,
            patience=self.lr_patience,
            floor=self.lr_floor,
            stop_after=self.stop_after,
            threshold=self.lr_threshold,
        )


@dataclass(frozen=True)
class NoOptions:
    """Options of an approach that adds none."""


@dataclass(frozen=True)
class TaskPasses:
    """The newest task's training samples, for use outside the training steps.

    Attributes:
        batches: makes one pass in batches of the given size, in the fixed order of training.
        autocast: context of the forward passes.
        stored: the samples in the same order as they are stored (uint8 images), and their labels.
        to_inputs: turns stored samples into the network's inputs. It is the same for all tasks.

    Only approaches that keep samples need `stored` and `to_inputs`.
    """

    batches: Callable[[int], Iterable[Batch]]
    autocast: AbstractContextManager
    stored: Batch | None = None
    to_inputs: Callable[[Tensor], Tensor] | None = None


class ClippedHead(Method):
    """Clips the gradient norm of the active head."""

    def __init__(self, *, network: Network, clip: float) -> None:
        self.network = network
        self.clip = clip

    def after_backward(self) -> None:
        clip_grad_norm_(self.network.classifiers[self.network.active].parameters(), self.clip)


class ClippedHeads(ClippedHead):
    """Clips the gradient norm of all heads together, for approaches that train all of them."""

    def after_backward(self) -> None:
        clip_grad_norm_(self.network.classifiers.parameters(), self.clip)


class Approach:
    """One or several networks that learn a sequence of tasks.

    A subclass overrides what it does differently, declares its own settings in `Options` (a dataclass of
    `setting`s, which become flags), and is registered in `APPROACHES`.

    Args:
        build: builds the network without heads, `build(width=1.0)`.
        total: number of tasks in the sequence.
        settings: settings shared by all approaches.
        options: an instance of `Options`; None uses its defaults.

    Attributes:
        joint: whether all tasks are learned at once.
        independent: whether every task starts from a new network.
        network: has a head for each task begun.
        tasks: number of classes by name, for the tasks begun, in order.
        history: the run's records of the tasks before the newest one.
        statistics: batch-norm running statistics, by task, of the tasks before the newest one.
        epochs, seconds: spent on the newest task.
    """

    joint: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions

    def __init__(
        self,
        *,
        build: Callable[..., Network],
        total: int,
        settings: Settings,
        options: object | None = None,
    ) -> None:
        self.build = build
        self.total = total
        self.settings = settings
        self.options = self.Options() if options is None else options
        self.network = self.new_network()
        self.tasks: dict[str, int] = {}
        self.history: list[dict] = []
        self.statistics: dict[str, dict[str, Tensor]] = {}
        self.epochs = 0
        self.seconds = 0.0

    def new_network(self) -> Network:
        """A network without heads."""
        return self.build(width=1.0)

    @classmethod
    def stages(cls, *, remaining: int) -> tuple[str, ...]:
        """Training stages of a task with `remaining` tasks to come after it."""
        return ("train",)

    def begin_task(self, name: str, num_classes: int) -> None:
        """Add a task."""
        if self.tasks and not self.joint:
            self.statistics[list(self.tasks)[-1]] = _buffers(self.network.features)
        self.network.add_head(num_classes)
        self.tasks[name] = num_classes
        self.epochs, self.seconds = 0, 0.0

    def learner(self, stage: str, passes: TaskPasses, *, epochs: int) -> Learner:
        """Build the learner of one training stage of the newest task."""
        return Learner(
            method=self.method(passes),
            optimizers={"weights": self.optimizer()},
            schedules={"weights": self.settings.schedule()},
            epochs=epochs,
            monitor=MONITORED,
        )

    def method(self, passes: TaskPasses) -> Method:
        """The hooks on the training loop."""
        return ClippedHead(network=self.network, clip=self.settings.clip)

    def optimizer(self) -> Optimizer:
        """SGD without momentum; the schedule sets its learning rate."""
        return SGD(self.trained(), lr=0.0, fused=True)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the newest task trains."""
        network = self.network
        return [*network.features.parameters(), *network.classifiers[network.active].parameters()]

    def as_task(self, name: str) -> nn.Module:
        """The network as task `name` sees it, with that task's running statistics."""
        if name not in self.tasks:
            known = ", ".join(self.tasks) or "no tasks"
            raise UserError(f"the network does not hold task {name}: it holds {known}")
        self.network.active = list(self.tasks).index(name)
        if not self.statistics.get(name):
            return self.network
        seen = copy.deepcopy(self.network)
        seen.features.load_state_dict(self.statistics[name], strict=False)
        return seen

    def to(self, device: torch.device) -> Self:
        """Move everything to `device`."""
        self.network.to(device)
        self.statistics = {
            task: {name: value.to(device) for name, value in values.items()}
            for task, values in self.statistics.items()
        }
        return self

    def kept(self) -> Iterable[Tensor]:
        """What the approach stores from task to task besides the network."""
        return ()

    def layer_importance(self) -> dict[str, float]:
        """Layer → mean importance of its weights; {} for an approach that computes none."""
        return {}

    def stored_bytes(self) -> int:
        """Bytes stored after a task: the network with its statistics, and what the approach keeps."""
        statistics = [value for values in self.statistics.values() for value in values.values()]
        return footprint.size([*self.network.state_dict().values(), *statistics, *self.kept()])

    def payload(self) -> dict:
        """The approach's part of a checkpoint (docs/design.md, Checkpoints)."""
        return {
            "model_state_dict": dict(self.network.state_dict()),
            "dataset_history": list(self.tasks),
            "dataset2num_classes": dict(self.tasks),
            "masks": {},
            "shared_layer_info": {name: dict(self.statistics.get(name, {})) for name in self.tasks},
            "sequence": self.run_record(),
        }

    @classmethod
    def from_payload(cls, payload: dict, source: Path, **setup: Any) -> Self:
        """The approach in a checkpoint.

        Args:
            source: the checkpoint's path, for messages.
            setup: arguments of the constructor.

        Raises:
            UserError: if the checkpoint holds another network.
        """
        approach = cls(**setup)
        for name in payload["dataset_history"]:
            approach.tasks[name] = payload["dataset2num_classes"][name]
            approach.network.add_head(approach.tasks[name])
        try:
            approach.network.load_state_dict(payload["model_state_dict"])
        except RuntimeError as error:
            details = " ".join(str(error).split())  # torch's message has several lines
            raise UserError(
                f"{source} holds another network ({details}): delete it, or pass the arguments that made it"
            ) from error
        # The network itself holds the newest task's statistics.
        approach.statistics = {
            name: dict(payload["shared_layer_info"][name]) for name in list(approach.tasks)[:-1]
        }
        approach.load_run_record(payload["sequence"])
        return approach

    def run_record(self) -> dict:
        """What a checkpoint records of the run so far."""
        return {"past": self.history, "epochs": self.epochs, "seconds": self.seconds}

    def load_run_record(self, record: dict) -> None:
        """Restore what `run_record` returned."""
        self.history, self.epochs, self.seconds = record["past"], record["epochs"], record["seconds"]

    def feature_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that tasks share, by name."""
        return dict(self.network.features.named_parameters())


def train_on_learned_statistics(network: nn.Module) -> None:
    """Set training mode, with dropout on, but let batch norms use their running statistics.

    For gradients that measure a parameter's importance: with batch statistics, many of them would vanish up
    to rounding errors (for one, that of a bias before a batch norm).
    """
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def _buffers(features: nn.Module) -> dict[str, Tensor]:
    """Copy a backbone's buffers."""
    parameters = dict(features.named_parameters())
    state = features.state_dict()
    return {name: value.clone() for name, value in state.items() if name not in parameters}
