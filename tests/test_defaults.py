"""The defaults of the bash stages are those of the scripts, and an unknown architecture is told at once."""

import subprocess
from pathlib import Path

import pytest
from helpers import refusal

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
import spg_main as spg_script
from tools import list_tasks
from utils.paths import REPOSITORY

CONFIG = REPOSITORY / "run_pickaback" / "config.sh"

# Variable of config.sh → flag, for the variables that a stage passes on as they are.
TRAINING = {
    **{"CONFIG": "dataset_config", "TASKS": "dataset", "ARCH": "arch", "TEXT_ENCODER": "text_encoder"},
    **{"SEED": "seed", "PROTOCOL": "protocol", "EPOCHS": "epochs", "BATCH_SIZE": "batch_size", "LR": "lr"},
    **{"DEVICE": "device", "PRECISION": "precision"},
}
CPG = TRAINING | {
    **{"PRUNE_EPOCHS": "prune_epochs", "SPARSITIES": "target_sparsity"},
    **{"ALLOW_ACC_LOSS": "allow_acc_loss", "MAX_WIDTH": "max_allowed_network_width_multiplier"},
}
SEARCH = {"BACKBONE": "select"}
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
    [(packnet_script, TRAINING), (cpg_script, CPG), (search_script, SEARCH), (spg_script, SPG)],
    ids=["packnet", "cpg", "search", "spg"],
)
def test_a_stage_and_its_script_have_the_same_defaults(
    script: object, flags: dict[str, str], variables: dict[str, str]
) -> None:
    defaults = vars(script.parse([]))
    for variable, flag in flags.items():
        expected = defaults[flag]
        words = " ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
        assert variables[variable] == words, variable


def test_an_unknown_architecture_is_told_before_any_job(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = ["--data_root", str(tmp_path)]
    message = refusal(list_tasks.main, ["--arch", "lenet6", *files])
    assert message.startswith("error: --arch lenet6 is unknown: choose one of ")
    assert capsys.readouterr().out == ""
    list_tasks.main(["--arch", "perceiver_io", *files, "--dataset", "2"])
    assert capsys.readouterr().out == "two_three\n"
