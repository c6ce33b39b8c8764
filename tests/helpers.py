"""A small trained fleet, and helpers that run the scripts on it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from tools import select_pruning_ratio as select_script
from utils import errors
from utils.paths import Paths, checkpoint_in

REPOSITORY = Path(__file__).resolve().parent.parent
EPOCHS = 4
RATIOS = (0.5, 0.8)
TRAINING = ("--epochs", str(EPOCHS), "--lr", "0.1", "--threads", "1")
# Two of three epochs prune, so that a run can be killed within the pruning and after it.
PRUNING = ("--prune_epochs", "3", "--pruning_interval", "2", "--pruning_frequency", "3")
SPARSITIES = ("--target_sparsity", *map(str, RATIOS))


@dataclass(frozen=True)
class Fleet:
    """The digits tasks under one set of roots, with a method per stage that uses tiny settings.

    Flags passed to a method come after its own, and the last one wins.
    """

    root: Path
    data: Path
    run: str = "lenet5/seed1"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def paths(self) -> Paths:
        return Paths(checkpoints=self.checkpoints, logs=self.root / "logs", data=self.data, run=self.run)

    def files(self, *more: object) -> list[str]:
        return [
            *("--data_root", str(self.data), "--checkpoints_root", str(self.checkpoints)),
            *("--logs_root", str(self.root / "logs"), "--dataset_config", "digits"),
            *map(str, more),
        ]

    def flags(self, *more: object) -> list[str]:
        return self.files("--device", "cpu", *more)

    def baseline_flags(self, task: str, *more: object) -> list[str]:
        return self.flags("--dataset", task, *TRAINING, *more)

    def own_flags(self, task: str, *more: object) -> list[str]:
        mode = ("--mode", "finetune", "prune")
        return self.flags("--dataset", task, *mode, *TRAINING, *PRUNING, *SPARSITIES, *more)

    def select_flags(self, task: str, *more: object) -> list[str]:
        return self.files("--dataset", task, *SPARSITIES, *more)

    def search_flags(self, task: str, *more: object) -> list[str]:
        few = ("--candidates", "1-3", "--max_iterations", "5", "--threads", "1")
        return self.flags("--dataset", task, *few, *more)

    def target_flags(self, task: str, *more: object) -> list[str]:
        slow = ("--lr", "0.001")  # too slow to learn in a few epochs, so that the network grows to the widest
        return self.flags("--dataset", task, "--backbone", "from_csv", *TRAINING, *slow, *more)

    def baseline(self, task: str, *more: object) -> None:
        """Stage 1."""
        packnet_script.main(self.baseline_flags(task, *more))

    def own(self, task: str, *more: object) -> None:
        """Stage 2-1."""
        cpg_script.main(self.own_flags(task, *more))

    def select(self, task: str, *more: object) -> None:
        """Stage 2-2."""
        select_script.main(self.select_flags(task, *more))

    def search(self, task: str, *more: object) -> None:
        """Stage 3-1."""
        search_script.main(self.search_flags(task, *more))

    def target(self, task: str, *more: object) -> None:
        """Stage 3-2."""
        cpg_script.main(self.target_flags(task, *more))

    def copy(self, root: Path) -> "Fleet":
        """The same fleet under another root."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Fleet(root=root, data=self.data, run=self.run)

    # The finished checkpoints.

    def baseline_checkpoint(self, task: str) -> Path:
        return checkpoint_in(self.paths.baselines("digits") / task, remedy="")

    def scratch_checkpoint(self, task: str) -> Path:
        return checkpoint_in(self.paths.single_scratch("digits", task), remedy="")

    def pruned_checkpoint(self, task: str, ratio: float) -> Path:
        return checkpoint_in(self.paths.pruned("digits", task) / str(ratio), remedy="")

    def chosen_checkpoint(self, task: str) -> Path:
        return checkpoint_in(self.paths.pruned("digits", task), remedy="")

    def target_folder(self, backbone: str = "zero_one", target: str = "four_five") -> Path:
        return self.paths.target("digits", backbone, target)


def build_fleet(root: Path, data: Path) -> Fleet:
    """Run stages 1 and 2 for tasks 1 to 3, and target 3 (four_five) on zero_one, grown to full width."""
    fleet = Fleet(root=root, data=data)
    fleet.baseline("1-3")
    fleet.own("1-3")
    fleet.select("1-3")
    fleet.search("3", "--backbone", "zero_one")
    fleet.target("3")
    return fleet


def refusal(main: Callable[[list[str]], None], argv: list[str]) -> str:
    """Run a script as from the shell. It must end with a one-line error; return the line."""
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda _: main(argv))
    message = ended.value.code
    assert isinstance(message, str), f"exit status {message}"
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def command(script: str, argv: list[str]) -> list[str]:
    """The command line that runs a script in its own process."""
    return [sys.executable, str(REPOSITORY / script), *argv]


def run_process(script: str, argv: list[str]) -> subprocess.CompletedProcess:
    """Run a script in its own process."""
    return subprocess.run(command(script, argv), capture_output=True, text=True, timeout=120)


def error_lines(stderr: str) -> list[str]:
    """The lines of standard error that are not log lines."""
    return [line for line in stderr.splitlines() if " - root - INFO - " not in line]


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def same(left: object, right: object) -> bool:
    """Whether two checkpoint contents are bit-identical."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def assert_same_checkpoint(left: Path, right: Path) -> None:
    """Compare everything: weights, owners, private tensors, metrics, arguments."""
    first, second = load(left), load(right)
    differing = [key for key in {*first, *second} if not same(first.get(key), second.get(key))]
    assert not differing, f"{left.parent} and {right.parent} differ in {differing}"


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of every file except locks and logs."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".log")
    }
