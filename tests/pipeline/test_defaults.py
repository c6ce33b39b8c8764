"""Bash stages and scripts have the same defaults, and an unsuitable architecture is refused at once."""

import subprocess
from pathlib import Path

import pytest
import torch

import CPG_cifar100_main_normal as cpg_script
import models
import packnet_cifar100_main_normal as packnet_script
import spg_main as spg_script
from pipeline import architectures
from tests.helpers import refusal
from tools import list_tasks
from utils.paths import REPOSITORY

CONFIG = REPOSITORY / "run_pickaback" / "config.sh"

# Variable of config.sh → flag, for the variables that a stage passes on unchanged.
TRAINING = {
    **{"CONFIG": "dataset_config", "TASKS": "dataset", "ARCH": "arch", "TEXT_ENCODER": "text_encoder"},
    **{"SEED": "seed", "PROTOCOL": "protocol", "EPOCHS": "epochs", "BATCH_SIZE": "batch_size", "LR": "lr"},
    **{"DEVICE": "device", "PRECISION": "precision"},
}
CPG = TRAINING | {
    **{"PRUNE_EPOCHS": "prune_epochs", "SPARSITIES": "target_sparsity"},
    **{"ALLOW_ACC_LOSS": "allow_acc_loss", "MAX_WIDTH": "max_allowed_network_width_multiplier"},
}
SPG = {"SEQ": "seq", "APPR": "appr", "SEED": "seed", "TRIALS": "trials", "PRECISION": "precision"}


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """The variables of config.sh and their defaults."""
    names = [line.split(":=")[0][5:] for line in CONFIG.read_text().splitlines() if line.startswith(': "${')]
    shown = subprocess.run(
        ["env", "-i", "bash", "-c", f"source {CONFIG}; declare -p {' '.join(names)}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = (line.split(" ", 2)[2].split("=", 1) for line in shown.splitlines())
    return {name: value.strip('"') for name, value in pairs}


@pytest.mark.parametrize(
    ("script", "flags"),
    [(packnet_script, TRAINING), (cpg_script, CPG), (spg_script, SPG)],
    ids=["packnet", "cpg", "spg"],
)
def test_a_stage_and_its_script_have_the_same_defaults(
    script: object, flags: dict[str, str], variables: dict[str, str]
) -> None:
    defaults = vars(script.parse([]))
    for variable, flag in flags.items():
        expected = defaults[flag]
        words = " ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
        assert variables[variable] == words, variable


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arch", "lenet6"), "--arch lenet6 is unknown: choose one of "),
        (("--arch", "perceiver_io", "--size", "huge"), "--arch perceiver_io has no preset huge: "),
        (("--size", "tiny"), "--arch lenet5 has no preset tiny: "),
        (("--transfers", "yes"), "--arch lenet5 has no K/V projections to transfer: use perceiver_io or "),
        (("--arch", "perceiver", "--transfers", "no"), "--arch perceiver: its targets bring their own K/V "),
        (("--arch", "perceiver_io", "--max_iterations", "5"), "--max_iterations 5: networks of --arch "),
    ],
)
def test_an_architecture_that_a_stage_would_refuse_is_refused_before_any_job(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = refusal(list_tasks.main, ["--data_root", str(tmp_path), *flags])
    assert error.startswith(f"error: {message}")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "flags",
    [
        ("--arch", "perceiver_io", "--size", "tiny", "--transfers", "yes", "--max_iterations", "0"),
        ("--arch", "resnet18", "--transfers", "no", "--max_iterations", "5"),
    ],
)
def test_tasks_of_an_accepted_architecture_are_listed(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    list_tasks.main(["--data_root", str(tmp_path), *flags, "--dataset", "2"])
    assert capsys.readouterr().out == "two_three\n"


def test_only_perceivers_clip_gradients_by_default() -> None:
    for layers in (architectures.PLAIN, architectures.SHARABLE):
        for name in models.ARCHITECTURES:
            build = architectures.architecture(name, layers=layers, in_channels=3, size=32)
            default = 1.0 if "perceiver" in name else None
            assert architectures.resolved_clip_grad_norm(None, build=build) == default, name
            assert architectures.resolved_clip_grad_norm(0.0, build=build) is None
            assert architectures.resolved_clip_grad_norm(2.5, build=build) == 2.5


def test_architectures_with_transfers_are_those_with_several_modalities() -> None:
    for layers in (architectures.PLAIN, architectures.SHARABLE):
        for name in models.ARCHITECTURES:
            build = architectures.architecture(name, layers=layers, in_channels=3, size=32)
            with torch.device("meta"):
                network = build(width=1.0)
            assert build.multimodal == (len(network.modalities) > 1), name
