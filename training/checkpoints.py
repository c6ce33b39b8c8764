"""Write, read and validate checkpoint files."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from training.schema import MAX_COUNT, Invalid, check_payload
from utils.architecture_names import digest_of
from utils.errors import UserError
from utils.files import write_atomically
from utils.paths import redo_command
from utils.tensor_files import Damaged, read_tensors, tensor_bytes

FORMAT_VERSION = 1
_PUBLISHED_KEYS = {
    "model_state_dict": dict,
    "dataset_history": list,
    "dataset2num_classes": dict,
    "masks": dict,
    "shared_layer_info": dict,
}


def save_checkpoint(path: Path, payload: dict) -> None:
    """Write `payload` and its checksum to `path` atomically and durably.

    A reader sees the old file or the new one, never half of it.
    """
    # Serialise in memory first: on a full disk, torch would raise its own error, without the path.
    write_atomically(path, tensor_bytes({"format_version": FORMAT_VERSION, **payload}))


def load_checkpoint(
    path: Path, *, architecture: str, layers: str, sizes: Mapping[str, float] | None = None
) -> dict:
    """Read a checkpoint, ours or a published one, onto the CPU.

    Args:
        architecture, layers: expected values; not checked if the checkpoint does not record them (as in
            published ones). The file of a `FileArchitecture` must not have changed.
        sizes: the architecture's sizes, which must match; None accepts any.

    Raises:
        UserError: if it is missing, in a newer format, or holds another architecture.
        Damaged: if it is truncated, changed, or not a checkpoint.
    """
    payload = read_checkpoint(path)
    check_architecture(payload, architecture=architecture, layers=layers, sizes=sizes, where=path)
    return payload


def check_architecture(
    payload: dict,
    *,
    architecture: str,
    layers: str,
    sizes: Mapping[str, float] | None = None,
    where: Path | str,
) -> None:
    """Refuse the payload of a checkpoint that holds another architecture. See `load_checkpoint`.

    Args:
        where: where the payload is from, which begins the message.
    """
    found = payload.get("architecture")
    if found is None:
        return
    if (found["name"], found["layers"]) != (architecture, layers):
        raise UserError(
            f"{where} is a {found['name']} with {found['layers']} layers, "
            f"not a {architecture} with {layers} layers: correct --arch or the folder"
        )
    digest = digest_of(architecture)
    if digest is not None and found.get("file") != digest:
        raise UserError(
            f"{where} was made with another version of {architecture.file} ({found.get('file')} recorded, "
            f"{digest} now): restore the file, or give the function another name"
        )
    recorded = found.get("sizes", {})
    differing = [] if sizes is None else [name for name in sizes if sizes[name] != recorded.get(name)]
    if differing:
        named = ", ".join(
            f"{name} ({recorded.get(name)} recorded, {sizes[name]} requested)" for name in differing
        )
        raise UserError(f"{where} holds a network with other sizes: {named}: pass the same sizes")


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint of any architecture, ours or a published one, onto the CPU.

    Raises:
        UserError: if it is missing, or in a newer format.
        Damaged: if it is truncated, changed, or not a checkpoint.
    """
    path = Path(path)
    remedy = f"{redo_command(path)}, or correct the path"
    payload = read_tensors(path, what="a checkpoint", remedy=remedy)
    check_content(payload, where=path, remedy=remedy)
    return payload


def check_content(payload: object, *, where: Path | str, remedy: str) -> None:
    """Check that `payload` is the content of a checkpoint, ours or a published one.

    Args:
        where: where it is from, which begins the message.
        remedy: what the user should do if it is damaged; it ends the message.

    Raises:
        UserError: if it is in a newer format.
        Damaged: if it is not the content of a checkpoint.
    """
    foreign = f"{where} is not a checkpoint of this project"
    missing = [key for key in _PUBLISHED_KEYS if not isinstance(payload, dict) or key not in payload]
    if missing:
        raise Damaged(f"{foreign}: it lacks {', '.join(missing)}", remedy=remedy)
    odd = [key for key, kind in _PUBLISHED_KEYS.items() if not isinstance(payload[key], kind)]
    if odd:
        raise Damaged(f"{foreign}: wrong types: {', '.join(odd)}", remedy=remedy)
    version = payload.get("format_version", 0)
    if isinstance(version, int) and FORMAT_VERSION < version <= MAX_COUNT:  # not a damaged one
        raise UserError(f"{where} has format {version}; this version reads up to {FORMAT_VERSION}: update")
    try:
        check_payload(payload)
    except Invalid as error:
        raise Damaged(f"{where} is damaged: {error}", remedy=remedy) from error


def set_aside(path: Path, *, reason: Damaged, consequence: str) -> None:
    """Rename a damaged file to `<name>.damaged`, which nothing reads, and warn.

    Args:
        consequence: what happens without it, for the warning.
    """
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    logging.warning("%s: set aside as %s; %s", reason.problem, aside.name, consequence)


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
