"""Learning without Forgetting (`lwf`, Li & Hoiem 2016): the old heads keep their outputs on the new data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

from methods.approaches.base import Approach, ClippedHeads, TaskPasses, setting
from training.method import Method
from utils.errors import UserError

# Batch size of the pass that records the outputs; it has no effect on them.
RECORDING_BATCH = 512


@dataclass(frozen=True)
class LwFOptions:
    lwf_lambda: float = setting(1.0, kind="positive_float", help="Weight of the distillation loss of `lwf`.")
    lwf_temperature: float = setting(
        2.0, kind="positive_float", help="Temperature of the distillation of `lwf`."
    )


def softened(logits: Tensor, sizes: Sequence[int], *, temperature: float) -> Tensor:
    """Probabilities softmax(logits / T) of each head.

    Args:
        logits: of several heads side by side, (B, Σ sizes).
        sizes: number of classes of each head.

    Returns:
        float32 (B, Σ sizes).
    """
    heads = logits.float().div(temperature).split(list(sizes), dim=1)
    return torch.cat([softmax(head, dim=1) for head in heads], dim=1)


def distillation(logits: Tensor, targets: Tensor, sizes: Sequence[int], *, temperature: float) -> Tensor:
    """Knowledge distillation (eq. 2 and 3): Σ over heads of the mean over samples of −Σ_c y′_c log ŷ′_c.

    Args:
        logits: current ones of the old heads side by side, (B, Σ sizes).
        targets: y′, recorded by `softened` before the task, (B, Σ sizes).
    """
    heads = logits.float().div(temperature).split(list(sizes), dim=1)
    logarithms = torch.cat([log_softmax(head, dim=1) for head in heads], dim=1)
    return -(targets * logarithms).sum(dim=1).mean()


class LwF(Approach):
    """Distils the earlier heads while the newest task is learned, without samples of earlier tasks.

    Before a task, the outputs of all earlier heads on its training samples are recorded. Its loss is

        CE(newest head) + λ · Σ over earlier heads of −Σ_c y′_c log ŷ′_c,   y′ = softmax(recorded / T)

    with λ = 1 and T = 2 as in the paper, where ŷ′ are the head's current outputs at the same temperature. All
    heads are trained. The paper first trains the new head alone; here all approaches train in one go.
    """

    Options = LwFOptions

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def method(self, passes: TaskPasses) -> Method:
        return Distillation(lwf=self, passes=passes)


class Distillation(ClippedHeads):
    """Adds the distillation loss.

    The recorded outputs belong to samples by position, so every epoch must see them in the same order.

    Attributes:
        targets: softened outputs of the earlier heads, (N, their classes); None until the first epoch, and
            for a first task.
    """

    def __init__(self, *, lwf: LwF, passes: TaskPasses) -> None:
        super().__init__(network=lwf.network, clip=lwf.settings.clip)
        self.options: LwFOptions = lwf.options
        self.passes = passes
        *self.sizes, self.newest = lwf.tasks.values()
        self.targets: Tensor | None = None
        self.position = 0
        self.earlier: Tensor | None = None

    def before_task(self) -> None:
        self.network.active = None  # all heads, side by side

    def before_epoch(self, epoch: int) -> None:
        self.position = 0
        if self.sizes and self.targets is None:
            self.targets = self.recorded()

    @torch.no_grad()
    def recorded(self) -> Tensor:
        """The softened outputs of the earlier heads on the newest task's samples."""
        self.network.eval()
        outputs = []
        for inputs, _ in self.passes.batches(RECORDING_BATCH):
            with self.passes.autocast:
                logits = self.network(inputs)[:, : -self.newest]
            outputs.append(softened(logits, self.sizes, temperature=self.options.lwf_temperature))
        return torch.cat(outputs)

    def select(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.earlier = logits[:, : -self.newest]
        return logits[:, -self.newest :]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(logits, labels)
        if self.targets is None:
            return loss
        targets = self.targets[self.position : self.position + len(labels)]
        self.position += len(labels)
        old = distillation(self.earlier, targets, self.sizes, temperature=self.options.lwf_temperature)
        return loss + self.options.lwf_lambda * old

    def after_task(self) -> None:
        self.network.active = len(self.network.classifiers) - 1

    def state_dict(self) -> dict:
        return {} if self.targets is None else {"targets": self.targets}

    def load_state_dict(self, state: dict) -> None:
        if not self.sizes:
            return
        targets = state.get("targets")
        if not isinstance(targets, Tensor) or targets.dim() != 2 or targets.shape[1] != sum(self.sizes):
            raise UserError(
                "the resume file lacks the recorded outputs of earlier heads: delete it, or use --overwrite"
            )
        self.targets = targets.to(next(self.network.parameters()).device)
