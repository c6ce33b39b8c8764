"""Write one task of a checkpoint as a plain dense network: a state dict (.pt) or ONNX (.onnx)."""

import argparse
import importlib.util
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

import models
import packnet_models
from data.loading import load_task
from data.tables import Table, load_table
from methods.ownership import SharedNetwork
from models.network import Network
from utils import arguments, errors, logs
from utils.checkpoints import read_checkpoint
from utils.errors import UserError
from utils.files import write_atomically
from utils.paths import checkpoint_in, default_root

REGISTRIES = {"sharable": models.ARCHITECTURES, "plain": packnet_models.ARCHITECTURES}
SUFFIXES = (".pt", ".onnx")
FORMAT_VERSION = 1


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    logs.to_terminal()
    if args.to.suffix not in SUFFIXES:
        raise UserError(f"--to {args.to}: give a file that ends in {' or '.join(SUFFIXES)}")
    network, card = dense_network(args)
    serialised = as_onnx if args.to.suffix == ".onnx" else as_state_dict
    write_atomically(args.to, serialised(network, card))
    logging.info("Task %s as a dense network: %s", card["task"], args.to)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="Checkpoint, or the folder that holds it.")
    parser.add_argument("task", help="Name or id of a task that it holds.")
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        help="File to write, .pt or .onnx (default: none, it must be given).",
    )
    parser.add_argument(
        "--dataset_config",
        help="Task table: a name, or a TOML file with one table (default: the checkpoint's).",
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        default=default_root("data"),
        help="Folder of data, for a mean and standard deviation that are computed from it.",
    )
    parser.add_argument(
        "--arch", default="lenet5", help="Architecture of a published checkpoint, which does not say it."
    )
    parser.add_argument(
        "--layers", choices=tuple(REGISTRIES), default="sharable", help="The same for its kind of layers."
    )
    return parser.parse_args(argv)


def dense_network(args: argparse.Namespace) -> tuple[Network, dict]:
    """The network as the task sees it, in evaluation mode on the CPU, and what using it takes to know.

    Raises:
        UserError: if the checkpoint, the task in it, or what its table says cannot be read.
    """
    path = args.checkpoint
    if path.is_dir():
        path = checkpoint_in(path, remedy="give a checkpoint, or the folder that holds one")
    payload = read_checkpoint(path)
    if "sequence" in payload:
        raise UserError(f"{path} is of spg_main.py: give a checkpoint of a stage of Pick-a-back")
    entry = payload.get("task_table", {})
    table = _table(args, entry, path=path)
    task = table.task(args.task)
    found = payload.get("architecture", {"name": args.arch, "layers": args.layers})
    registry = REGISTRIES[found["layers"]]
    build = arguments.architecture(
        registry, found["name"], in_channels=table.channels, size=table.size, sizes=found.get("sizes")
    )
    shared = SharedNetwork.from_payload(payload, build=build, source=path)
    try:
        record = shared.tasks[shared.index_of(task.name) - 1]
    except UserError as error:
        raise UserError(f"{path}: {error}: name one of those") from error
    if record.num_classes != task.num_classes:
        raise UserError(
            f"{path} has {record.num_classes} classes for task {task.name}, its table {task.num_classes}"
        )
    if entry.get("name") != task.name:  # the checkpoint has the entry of its newest task alone
        entry = _entry(table, task.name, data_root=args.data_root)
    card = {
        "format_version": FORMAT_VERSION,
        "architecture": build.entry(found["layers"]),
        "width": record.width,
        "in_channels": table.channels,
        "size": table.size,
        "task": task.name,
        "classes": list(task.classes),
        "modality": task.modality,
        **{name: entry[name] for name in ("mean", "std", "text_encoder", "max_tokens") if name in entry},
    }
    return shared.as_task(task.name).requires_grad_(False), card


def _table(args: argparse.Namespace, entry: dict, *, path: Path) -> Table:
    config = args.dataset_config or entry.get("config")
    if config is None:
        raise UserError(f"{path} does not say its task table: give it with --dataset_config")
    try:
        return load_table(config, data_root=args.data_root)
    except UserError as error:
        if args.dataset_config:
            raise
        raise UserError(f"{path}: {error}, with --dataset_config") from error


def _entry(table: Table, task: str, *, data_root: Path) -> dict:
    data = load_task(table, table.task(task), data_root=data_root, protocol="published", seed=1, device="cpu")
    if table.task(task).modality == "text":
        return {"text_encoder": data.encoder.identity}
    return {"mean": data.mean.tolist(), "std": data.std.tolist()}


def as_state_dict(network: Network, card: dict) -> bytes:
    """A file of `torch.save`: {"state_dict": name → tensor, "card": what using them takes to know}."""
    buffer = io.BytesIO()
    torch.save({"state_dict": dict(network.state_dict()), "card": card}, buffer)
    return buffer.getvalue()


def read_exported(path: Path) -> tuple[Network, dict]:
    """The network of an exported .pt file, in evaluation mode, and its card.

    Its input is normalised: (pixels / 255 − card["mean"]) / card["std"], a channel each.

    Raises:
        UserError: if the file is no such one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, card = content["state_dict"], content["card"]
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise UserError(f"{path} is no network that tools.export_task wrote: export it again") from error
    architecture = card["architecture"]
    build = arguments.architecture(
        REGISTRIES[architecture["layers"]],
        architecture["name"],
        in_channels=card["in_channels"],
        size=card["size"],
        sizes=architecture.get("sizes"),
    )
    network = build(width=card["width"])
    network.modality = card["modality"]
    network.add_head(len(card["classes"]), in_features=state["classifiers.0.weight"].shape[1])
    network.load_state_dict(state)
    return network.eval(), card


def as_onnx(network: Network, card: dict) -> bytes:
    """An ONNX model of any number of samples, the card's entries in its metadata as JSON.

    Raises:
        UserError: if a package that writes ONNX is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"writing ONNX needs the package {' and '.join(missing)}: install the extra `onnx` "
            "(pip install '.[onnx]'), or write a .pt file"
        )
    samples = torch.export.Dim("samples")
    if card["modality"] == "text":
        longest, channels = network.features.inputs["text"].positions.shape
        inputs = torch.ones(2, 3, channels)
        shape = {0: samples, 1: torch.export.Dim("tokens", max=longest)}
    else:
        inputs, shape = torch.zeros(2, card["in_channels"], card["size"], card["size"]), {0: samples}
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
