"""Write, read and validate checkpoint files."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import write_atomically
from utils.tensor_files import read_tensors

FORMAT_VERSION = 1
_PUBLISHED_KEYS = {
    "model_state_dict": dict,
    "dataset_history": list,
    "dataset2num_classes": dict,
    "masks": dict,
    "shared_layer_info": dict,
}


def save_checkpoint(path: Path, payload: dict, *, durable: bool = True) -> None:
    """Write `payload` to `path` atomically: a reader sees the old file or the new one, never half of it.

    Args:
        durable: see `write_atomically`.
    """
    # Serialise in memory first: on a full disk, torch would raise its own error, without the path.
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **payload}, buffer)
    write_atomically(path, buffer.getbuffer(), durable=durable)


def load_checkpoint(
    path: Path, *, architecture: str, layers: str, sizes: Mapping[str, float] | None = None
) -> dict:
    """Read a checkpoint, ours or a published one, onto the CPU.

    Args:
        architecture, layers: expected values; not checked if the checkpoint does not record them (as in
            published ones).
        sizes: the architecture's sizes, which must match; None accepts any.

    Raises:
        UserError: if it is missing, truncated, not a checkpoint, in a newer format, or holds another
            architecture.
    """
    payload = read_checkpoint(path)
    found = payload.get("architecture")
    if found is None:
        return payload
    if (found["name"], found["layers"]) != (architecture, layers):
        raise UserError(
            f"{path} is a {found['name']} with {found['layers']} layers, "
            f"not a {architecture} with {layers} layers: correct --arch or the folder"
        )
    recorded = found.get("sizes", {})
    differing = [] if sizes is None else [name for name in sizes if sizes[name] != recorded.get(name)]
    if differing:
        named = ", ".join(
            f"{name} ({recorded.get(name)} recorded, {sizes[name]} requested)" for name in differing
        )
        raise UserError(f"{path} holds a network with other sizes: {named}: pass the same sizes")
    return payload


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint of any architecture, ours or a published one, onto the CPU.

    Raises:
        UserError: if it is missing, truncated, not a checkpoint, or in a newer format.
    """
    payload = read_tensors(
        path,
        what="a checkpoint",
        remedy="run its stage again with --overwrite, or correct the path",
    )
    missing = [key for key in _PUBLISHED_KEYS if not isinstance(payload, dict) or key not in payload]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: it lacks {', '.join(missing)}")
    odd = [key for key, kind in _PUBLISHED_KEYS.items() if not isinstance(payload[key], kind)]
    odd += [
        f"{part}[{name!r}]"
        for part in ("model_state_dict", "masks")
        if part not in odd
        for name, value in payload[part].items()
        if not isinstance(value, torch.Tensor)
    ]
    if odd:
        raise UserError(f"{path} is not a checkpoint of this project: wrong types: {', '.join(odd)}")
    version = payload.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}: update")
    return payload


def fingerprint(payload: dict) -> str:
    """A short hash of a checkpoint's weights, owners and transferred tensors, recorded as `parent`."""
    digest = hashlib.sha256()
    arrived = {
        f"{task} {name}": value
        for task, tensors in payload.get("arrivals", {}).items()
        for name, value in tensors.items()
    }
    for tensors in (payload["model_state_dict"], payload["masks"], arrived):
        for name, value in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
