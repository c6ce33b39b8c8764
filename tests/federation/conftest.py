"""Devices of the small fleet: each with roots of its own, which hold nothing of another task."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.device import SEARCH_FLAGS, TRAINING_FLAGS, Device, Settings
from federation.parts import Parts
from tests.helpers import TRAINING, Fleet

TASKS = {1: "zero_one", 2: "two_three", 3: "four_five"}


def separate(fleet: Fleet, task: str, *, root: Path) -> Fleet:
    """A fleet under `root` that holds one task of `fleet`, and its data, alone."""
    own = Fleet(root=root, data=root / "data")
    cached = Path("cache/digits") / task
    shutil.copytree(fleet.data / cached, own.data / cached)
    shutil.copytree(fleet.paths.baselines("digits") / task, own.paths.baselines("digits") / task)
    shutil.copytree(fleet.paths.single("digits", task), own.paths.single("digits", task))
    baselines = json.loads(fleet.paths.baseline_file("digits").read_text())
    own.paths.baseline_file("digits").parent.mkdir(parents=True)
    own.paths.baseline_file("digits").write_text(json.dumps({task: baselines[task]}))
    return own


def write_flags(own: Fleet, task: str, *search: object) -> Path:
    """The folder of flags that a device of this task is started with; returns it."""
    folder = own.root / "flags"
    folder.mkdir(exist_ok=True)
    common = own.flags("--dataset", task, "--threads", "1")
    lines = {
        SEARCH_FLAGS: [*common, "--max_iterations", "0", *search],
        TRAINING_FLAGS: [*common, *TRAINING, "--lr", "0.001"],
    }
    for name, flags in lines.items():
        (folder / name).write_text("".join(f"{flag}\n" for flag in map(str, flags)))
    return folder


@pytest.fixture
def make_devices(trained_fleet: Fleet, tmp_path: Path) -> Callable[..., dict[int, Device]]:
    """Make the devices of all tasks, by id, with flags of their searches."""

    def make(*search: object, max_bytes: int = 10**7, shares_images: bool = False) -> dict[int, Device]:
        devices = {}
        for number, task in TASKS.items():
            root = tmp_path / task
            exists = root.exists()
            own = Fleet(root=root, data=root / "data") if exists else separate(trained_fleet, task, root=root)
            folder = write_flags(own, task, *search)
            devices[number] = Device(Settings(folder, max_bytes=max_bytes, shares_images=shares_images))
        return devices

    return make


def answers_to(target: int, devices: dict[int, Device]) -> Parts:
    """What a target receives before it chooses."""
    said = devices[target].announcement()
    announced = {f"target.{target}": said["announcement"]}
    if "probes" in said:
        announced[f"probes.{target}"] = said["probes"]
    request: Parts = {}
    for number, device in devices.items():
        if number != target:
            reply = device.answer(announced)
            request |= {f"answer.{number}": reply["answer"]}
            request |= {f"evidence.{number}": reply[f"evidence.{target}"]}
            request |= {f"probes.{number}": reply["probes"]} if "probes" in reply else {}
            if said["announcement"]["needs_networks"]:
                request |= {f"network.{number}": device.network()["network"]}
    return request


def learning(target: int, devices: dict[int, Device], *, on: int, ranking: dict) -> Parts:
    """The request to train `target` on the network of `on`."""
    pruned = answers_to(target, devices)[f"answer.{on}"]["pruned"]
    backbone = {"id": on, "pruned": pruned, "stamp": ranking["stamp"], "refused": []}
    return {"backbone": backbone, "network": devices[on].network()["network"]}
