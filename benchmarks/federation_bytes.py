"""Bytes that a federation sends for one target, by rule, against dense checkpoints and FedAvg.

    bash run_pickaback/federated.sh digits
    python -m benchmarks.federation_bytes logs/federation --target four_five

The devices of a finished federation answer here in one process; the messages are those that travel.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from federation.device import SEARCH_FLAGS, TRAINING_FLAGS, Device, Settings
from federation.messages import size_of, to_content
from federation.parts import Parts
from pipeline.fleet import test_accuracy
from training.checkpoints import load_checkpoint
from utils.paths import checkpoint_in
from utils.tables import aligned

RULES = ("random", "room", "farthest", "rsa", "cka", "logme")
MAX_BYTES = 1 << 30


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="logs/federation of a finished federation.")
    parser.add_argument("--target", required=True, help="Name of the target's task.")
    parser.add_argument("--rules", nargs="+", default=RULES, help="Rules to measure.")
    parser.add_argument("--rounds", type=int, default=100, help="Rounds of FedAvg.")
    args = parser.parse_args(argv)
    folders = {path.parent.name: path for path in sorted(args.folder.glob("*/device")) if path.is_dir()}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for rule in args.rules:
            devices = {
                name: with_rule(folder, rule, Path(scratch) / name) for name, folder in folders.items()
            }
            rows.append((rule, *(f"{count:,}" for count in bytes_of(devices, target=args.target))))
    print(aligned(("rule", "answers", "networks", "together"), rows))
    target = devices.pop(args.target)
    candidates = list(devices.values())
    dense = [dense_bytes(device) for device in candidates]
    print(f"{len(candidates)} candidates; accuracy of the target's own network {own_accuracy(target):.3f}")
    print(f"dense checkpoint of one candidate: {sum(dense) // len(dense):,}; of all: {sum(dense):,}")
    shared = shared_bytes(target)
    print(
        f"FedAvg of the weights without heads, {args.rounds} rounds, {len(candidates) + 1} devices: "
        f"{2 * args.rounds * (len(candidates) + 1) * shared:,} ({2 * args.rounds * shared:,} a device)"
    )


def with_rule(folder: Path, rule: str, copy: Path) -> Device:
    """The device of `folder`, choosing by another rule, on noise."""
    copy.mkdir(exist_ok=True)
    lines = (folder / SEARCH_FLAGS).read_text(encoding="utf-8")
    (copy / SEARCH_FLAGS).write_text(f"{lines}--probes\nnoise\n--select\n{rule}\n", encoding="utf-8")
    shutil.copyfile(folder / TRAINING_FLAGS, copy / TRAINING_FLAGS)
    return Device(Settings(copy, max_bytes=MAX_BYTES))


def bytes_of(devices: dict[str, Device], *, target: str) -> tuple[int, int, int]:
    """Bytes of all candidates' answers to one target, of the networks that it receives, and of both."""
    own = devices[target]
    said = own.announcement()["announcement"]
    candidates = [device for name, device in devices.items() if name != target]
    answers = [device.answer({f"target.{own.task.id}": said}) for device in candidates]
    networks: list[Parts] = [device.network() for device in candidates]
    sizes = [sum(size_of(to_content(parts)) for parts in group) for group in (answers, networks)]
    if not said["needs_networks"]:
        sizes[1] //= len(networks)  # only the backbone's: the mean over candidates
    return sizes[0], sizes[1], sum(sizes)


def dense_bytes(device: Device) -> int:
    """Size of the checkpoint of the device's chosen pruned network."""
    return checkpoint_in(device.search.own.pruned(device.task), remedy="").stat().st_size


def shared_bytes(device: Device) -> int:
    """Bytes of the network's weights and statistics without heads."""
    build = device.search.sharable
    path = checkpoint_in(device.search.own.pruned(device.task), remedy="")
    payload = load_checkpoint(path, architecture=build.name, layers=build.layers, sizes=build.sizes)
    state = payload["model_state_dict"].items()
    return sum(value.numel() * value.element_size() for name, value in state if name.startswith("features."))


def own_accuracy(device: Device) -> float:
    """Test accuracy of the device's own unpruned network."""
    search = device.search
    folder = search.paths.single_scratch(device.table.name, device.task.name)
    return test_accuracy(folder, arch=device.args.arch, layers=search.sharable.layers)


if __name__ == "__main__":
    main()
