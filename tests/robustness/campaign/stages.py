"""The stages that the campaign runs, with tiny settings, and their unharmed results."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import load, same
from tests.robustness.campaign import children

DIGITS = "digits"
MIXED = "digits_docs"
PERCEIVER = (
    *("--arch", "perceiver_io", "--dataset_config", MIXED, "--num_latents", "4", "--latent_dim", "16"),
    *("--depth", "1", "--latent_heads", "2", "--latent_dim_head", "8", "--cross_dim_head", "8"),
)
COMPUTING = ("--device", "cpu", "--threads", "1")
TRAINING = ("--epochs", "4", "--batch_size", "10", "--lr", "0.05")
# Too slow to learn in a few epochs, so that the network grows to the widest.
SLOW = ("--epochs", "4", "--batch_size", "10", "--lr", "0.001")
MIXED_TRAINING = ("--epochs", "3", "--batch_size", "64", "--lr", "0.01")
PRUNING = ("--prune_epochs", "2", "--pruning_interval", "2", "--pruning_frequency", "3")
RATIOS = ("--target_sparsity", "0.3", "0.8")
SEQUENTIAL = ("--seq", "digits_5", "--epochs", "3", "--batch_size", "16", "--lr", "0.02")

PACKNET = "packnet_cifar100_main_normal"
CPG = "CPG_cifar100_main_normal"
MULTIMODAL = "CPG_MM_main_normal"
SEARCH = "pickaback_perceiverIO"
TRANSFER = "transfer_kv_perceiver_io"
SELECT = "tools.select_pruning_ratio"
SPG = "spg_main"


@dataclass(frozen=True)
class Stage:
    """A command of the pipeline.

    Attributes:
        name: as in the table.
        entry: a name in `children.ENTRIES`.
        flags: without those of the roots.
        share: how many of the kills it gets, relative to the others.
    """

    name: str
    entry: str
    flags: tuple[str, ...]
    share: float = 1.0

    def argv(self, root: Path, data: Path) -> list[str]:
        """The command line on the roots below `root`."""
        roots = (
            "--data_root",
            data,
            "--checkpoints_root",
            root / "checkpoints",
            "--logs_root",
            root / "logs",
        )
        return [*map(str, roots), *self.flags]


def _continual(approach: str, *, share: float = 0.6) -> Stage:
    return Stage(f"spg_main.py, {approach}", SPG, ("--appr", approach, *SEQUENTIAL, *COMPUTING), share)


# In the order in which they need one another's results.
STAGES = (
    Stage("stage 1", PACKNET, ("--dataset", "1-3", *TRAINING, *COMPUTING)),
    Stage(
        "stage 2-1",
        CPG,
        ("--dataset", "1-2", "--mode", "finetune", "prune", *TRAINING, *PRUNING, *RATIOS, *COMPUTING),
        1.5,
    ),
    Stage("stage 2-2", SELECT, ("--dataset", "1-2", "--allow_acc_loss", "1", *RATIOS), 0.3),
    Stage(
        "stage 3-1",
        SEARCH,
        ("--dataset", "3", "--candidates", "1-2", "--max_iterations", "60", *COMPUTING),
        0.5,
    ),
    Stage(
        "stage 3-2, with growth", CPG, ("--dataset", "3", "--backbone", "from_csv", *SLOW, *COMPUTING), 1.5
    ),
    Stage(
        "cpg_sequence.sh",
        CPG,
        (
            *("--dataset", "1-3", "--mode", "finetune", "prune", "--total_num_tasks", "3"),
            *(*SLOW, *PRUNING, *RATIOS, *COMPUTING),
        ),
    ),
    _continual("spg", share=1.5),
    _continual("ewc"),
    _continual("packnet"),
    _continual("ncl"),
    _continual("one"),
    _continual("mtl"),
    Stage("multimodal, stage 1", PACKNET, (*PERCEIVER, "--dataset", "1,4", *MIXED_TRAINING, *COMPUTING)),
    Stage(
        "multimodal, stage 2-1",
        CPG,
        (
            *(*PERCEIVER, "--dataset", "1", "--mode", "finetune", "prune"),
            *(*MIXED_TRAINING, *PRUNING, *RATIOS, *COMPUTING),
        ),
    ),
    Stage(
        "multimodal, stage 2-2",
        SELECT,
        (*PERCEIVER, "--dataset", "1", "--allow_acc_loss", "1", *RATIOS),
        0.2,
    ),
    Stage(
        "multimodal, stage 3-1", SEARCH, (*PERCEIVER, "--dataset", "4", "--candidates", "1", *COMPUTING), 0.3
    ),
    Stage("K/V transfer", TRANSFER, (*PERCEIVER, "--dataset", "4"), 0.3),
    Stage(
        "multimodal, stage 3-2",
        MULTIMODAL,
        (
            *(*PERCEIVER, "--dataset", "4", "--backbone", "from_csv"),
            *(*MIXED_TRAINING, "--max_allowed_network_width_multiplier", "1.5", *COMPUTING),
        ),
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}


class Failed(Exception):
    """An unharmed command failed: the campaign cannot go on."""


@dataclass(frozen=True)
class References:
    """What every stage finds and leaves when nothing disturbs it.

    Attributes:
        folder: holds the data and, per stage, its roots before and after, and the seconds that it took.
        stages: the stages to prepare, in order.
    """

    folder: Path
    stages: Sequence[Stage] = STAGES

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def before(self, stage: Stage) -> Path:
        return self.folder / "before" / _file_name(stage)

    def after(self, stage: Stage) -> Path:
        return self.folder / "after" / _file_name(stage)

    def seconds(self, stage: Stage) -> float:
        """Processor time of the unharmed command."""
        return json.loads(self._times(stage).read_text())

    def _times(self, stage: Stage) -> Path:
        return self.folder / f"{_file_name(stage)}.seconds"

    def prepare(self, *, report: Callable[[str], None]) -> None:
        """Run every stage once, unless an earlier campaign has.

        Raises:
            Failed: if a stage does not end with status 0.
        """
        root = self.folder / "root"
        earlier = self.folder / "nothing"
        for stage in self.stages:
            before, earlier = earlier, self.after(stage)
            if self._times(stage).exists():
                continue
            copy(before, self.before(stage))
            copy(before, root)
            ended = children.run(stage.entry, stage.argv(root, self.data), output=self.folder / "output")
            if ended.status != 0:
                raise Failed(f"{stage.name}: exit status {ended.status}: {ended.output[-2000:]}")
            copy(root, self.after(stage))
            self._times(stage).write_text(json.dumps(ended.seconds))
            report(f"{stage.name}: {ended.seconds:.2f} s of processor time")


def _file_name(stage: Stage) -> str:
    return stage.name.replace(" ", "_").replace("/", "")


def copy(source: Path, destination: Path) -> None:
    """Replace a folder by a copy of another, or by an empty one."""
    shutil.rmtree(destination, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, destination)
    else:
        destination.mkdir(parents=True)


# Comparing results

# Locks, logs and what a kill leaves for the next writer to remove.
_TRACES = (".lock", ".log", ".tmp")


def differences(expected: Path, found: Path, *, ignored: Sequence[str] = _TRACES) -> list[str]:
    """The files that differ between two folders, except for durations and the folders' own names."""
    names = {name for root in (expected, found) for name in _files(root) if not name.endswith(tuple(ignored))}
    return [
        f"{name}: {problem}"
        for name in sorted(names)
        if (problem := _difference(expected / name, found / name, roots=(expected, found)))
    ]


def _files(root: Path) -> Iterator[str]:
    return (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _difference(expected: Path, found: Path, *, roots: tuple[Path, Path]) -> str:
    if not found.exists():
        return "missing"
    if not expected.exists():
        return "unexpected"
    if expected.read_bytes() == found.read_bytes():
        return ""
    try:
        if expected.suffix == ".json":
            left, right = (json.loads(path.read_text()) for path in (expected, found))
        elif expected.name.endswith(".pth.tar"):
            left, right = load(expected), load(found)
        else:
            return "differs"
        return "" if same(_timeless(left, roots), _timeless(right, roots)) else "differs"
    except Exception as error:  # whatever a damaged file raises
        return f"cannot be read ({type(error).__name__})"


def _timeless(value: Any, roots: tuple[Path, Path]) -> Any:
    """The value without durations, and with the same name for both roots."""
    if isinstance(value, dict):
        return {key: _timeless(entry, roots) for key, entry in value.items() if "seconds" not in str(key)}
    if isinstance(value, list):
        return [_timeless(entry, roots) for entry in value]
    if isinstance(value, str):
        for root in roots:
            value = value.replace(str(root), "")
    return value
