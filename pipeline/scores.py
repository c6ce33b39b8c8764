"""The scores of a target's candidates besides ModelDiff's distances, and what each costs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data.loading import Samples, TaskData, ToInputs, evaluation_batches
from data.tables import Task
from methods.footprint import packed_bytes
from methods.modeldiff import Model
from methods.ownership import SharedNetwork
from methods.rules import BY_LABELS, BY_SIMILARITY, Seen, record_bytes, similarity_bytes
from models.network import Network
from pipeline.architectures import Builder
from training.checkpoints import fingerprint, load_checkpoint
from training.loop import Compute
from utils.errors import UserError
from utils.paths import Paths, checkpoint_in

_BATCH = 100

PRUNE_REMEDY = "run wo_backbone.sh and select_pruning_ratio_of_backbone.sh for the candidate first"

# Candidate's id → score's name → value.
Scores = dict[int, dict[str, float]]


@dataclass(frozen=True)
class CandidateNetworks:
    """Where the candidates' networks are.

    Attributes:
        paths: the run that trained them.
        baseline_folder: folder of the scratch networks; None: from the layout.
    """

    paths: Paths
    config: str
    baseline_folder: Path | None = None

    def scratch(self, task: Task) -> Path:
        """Folder of the task's scratch network."""
        return (self.baseline_folder or self.paths.baselines(self.config)) / task.name

    def pruned(self, task: Task) -> Path:
        """Folder of the task's chosen pruned network."""
        return self.paths.pruned(self.config, task.name)


@dataclass(frozen=True)
class PrunedNetwork:
    """A candidate's pruned network.

    Attributes:
        network: as its task sees it, in evaluation mode.
        recorded: score's name → value, of the scores that need no samples.
        size: bytes, packed.
        stamp: its fingerprint.
    """

    network: Network
    recorded: Mapping[str, float]
    size: int
    stamp: str


def load_pruned(folder: Path, task: Task, *, build: Builder, device: torch.device) -> PrunedNetwork:
    """Load the pruned network that stage 2-2 chose for `task`.

    Raises:
        UserError: if it is missing, damaged, or does not hold the task.
    """
    path = checkpoint_in(folder, remedy=PRUNE_REMEDY)
    payload = load_checkpoint(path, architecture=build.name, layers=build.layers, sizes=build.sizes)
    shared = SharedNetwork.from_payload(payload, build=build, source=path).to(device)
    try:
        network = shared.as_task(task.name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    recorded = {"room": 1.0 - sum(shared.owned_shares().values())}
    if "metrics" in payload:
        recorded["accuracy"] = payload["metrics"]["validation_accuracy"]
    return PrunedNetwork(
        network=network, recorded=recorded, size=packed_bytes(shared), stamp=fingerprint(payload)
    )


@dataclass(frozen=True)
class LabelledSample:
    """Some of a target's training samples, as stored."""

    samples: Samples
    to_inputs: ToInputs

    @classmethod
    def draw(cls, data: TaskData, count: int, *, seed: int) -> "LabelledSample":
        """At most `count` training samples, the classes in proportion but each present, drawn by `seed`."""
        labels = data.train.labels
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in labels.unique().tolist():
            of_class = (labels == label).nonzero().squeeze(1)
            quota = len(of_class) if len(labels) <= count else max(1, count * len(of_class) // len(labels))
            chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:quota]])
        index = torch.cat(chosen).sort().values
        return cls(Samples(data.train.inputs[index], labels[index]), data.to_inputs)

    @property
    def fewest(self) -> int:
        """Number of samples of the smallest class."""
        return int(self.samples.labels.unique(return_counts=True)[1].min())

    @torch.no_grad()
    def seen_by(self, network: Network, *, compute: Compute) -> Seen:
        """The sample as `network` sees it, on the CPU."""
        features, logits = [], []
        for inputs, _ in evaluation_batches(self.samples, self.to_inputs, batch_size=_BATCH):
            with compute.autocast:
                encoded = network.encode(inputs.to(compute.device))
                logits.append(network.classifiers[network.active](encoded).float())
            features.append(encoded.float())
        return Seen(torch.cat(features).cpu(), torch.cat(logits).cpu(), self.samples.labels)


@dataclass
class Costs:
    """What each score has cost: seconds of computation, and bytes that it would send over a network."""

    seconds: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds inside the context."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def send(self, name: str, size: int) -> None:
        """Add bytes."""
        self.sent[name] = self.sent.get(name, 0) + size

    def __str__(self) -> str:
        names = dict.fromkeys((*self.seconds, *self.sent))
        return ", ".join(
            f"{name} {self.seconds.get(name, 0.0):.2f} s"
            + (f" {self.sent[name]:,} bytes" if name in self.sent else "")
            for name in names
        )


@torch.no_grad()
def similarity_scores(
    candidates: Sequence[Model],
    target: Model,
    *,
    names: Sequence[str],
    compute: Compute,
    costs: Costs,
    own_probes: bool = True,
) -> Scores:
    """Scores of `names` in `BY_SIMILARITY`, for candidates that read the target's modality.

    Args:
        own_probes: whether the probes are both tasks' own samples, which is what they cost.
    """
    scores: Scores = {}
    for candidate in candidates if names else ():
        count = min(len(candidate.probes), len(target.probes))
        with costs.timed("features of probes"), compute.autocast:
            # In halves: texts of the two tasks differ in length.
            seen = [
                torch.cat([model.network.encode(half.probes[:count]).float() for half in (candidate, target)])
                for model in (candidate, target)
            ]
            features = [part.cpu() for part in seen]
        for name in names:
            with costs.timed(name):
                scores.setdefault(candidate.id, {})[name] = BY_SIMILARITY[name](*features)
            costs.send(name, similarity_bytes(name, candidate, target, own_probes=own_probes))
    return scores


def label_scores(
    pruned: Mapping[int, PrunedNetwork],
    sample: LabelledSample,
    *,
    names: Sequence[str],
    compute: Compute,
    costs: Costs,
) -> Scores:
    """Scores of `names` in `BY_LABELS`, for candidates that read the target's modality."""
    scores: Scores = {}
    for candidate, found in pruned.items() if names else ():
        with costs.timed("features of samples"):
            seen = sample.seen_by(found.network, compute=compute)
        for name in names:
            with costs.timed(name):
                scores.setdefault(candidate, {})[name] = BY_LABELS[name](seen)
            costs.send(name, found.size)
    return scores


def record_scores(pruned: Mapping[int, PrunedNetwork], *, costs: Costs) -> Scores:
    """The scores that the candidates' own devices know."""
    for found in pruned.values():
        for name in found.recorded:
            costs.send(name, record_bytes())
    return {candidate: dict(found.recorded) for candidate, found in pruned.items()}
