"""Footprints: parameters, bytes, multiply-adds and shares, against counts by hand."""

import json
import math
from functools import partial

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import models
import packnet_cifar100_main_normal as packnet_script
from methods.footprint import as_text, footprint, packed_bytes
from methods.ownership import SharedNetwork
from tests.helpers import Fleet, load

LENET = partial(models.ARCHITECTURES["lenet5"], in_channels=3, size=32)
IMAGE = torch.zeros(1, 3, 32, 32)
CONV1, CONV2, FC1, FC2 = 28 * 28 * 6 * 3 * 25, 10 * 10 * 16 * 6 * 25, 400 * 120, 120 * 84


def two_tasks() -> SharedNetwork:
    """A task that keeps a quarter of every layer's weights, and another at width multiplier 2."""
    torch.manual_seed(1)
    shared = SharedNetwork(build=LENET)
    shared.begin_task("first", num_classes=5)
    generator = torch.Generator().manual_seed(2)
    shared.release(
        {name: torch.rand(owner.shape, generator=generator) < 0.75 for name, owner in shared.owners().items()}
    )
    shared.begin_task("second", num_classes=3, width=2**0.5)
    return shared


def test_a_dense_lenets_footprint_equals_a_count_by_hand() -> None:
    shared = SharedNetwork(build=LENET)
    shared.begin_task("only", num_classes=5)
    metrics = footprint(shared, "only", inputs=IMAGE)
    weights = 6 * 75 + 16 * 150 + 48000 + 10080
    private = 2 * (6 + 16) + 120 + 84
    head = 84 * 5 + 5
    assert metrics["parameters"] == {
        "shared": weights,
        "private": private,
        "heads": head,
        "total": weights + private + head,
    }
    # With the weights are stored running means and variances and two 8-byte counters of batches.
    stored = 4 * (weights + private + head + 2 * (6 + 16)) + 2 * 8
    owners = math.ceil(weights / 8)
    assert metrics["bytes"] == {
        "weights": stored,
        "ownership": owners,
        "piggymasks": 0,
        "total": stored + owners,
    }
    dense = CONV1 + CONV2 + FC1 + FC2 + 84 * 5
    assert metrics["multiply_adds"] == {"dense": dense, "nonzero": dense}
    assert (metrics["owned"], metrics["free"]) == ({"only": 1.0}, 0.0)


def test_nonzero_multiply_adds_count_only_weights_that_the_task_sees() -> None:
    shared = two_tasks()
    metrics = footprint(shared, "first", inputs=IMAGE)
    owned = {name: (owner == 1).sum().item() for name, owner in shared.owners().items()}
    places = {"features.0": 28 * 28, "features.4": 10 * 10, "features.9": 1, "features.11": 1}
    expected = sum(places[name] * count for name, count in owned.items()) + 84 * 5
    assert metrics["multiply_adds"] == {"dense": CONV1 + CONV2 + FC1 + FC2 + 84 * 5, "nonzero": expected}
    assert metrics["width_multiplier"] == 1.0
    second = footprint(shared, "second", inputs=IMAGE)
    assert second["width_multiplier"] == 2.0
    # Weights that pruning freed start at 0 for the second task.
    assert expected < second["multiply_adds"]["nonzero"] < second["multiply_adds"]["dense"]


# ResNet-18 by hand: the first convolution, the first stage, the three other stages (a convolution with stride
# 2, three more, the shortcut), the head. MobileNet: 569 million (Howard et al. 2017, table 4).
RESNET18 = (
    112**2 * 3 * 49 * 64
    + 4 * 56**2 * 9 * 64**2
    + sum(
        pixels**2 * channels**2 * (9 / 2 + 3 * 9 + 1 / 2)
        for pixels, channels in ((28, 128), (14, 256), (7, 512))
    )
    + 512 * 1000
)


@pytest.mark.parametrize(("name", "expected"), [("resnet18", RESNET18), ("mobilenetv1", 569e6)])
def test_multiply_adds_are_those_of_the_papers(name: str, expected: float) -> None:
    shared = SharedNetwork(build=partial(models.ARCHITECTURES[name], in_channels=3, size=224))
    shared.begin_task("imagenet", num_classes=1000)
    counts = footprint(shared, "imagenet", inputs=torch.zeros(1, 3, 224, 224))["multiply_adds"]
    assert counts["dense"] == pytest.approx(expected, rel=1e-3)


def test_a_packed_network_leaves_free_weights_out() -> None:
    shared = SharedNetwork(build=LENET)
    shared.begin_task("only", num_classes=5)
    # As after training, no two tensors are equal: equal ones are packed once.
    for number, value in enumerate(shared.network.state_dict().values(), 1):
        value.add_(3 * number)
    whole = packed_bytes(shared)
    assert whole == footprint(shared, "only", inputs=IMAGE)["bytes"]["total"]
    freed = {name: torch.arange(o.numel()).view_as(o) % 4 > 0 for name, o in shared.owners().items()}
    shared.release(freed)
    zeros = 4 * len(freed)  # the value of the free weights, once per layer
    assert packed_bytes(shared) == whole - 4 * sum(int(mask.sum()) for mask in freed.values()) + zeros


def test_masks_are_counted_packed_and_shares_add_up() -> None:
    shared = two_tasks()
    metrics = footprint(shared, "second", inputs=IMAGE)
    owners = list(shared.owners().values())
    total = sum(owner.numel() for owner in owners)
    first = sum((owner == 1).sum().item() for owner in owners)
    assert metrics["bytes"]["ownership"] == math.ceil(2 * total / 8)  # free, first, second: two bits
    assert metrics["bytes"]["piggymasks"] == math.ceil(first / 8)
    assert metrics["owned"] == pytest.approx({"first": first / total, "second": 1 - first / total})
    assert metrics["free"] == pytest.approx(0.0)
    assert metrics["parameters"]["shared"] == total
    assert "second, task 2 of 2, at width multiplier 2.0, input 1 x 3 x 32 x 32" in as_text(metrics)


def test_attention_counts_in_a_perceivers_multiply_adds() -> None:
    sizes = {"num_latents": 4, "latent_dim": 16, "depth": 1, "latent_heads": 2, "latent_dim_head": 8}
    build = partial(models.ARCHITECTURES["perceiver_io"], in_channels=3, size=8, **sizes)
    shared = SharedNetwork(build=build)
    shared.begin_task("only", num_classes=2)
    counts = footprint(shared, "only", inputs=torch.zeros(1, 3, 8, 8))["multiply_adds"]
    shared.release({name: torch.ones_like(owner).bool() for name, owner in shared.owners().items()})
    rest = footprint(shared, "only", inputs=torch.zeros(1, 3, 8, 8))["multiply_adds"]
    assert rest["dense"] == counts["dense"] == counts["nonzero"]
    # The rest: the private K/V projection, both products of each attention, and the head.
    own_attention, head = 2 * 4 * 4 * 16, 84 * 2
    assert own_attention + head < rest["nonzero"] < rest["dense"]


def test_a_checkpoint_is_reported_as_any_of_its_tasks(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    path = fleet.root / "report.json"
    look = ("--mode", "inference", "--compute_report", "--report_file", path)
    cpg_script.main(fleet.flags("--dataset", "3", "--load_folder", fleet.target_folder(), *look))
    output = capsys.readouterr()
    assert "In validate()" in output.err
    assert output.out.splitlines()[0].startswith(
        "seen as       four_five, task 2 of 2, at width multiplier 2.0"
    )
    metrics = json.loads(path.read_text())
    assert metrics["tasks"] == ["zero_one", "four_five"]
    assert metrics["architecture"] == {"name": "lenet5", "layers": "sharable"}
    masks = load(fleet.target_folder() / "checkpoint-4.pth.tar")["masks"].values()
    assert metrics["parameters"]["shared"] == sum(mask.numel() for mask in masks)
    earlier = sum((mask == 1).sum().item() for mask in masks)
    assert metrics["bytes"]["piggymasks"] == math.ceil(earlier / 8)

    packnet_script.main(fleet.flags("--dataset", "1", *look))
    assert "zero_one 100.0%, free 0.0%" in capsys.readouterr().out
    assert json.loads(path.read_text())["architecture"]["layers"] == "plain"


@pytest.mark.parametrize("script", [cpg_script, packnet_script])
def test_report_flags_without_a_checkpoint_are_rejected(
    script: object, fresh: Fleet, capsys: pytest.CaptureFixture
) -> None:
    for wrong in (("--compute_report",), ("--mode", "inference", "--report_file", "x")):
        with pytest.raises(SystemExit) as ended:
            script.main(fresh.flags("--dataset", "1", *wrong))
        assert ended.value.code == 2
    assert "requires --compute_report" in capsys.readouterr().err
