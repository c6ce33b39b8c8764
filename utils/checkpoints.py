"""Checkpoint files: how they are written, read and refused."""

import hashlib
import io
import pickle
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import write_atomically

FORMAT_VERSION = 1
_PUBLISHED_KEYS = ("model_state_dict", "dataset_history", "dataset2num_classes", "masks", "shared_layer_info")


def save_checkpoint(path: Path, payload: dict) -> None:
    """Write `payload` to `path`; a reader sees the old file or the new one, never a part."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **payload}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, architecture: str, layers: str) -> dict:
    """Read a checkpoint, ours or a published one, onto the CPU.

    Args:
        architecture, layers: what it must be of, where it says so (published ones do not).

    Raises:
        UserError: if it is missing, truncated, no checkpoint, of a later format or another architecture.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} not found: run the stage that writes it, or correct the path")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no checkpoint of tensors, numbers and strings alone, and is not opened: "
            "make it again with this project"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is truncated or no checkpoint: delete it and run its stage again") from error
    missing = [key for key in _PUBLISHED_KEYS if not isinstance(payload, dict) or key not in payload]
    if missing:
        raise UserError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    version = payload.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}: update")
    found = payload.get("architecture")
    asked = {"name": architecture, "layers": layers}
    if found is not None and found != asked:
        raise UserError(
            f"{path} is a {found['name']} with {found['layers']} layers, "
            f"not a {architecture} with {layers} layers: correct --arch or the folder"
        )
    return payload


def fingerprint(payload: dict) -> str:
    """A short hash of a checkpoint's weights and owners, to recognise what a later output was made from."""
    digest = hashlib.sha256()
    for part in ("model_state_dict", "masks"):
        for name, value in sorted(payload[part].items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
