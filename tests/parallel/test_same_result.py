"""Several processes compute what one computes, to 1e-5 in float64, in every stage that trains."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spg_main
from models.alexnet import alexnet
from models.layers import SHARABLE
from models.network import Network
from models.registry import architectures
from pipeline.own_architecture import own_architecture
from tests.helpers import Fleet, load
from tests.parallel.conftest import COUNTS, together
from training.exchange import pack
from training.parallel import split
from utils.architecture_names import architecture_name
from utils.errors import UserError

TOLERANCE = 1e-5
TWO_TASKS = """
[two]
table = "digits"
by = "classes"
tasks = 2
classes = 2
train = 70
val = 20
test = 30
dropout = [0.2, 0.3]
size = 16
width = 0.25
"""


def train_everything(root: Path, data: Path) -> Path:
    """Stage 1, CPG alone, pruning, a target that grows on its backbone, and SPG, an epoch each."""
    fleet = Fleet(root=root, data=data)
    # Batches of 48, 48 and 10: the last one is uneven.
    short = ("--epochs", "1", "--batch_size", "48", "--train_per_class", "53", "--run", fleet.run)
    prune = ("--prune_epochs", "1", "--pruning_interval", "1", "--pruning_frequency", "2")
    fleet.baseline("1,3", *short)
    fleet.own("1", *short, *prune, "--target_sparsity", "0.5")
    fleet.select("1", "--target_sparsity", "0.5", "--allow_acc_loss", "1")
    fleet.target("3", *short, "--backbone", "zero_one", "--lr_mask", "0.01")
    spg_main.main(
        [
            *("--seq", str(root.parent / "two.toml"), "--epochs", "1", "--lr", "0.1", "--keep_checkpoints"),
            *("--threads", "1", "--device", "cpu", "--data_root", str(data)),
            *("--checkpoints_root", str(root / "checkpoints"), "--logs_root", str(root / "logs")),
        ]
    )
    return root / "checkpoints"


# Draws in every way that is cut up, in a file that no process can import.
OWN = """
from torch import nn
from torchvision.ops import StochasticDepth

class Block(nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.inner = layers.conv2d(width, width, 3, padding=1)
        self.norm, self.drop, self.depth = nn.BatchNorm2d(width), nn.Dropout(0.2), StochasticDepth(0.3, "row")

    def forward(self, x):
        return x + self.depth(self.drop(self.norm(self.inner(x))))

def own(layers, *, width, in_channels, size):
    first = layers.conv2d(in_channels, int(4 * width), 5, stride=4)
    return nn.Sequential(first, Block(layers, int(4 * width)), nn.Dropout2d(0.1), nn.Flatten())
"""


def networks(folder: Path) -> dict[str, Callable[[], Network]]:
    """Builders of networks with every kind of dropout and norm."""
    file = folder / "own.py"
    file.write_text(OWN)
    own = own_architecture(architecture_name(f"{file}:own"))
    perceiver = architectures("sharable")["perceiver"]
    sizes = perceiver.resolved_sizes({}, preset="tiny")
    return {
        # Numbers of units that are not multiples of 4, the draws of one random word.
        "alexnet": partial(alexnet, layers=SHARABLE, width=0.13),
        "perceiver": partial(perceiver, width=1.0, in_channels=3, size=32, **sizes),
        "own": partial(own, layers=SHARABLE, width=1.0, in_channels=3, size=32),
    }


def two_steps(build: Callable[[], Network]) -> dict[str, Tensor]:
    """State, loss and next random number of a network with an earlier head after two steps."""
    torch.manual_seed(0)
    network = build()
    network.add_head(4)
    network.add_head(5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    forward = split(network.train(), trained=True)
    for _ in range(2):
        optimizer.zero_grad()
        loss = cross_entropy(forward(torch.randn(7, 3, 32, 32)), torch.randint(5, (7,)))
        loss.backward()
        optimizer.step()
    assert network.classifiers[0].weight.grad is None
    return {**network.state_dict(), "loss": loss.detach(), "random": torch.rand(1)}


@dataclass(frozen=True)
class Results:
    """What one or several processes made: checkpoints, and the states of `networks` after two steps."""

    checkpoints: Path
    networks: dict[str, dict[str, Tensor]]


def results(folder: Path, data: Path) -> Results:
    states = {name: two_steps(build) for name, build in networks(folder.parent).items()}
    return Results(train_everything(folder, data), states)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, digits_root: Path, double: None) -> Results:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("alone")
    folder.with_name("two.toml").write_text(TWO_TASKS)
    return results(folder, digits_root)


@pytest.fixture(scope="module", params=COUNTS)
def shared(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    digits_root: Path,
    alone: Results,
) -> Results:
    """The results of several processes."""
    with together(request.param):
        return results(tmp_path_factory.mktemp("shared"), digits_root)


def assert_close(left: object, right: object, *, where: str) -> None:
    """Compare nested contents of checkpoints. Owners and other integers must be equal."""
    if isinstance(left, Tensor) and left.is_floating_point():
        assert left.dtype == torch.float64, where
        assert (left - right).abs().max() <= TOLERANCE, where
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], where=f"{where}: {key}")
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=TOLERANCE), where
    else:
        assert left == right, where


def learned(path: Path) -> dict:
    """A checkpoint without times and the hash of its parent's bits."""
    payload = load(path)
    del payload["arguments"]
    payload.pop("sequence", None)
    return payload


@pytest.mark.parametrize(
    ("stage", "count"),
    [
        ("*/*/baseline_scratch/*/*/checkpoint-1*", 2),
        ("*/*/CPG_single_scratch*/*/*/scratch/checkpoint-1*", 1),
        ("*/*/*/*/*/gradual_prune/0.5/checkpoint-1*", 1),
        ("*/*/*/*/*/*/*/width-*/checkpoint-1*", 3),
        ("spg/**/checkpoint-1*", 2),
    ],
)
def test_a_stage_makes_the_networks_of_one_process(
    alone: Results, shared: Results, stage: str, count: int
) -> None:
    paths = sorted(alone.checkpoints.glob(stage))
    assert len(paths) == count
    for path in paths:
        name = path.relative_to(alone.checkpoints)
        assert_close(learned(path), learned(shared.checkpoints / name), where=str(name))


@pytest.mark.parametrize("name", ["alexnet", "perceiver", "own"])
def test_dropout_and_norms_are_those_of_the_whole_batch(alone: Results, shared: Results, name: str) -> None:
    assert_close(alone.networks[name], shared.networks[name], where=name)


def test_a_class_that_no_process_can_find_is_refused() -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(UserError, match=r"Local.*: define its classes and functions at the top level"):
        pack(Local())
