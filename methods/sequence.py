"""Learning tasks one after another in one network: what every approach has in common."""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from models.network import Network
from utils.errors import UserError
from utils.training import Batch, Learner, Method, PlateauSchedule, Schedule

# The figure that decides which epoch counts, and when the learning rate falls.
WATCHED = "val_loss"


@dataclass(frozen=True)
class Settings:
    """How an approach learns.

    Attributes:
        build: makes the network without heads, `build(width=1.0)`.
        total: tasks of the sequence.
        lr, lr_factor, lr_patience, lr_floor, stop_after: of the `PlateauSchedule`.
        clip: the norm that a head's gradient is clipped at.
        ewc_lambda: weight of EWC's penalty.
        packnet_share: share that PackNet sets free; None: 1 − 1/(tasks to come + 1).
    """

    build: Callable[..., Network]
    total: int
    lr: float = 0.25
    lr_factor: float = 1 / 3
    lr_patience: int = 4
    lr_floor: float = 1e-3
    stop_after: int = 5
    clip: float = 10_000.0
    ewc_lambda: float = 5000.0
    packnet_share: float | None = None

    def schedule(self, *, scale: float = 1.0) -> Schedule:
        """A new schedule that starts at `scale` times the learning rate."""
        return PlateauSchedule(
            self.lr * scale,
            factor=self.lr_factor,
            patience=self.lr_patience,
            floor=self.lr_floor,
            stop_after=self.stop_after,
        )


@dataclass(frozen=True)
class TaskPasses:
    """Passes over the newest task's training samples that an approach makes after learning it.

    Attributes:
        batches: of the given size, in fixed order.
        autocast: the context of a forward pass.
    """

    batches: Callable[[int], Iterable[Batch]]
    autocast: AbstractContextManager


class ClippedHead(Method):
    """Clips the norm of the gradient of the head in use."""

    def __init__(self, *, network: Network, clip: float) -> None:
        self.network = network
        self.clip = clip

    def after_backward(self) -> None:
        clip_grad_norm_(self.network.classifiers[self.network.active].parameters(), self.clip)


class Naive:
    """One network that learns task after task and does nothing against forgetting (`ncl`).

    The base of the other approaches.

    Attributes:
        stages: of learning a task, in turn.
        joint: whether all tasks are learned at once.
        independent: whether every task starts from a new network.
        network: with a head for each task begun.
        tasks: name → classes, of the tasks begun, in order.
        past: what was noted of each task learned before the newest one.
        statistics: task learned before the newest one → its running statistics of batch norms.
        epochs, seconds: spent on the newest task.
    """

    joint: ClassVar[bool] = False
    independent: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.network = self.new_network()
        self.tasks: dict[str, int] = {}
        self.past: list[dict] = []
        self.statistics: dict[str, dict[str, Tensor]] = {}
        self.epochs = 0
        self.seconds = 0.0

    def new_network(self) -> Network:
        """A network without heads."""
        return self.settings.build(width=1.0)

    @classmethod
    def stages(cls, *, remaining: int) -> tuple[str, ...]:
        """Stages of learning a task when `remaining` tasks follow."""
        return ("train",)

    def begin_task(self, name: str, num_classes: int) -> None:
        """Add a task."""
        if self.tasks and not self.joint:
            self.statistics[list(self.tasks)[-1]] = _buffers(self.network.features)
        self.network.add_head(num_classes)
        self.tasks[name] = num_classes
        self.epochs, self.seconds = 0, 0.0

    def learner(self, stage: str, passes: TaskPasses) -> Learner:
        """The method, optimizer and schedule of a stage."""
        return Learner(
            method=self.method(passes),
            optimizers={"weights": self.optimizer()},
            schedules={"weights": self.settings.schedule()},
            watch=WATCHED,
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
        """The network as a task sees it: all of it, but with the task's own running statistics."""
        if name not in self.tasks:
            raise UserError(f"the network holds no task {name}: it holds {', '.join(self.tasks) or 'none'}")
        self.network.active = list(self.tasks).index(name)
        if not self.statistics.get(name):
            return self.network
        seen = copy.deepcopy(self.network)
        seen.features.load_state_dict(self.statistics[name], strict=False)
        return seen

    def to(self, device: torch.device) -> "Naive":
        """Move everything to `device`."""
        self.network.to(device)
        self.statistics = {
            task: {name: value.to(device) for name, value in values.items()}
            for task, values in self.statistics.items()
        }
        return self

    def payload(self) -> dict:
        """Its part of a checkpoint (DESIGN.md, section 4)."""
        return {
            "model_state_dict": dict(self.network.state_dict()),
            "dataset_history": list(self.tasks),
            "dataset2num_classes": dict(self.tasks),
            "masks": {},
            "shared_layer_info": {name: dict(self.statistics.get(name, {})) for name in self.tasks},
            "sequence": self.noted(),
        }

    @classmethod
    def from_payload(cls, payload: dict, source: Path, *, settings: Settings) -> "Naive":
        """The network in a checkpoint.

        Raises:
            UserError: naming `source`, if it is of another network.
        """
        learned = cls(settings)
        for name in payload["dataset_history"]:
            learned.tasks[name] = payload["dataset2num_classes"][name]
            learned.network.add_head(learned.tasks[name])
        try:
            learned.network.load_state_dict(payload["model_state_dict"])
        except RuntimeError as error:
            raise UserError(
                f"{source} is of another network ({error}): delete it or give its arguments"
            ) from error
        # The newest task's are the network's own.
        learned.statistics = {
            name: dict(payload["shared_layer_info"][name]) for name in list(learned.tasks)[:-1]
        }
        learned.take_note(payload["sequence"])
        return learned

    def noted(self) -> dict:
        """What a checkpoint says of the run so far."""
        return {"past": self.past, "epochs": self.epochs, "seconds": self.seconds}

    def take_note(self, noted: dict) -> None:
        """Restore what `noted` returned."""
        self.past, self.epochs, self.seconds = noted["past"], noted["epochs"], noted["seconds"]

    def feature_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that tasks share, by name."""
        return dict(self.network.features.named_parameters())


def train_on_learned_statistics(network: nn.Module) -> None:
    """Training mode, with dropout on, but for batch norms, which take their running statistics as they are.

    For gradients that say what a parameter means to the network: across a batch, statistics of its own would
    make many of them vanish but for rounding errors (a bias before a batch norm has no other).
    """
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def _buffers(features: nn.Module) -> dict[str, Tensor]:
    """A copy of what is saved of a backbone beside its parameters."""
    parameters = dict(features.named_parameters())
    state = features.state_dict()
    return {name: value.clone() for name, value in state.items() if name not in parameters}


class Alone(Naive):
    """A network for each task (`one`)."""

    independent = True


class Joint(Naive):
    """All tasks learned at once (`mtl`). A label counts the classes of all tasks, in order."""

    joint = True

    def begin_task(self, name: str, num_classes: int) -> None:
        super().begin_task(name, num_classes)
        self.network.active = None

    @classmethod
    def from_payload(cls, payload: dict, source: Path, *, settings: Settings) -> "Naive":
        learned = super().from_payload(payload, source, settings=settings)
        learned.network.active = None
        return learned

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def method(self, passes: TaskPasses) -> Method:
        sizes = torch.tensor(list(self.tasks.values()))
        task_of = torch.arange(len(sizes)).repeat_interleave(sizes)
        device = next(self.network.parameters()).device
        return OwnTaskOnly(network=self.network, clip=self.settings.clip, task_of=task_of.to(device))


class OwnTaskOnly(ClippedHead):
    """Tells a label apart only from the classes of its own task.

    Args:
        task_of: int64 (classes of all tasks,), the task of each class.
    """

    def __init__(self, *, network: Network, clip: float, task_of: Tensor) -> None:
        super().__init__(network=network, clip=clip)
        self.task_of = task_of

    def select(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.masked_fill(self.task_of != self.task_of[labels, None], -torch.inf)

    def after_backward(self) -> None:
        clip_grad_norm_(self.network.classifiers.parameters(), self.clip)
