"""Export one task of a checkpoint as a dense network: a state dict (.pt), program (.pt2) or ONNX (.onnx)."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import importlib.util
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.loading import load_task
from data.tables import Table, known_tables, load_table
from methods.ownership import SharedNetwork
from models.network import Network
from pipeline import flags
from pipeline.architectures import PLAIN, SHARABLE, architecture
from training.checkpoints import read_checkpoint
from training.schema import Invalid, check_exported
from utils import logs
from utils.architecture_names import architecture_name, digest_of
from utils.errors import UserError
from utils.files import write_atomically
from utils.folders import require_different
from utils.paths import checkpoint_in, default_root
from utils.tensor_files import Damaged, read_tensors, tensor_bytes

FORMAT_VERSION = 1
CARD = "card.json"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logs.to_terminal()
    serialised = {".pt": as_state_dict, ".pt2": as_program, ".onnx": as_onnx}.get(args.to.suffix)
    if serialised is None:
        raise UserError(f"--to {args.to}: give a file name that ends in .pt, .pt2 or .onnx")
    network, card = dense_network(args)
    write_atomically(args.to, serialised(network, card))
    logging.info("Task %s as a dense network: %s", card["task"], args.to)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="Checkpoint, or its folder.")
    parser.add_argument("task", help="Name or id of a task in the checkpoint.")
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        help="File to write: .pt, a state dict; .pt2, a program that PyTorch runs without this project; or "
        ".onnx (default: none, required).",
    )
    parser.add_argument(
        "--dataset_config",
        help="Task table: a name, or the TOML file of a table of your own (default: the checkpoint's, if its "
        "name is known).",
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        default=default_root("data"),
        help="Data folder, for tasks whose mean and standard deviation must be computed.",
    )
    parser.add_argument(
        "--arch",
        type=architecture_name,
        default="lenet5",
        help="Architecture of a published checkpoint, which does not record it; or the file of an "
        "architecture of your own, path/to/my_net.py:my_net.",
    )
    parser.add_argument(
        "--layers",
        choices=(SHARABLE, PLAIN),
        default=SHARABLE,
        help="Its kind of layers.",
    )
    return parser.parse_args(argv)


def dense_network(args: argparse.Namespace) -> tuple[Network, dict]:
    """Extract one task's network, in evaluation mode on the CPU, and the card that describes its use.

    Raises:
        UserError: if the checkpoint, its task or its task table cannot be read.
    """
    path = args.checkpoint
    if path.is_dir():
        path = checkpoint_in(path, remedy="give a checkpoint or its folder")
    require_different({"the checkpoint": path, "--to": args.to})
    payload = read_checkpoint(path)
    if "sequence" in payload:
        raise UserError(f"{path} was written by spg_main.py: give a checkpoint of a Pick-a-back stage")
    entry = payload.get("task_table", {})
    table = _table(args, entry, path=path)
    task = table.task(args.task)
    found = payload.get("architecture", {"name": args.arch, "layers": args.layers})
    build = architecture(
        _recorded_architecture(found, given=args.arch, where=path),
        layers=found["layers"],
        in_channels=table.channels,
        size=table.size,
        sizes=found.get("sizes"),
    )
    shared = SharedNetwork.from_payload(payload, build=build, source=path)
    try:
        record = shared.tasks[shared.index_of(task.name) - 1]
    except UserError as error:
        raise UserError(f"{path}: {error}: name one of those") from error
    if record.num_classes != task.num_classes:
        raise UserError(
            f"{path} has {record.num_classes} classes for task {task.name}, "
            f"its table has {task.num_classes}: correct --dataset_config"
        )
    if entry.get("name") != task.name:  # the checkpoint records only its newest task's entry
        entry = _entry(table, task.name, data_root=args.data_root)
    card = {
        "format_version": FORMAT_VERSION,
        "architecture": build.entry,
        "width": record.width,
        "in_channels": table.channels,
        "size": table.size,
        "task": task.name,
        "classes": list(task.classes),
        "modality": task.modality,
        **{name: entry[name] for name in ("mean", "std", "text_encoder", "max_tokens") if name in entry},
    }
    return shared.as_task(task.name).requires_grad_(False), card


def _recorded_architecture(entry: dict, *, given: str | None, where: Path) -> str:
    """The architecture that a file records. One that the user's own file defines must be given.

    Raises:
        UserError: if that file is not given, or has changed.
    """
    name, digest = entry["name"], entry.get("file")
    if digest is None:
        return name
    if given == name and digest_of(given) == digest:
        return given
    raise UserError(
        f"{where} holds the architecture {name} of a file ({digest}): give that file, unchanged, as "
        f"path/to/file.py:{name} (--arch, or the argument arch)"
    )


def _table(args: argparse.Namespace, entry: dict, *, path: Path) -> Table:
    config = args.dataset_config or entry.get("config")
    if config is None:
        raise UserError(f"{path} does not record its task table: give it with --dataset_config")
    if not args.dataset_config and config not in known_tables():
        raise UserError(
            f"{path} belongs to a table of your own, {config}: give its file with --dataset_config"
        )
    return load_table(config, data_root=args.data_root)


def _entry(table: Table, task: str, *, data_root: Path) -> dict:
    data = load_task(table, table.task(task), data_root=data_root, protocol="published", seed=1, device="cpu")
    if table.task(task).modality == "text":
        return {"text_encoder": data.encoder.identity}
    return {"mean": data.mean.tolist(), "std": data.std.tolist()}


def as_state_dict(network: Network, card: dict) -> memoryview:
    """Serialise {"state_dict": name → tensor, "card": description of its use}, with a checksum."""
    return tensor_bytes({"state_dict": dict(network.state_dict()), "card": card})


def read_exported(path: Path, *, arch: str | None = None) -> tuple[Network, dict]:
    """Read the network, in evaluation mode, and the card of an exported .pt file.

    The network expects normalised images: (pixels / 255 − card["mean"]) / card["std"], per channel.

    Args:
        arch: for an architecture of the user's own, its file and function: "path/to/my_net.py:my_net".

    Raises:
        UserError: if the file is missing, damaged or not an exported network.
    """
    path = Path(path)
    what, remedy = "a network exported by tools.export_task", "export the task again"
    if not path.is_file():
        raise UserError(f"{path} not found: give the .pt file that tools.export_task wrote")
    content = read_tensors(path, what=what, remedy=remedy)
    if not isinstance(content, dict) or not content.keys() >= {"state_dict", "card"}:
        raise Damaged(f"{path} is not {what}", remedy=remedy)
    state, card = content["state_dict"], content["card"]
    try:
        check_exported(state, card)
    except Invalid as error:
        raise Damaged(f"{path} is damaged: {error}", remedy=remedy) from error
    entry = card["architecture"]
    given = None if arch is None else architecture_name(arch)
    build = architecture(
        _recorded_architecture(entry, given=given, where=path),
        layers=entry["layers"],
        in_channels=card["in_channels"],
        size=card["size"],
        sizes=entry.get("sizes"),
    )
    network = build(width=card["width"])
    if card["modality"] not in network.modalities:
        raise Damaged(f"{path} is damaged: {entry['name']} reads no {card['modality']}s", remedy=remedy)
    network.modality = card["modality"]
    network.add_head(len(card["classes"]), in_features=state["classifiers.0.weight"].shape[1])
    _load(network, state, where=path, remedy=remedy)
    return network.eval(), card


def _load(network: Network, state: dict[str, Tensor], *, where: Path, remedy: str) -> None:
    """Load a state dict whose names and shapes must be the network's."""
    own = network.state_dict()
    differing = sorted(
        name
        for name in {*own, *state}
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if differing:
        raise Damaged(f"{where} does not fit its architecture: {', '.join(differing[:3])}", remedy=remedy)
    network.load_state_dict(state)


def as_program(network: Network, card: dict) -> bytes:
    """Serialise a program for any number of samples, with the card as the extra file `card.json`.

    `torch.export.load` reads it; running it takes PyTorch alone.
    """
    inputs, shape = _example(network, card)
    program = torch.export.export(network, (inputs,), dynamic_shapes=(shape,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARD: json.dumps(card)})
    return buffer.getvalue()


def _example(network: Network, card: dict) -> tuple[Tensor, dict]:
    """Inputs to trace a network with, and the dimensions of theirs that may vary."""
    samples = torch.export.Dim("samples")
    if card["modality"] == "text":
        longest, channels = network.features.inputs["text"].positions.shape
        return torch.ones(2, 3, channels), {0: samples, 1: torch.export.Dim("tokens", max=longest)}
    return torch.zeros(2, card["in_channels"], card["size"], card["size"]), {0: samples}


def as_onnx(network: Network, card: dict) -> bytes:
    """Serialise an ONNX model for any number of samples, with the card's entries as JSON metadata.

    Raises:
        UserError: if a package that exports to ONNX is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX export needs the package {' and '.join(missing)}: install the extra `onnx` "
            "(pip install '.[onnx]'), or write a .pt file"
        )
    inputs, shape = _example(network, card)
    program = torch.onnx.export(
        network,
        (inputs,),
        dynamo=True,
        verbose=False,
        input_names=["inputs"],
        output_names=["logits"],
        dynamic_shapes=(shape,),
    )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in card.items()})
    return program.model_proto.SerializeToString()


if __name__ == "__main__":
    errors.run(main)
