"""Roots with unusual names, and a data root that nobody may write to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_pickaback.test_stages_bash import STAGES
from utils import logs
from utils.paths import Paths

ODD = "a b\nä'$x"


def stage_1(root: Path, *, data: Path, unprivileged: bool = False) -> subprocess.CompletedProcess:
    """Train the first task of digits for an epoch, by the real script."""
    as_user = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if unprivileged else []
    variables = {"EPOCHS": "1", "JOBS": "1", "THREADS": "1", "DEVICE": "cpu", "PYTHON": sys.executable}
    roots = {
        "DATA_ROOT": str(data),
        "CHECKPOINTS_ROOT": str(root / "checkpoints"),
        "LOGS_ROOT": str(root / "logs"),
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [*as_user, "bash", STAGES / "baseline.sh", "digits", "1"],
        env={**kept, **variables, **roots},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_roots_with_odd_names_and_a_read_only_data_root(tmp_path: Path) -> None:
    root = tmp_path / ODD
    data = root / "data"
    root.mkdir()
    written = stage_1(root, data=data)
    assert written.returncode == 0, written.stderr
    paths = Paths(checkpoints=root / "checkpoints", logs=root / "logs", data=data, run="lenet5/seed1")
    assert "zero_one" in paths.baseline_file("digits").read_text()
    assert (paths.baselines("digits") / "zero_one" / "checkpoint-1.pth.tar").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [ODD]

    # Once the caches are there, nothing is written to the data root.
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root can write anywhere")
    shutil.rmtree(root / "checkpoints")
    folders = [path for path in (data, *data.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        again = stage_1(root, data=data, unprivileged=os.geteuid() == 0)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert again.returncode == 0, again.stderr


def test_a_path_with_a_line_break_is_logged_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with logs.to_file(log):
        logs.to_terminal()
        logs.configuration({"data_root": tmp_path / ODD, "epochs": 3})
    (line,) = log.read_text().splitlines()
    assert "a b\\nä'$x epochs=3" in line
