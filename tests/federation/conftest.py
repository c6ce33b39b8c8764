"""Devices of the small fleet: each with roots of its own, which hold nothing of another task."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.device import SEARCH_FLAGS, TRAINING_FLAGS, Device, Settings
from tests.helpers import TRAINING, Fleet

TASKS = {1: "zero_one", 2: "two_three", 3: "four_five"}


def separate(fleet: Fleet, task: str, *, root: Path) -> Fleet:
    """A fleet under `root` that holds one task of `fleet`, and its data, alone."""
    own = Fleet(root=root, data=root / "data")
    cached = Path("cache/digits") / task
    shutil.copytree(fleet.data / cached, own.data / cached)
    for of in (
        lambda paths: paths.baselines("digits") / task,
        lambda paths: paths.single("digits", task),
    ):
        shutil.copytree(of(fleet.paths), of(own.paths))
    baselines = json.loads(fleet.paths.baseline_file("digits").read_text())
    own.paths.baseline_file("digits").parent.mkdir(parents=True)
    own.paths.baseline_file("digits").write_text(json.dumps({task: baselines[task]}))
    return own


def write_flags(own: Fleet, task: str, *, search: tuple = (), training: tuple = ()) -> Path:
    """The folder of flags that a device of this task is started with."""
    folder = own.root / "flags"
    folder.mkdir(exist_ok=True)
    common = own.flags("--dataset", task, "--threads", "1")
    lines = {
        SEARCH_FLAGS: [*common, "--max_iterations", "0", *search],
        TRAINING_FLAGS: [*common, *TRAINING, "--lr", "0.001", *training],
    }
    for name, flags in lines.items():
        (folder / name).write_text("".join(f"{flag}\n" for flag in map(str, flags)))
    return folder


@pytest.fixture
def make_device(trained_fleet: Fleet, tmp_path: Path) -> Callable[..., Device]:
    """Make the device of a task, with flags of its search."""

    def make(task: str, *search: str, training: tuple = (), max_bytes: int = 10**7) -> Device:
        root = tmp_path / task
        own = Fleet(root=root, data=root / "data")
        if not root.exists():
            own = separate(trained_fleet, task, root=root)
        folder = write_flags(own, task, search=search, training=training)
        return Device(Settings(folder=folder, max_bytes=max_bytes))

    return make
