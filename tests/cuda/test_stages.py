"""All stages on a real GPU: they run, learn, and one seed gives the same weights twice."""

import json
from pathlib import Path

import pytest
import torch
from torch.backends import cuda, cudnn

import spg_main
from tests.helpers import Fleet, load, same
from utils.runtime import set_numerics

GPU = ("--device", "cuda")
TARGET = "four_five"


@pytest.fixture(autouse=True)
def real_gpu(cuda_device: torch.device):
    yield
    set_numerics(precision="fp32")


def fleet_on_gpu(root: Path, data: Path, *more: str) -> Fleet:
    """Every stage for the digits' first three tasks, as `tests.helpers.build_fleet` runs them on a CPU."""
    fleet = Fleet(root=root, data=data)
    fleet.baseline("1-3", *GPU, *more)
    fleet.own("1-3", *GPU, *more)
    fleet.select("1-3")
    fleet.search("3", "--backbone", "zero_one", *GPU, *more)
    fleet.target("3", *GPU, *more)
    return fleet


def checkpoints(fleet: Fleet) -> dict[str, dict]:
    """Path below the root → the contents of every finished checkpoint."""
    found = sorted(fleet.checkpoints.rglob("checkpoint-*.pth.tar"))
    return {str(path.relative_to(fleet.checkpoints)): load(path) for path in found}


def test_one_seed_gives_the_same_weights_twice(tmp_path: Path, digits_root: Path, caplog) -> None:
    first = checkpoints(fleet_on_gpu(tmp_path / "first", digits_root))
    assert "In validate()-> Val Ep. #" in caplog.text
    assert "Selected backbone for target 3 = (given) 1" in caplog.text
    second = checkpoints(fleet_on_gpu(tmp_path / "second", digits_root))
    assert first.keys() == second.keys()
    for path, payload in first.items():
        for key in ("model_state_dict", "masks", "shared_layer_info"):
            assert same(payload[key], second[path][key]), f"{key} of {path} differs"


def test_a_gpu_learns_as_well_as_a_cpu(request, tmp_path: Path, digits_root: Path) -> None:
    trained_fleet = request.getfixturevalue("trained_fleet")  # only where there is a GPU
    fleet = fleet_on_gpu(tmp_path, digits_root)
    expected, found = (
        json.loads((each.paths.logs / each.run / "baseline_digits_acc_scratch.txt").read_text())
        for each in (trained_fleet, fleet)
    )
    assert found.keys() == expected.keys()
    for task, accuracy in found.items():
        assert abs(float(accuracy) - float(expected[task])) < 0.1, task


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_stage_runs_in_every_precision(tmp_path: Path, digits_root: Path, precision: str) -> None:
    fleet = fleet_on_gpu(tmp_path, digits_root, "--precision", precision)
    assert any(fleet.target_folder(target=TARGET).rglob("checkpoint-*.pth.tar"))
    allowed = precision == "tf32"
    assert cuda.matmul.allow_tf32 == cudnn.allow_tf32 == allowed
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)


@pytest.mark.parametrize("approach", ["spg", "ncl", "one", "mtl", "ewc", "packnet"])
def test_every_approach_learns_a_sequence(tmp_path: Path, digits_root: Path, approach: str) -> None:
    roots = ("--logs_root", tmp_path / "logs", "--checkpoints_root", tmp_path / "checkpoints")
    flags = (*roots, "--data_root", digits_root, "--epochs", "2", "--lr", "0.1", "--threads", "1")
    spg_main.main(["--seq", "digits_5", "--appr", approach, *GPU, *map(str, flags)])
    metrics = tmp_path / "logs" / "spg" / "digits_5" / approach / "seed1" / "metrics.json"
    assert 0 < json.loads(metrics.read_text())["average_accuracy"] <= 1
