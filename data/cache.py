"""The cache of decoded images and tokenised texts: one file per table, task and split."""

import hashlib
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.files import locked, write_atomically
from utils.tensor_files import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "test")

# Increment when decoding changes, so that older caches are rebuilt.
FORMAT = 1
_COMMON_KEYS = {"format", "labels", "classes", "signature", "fingerprint"}
_KEYS = {
    "image": _COMMON_KEYS | {"images", "mean", "std"},
    "text": _COMMON_KEYS | {"tokens", "encoder", "counts", "edition"},
}
_STATISTICS = ("mean", "std")
_COUNTS = ("encoder", "counts", "edition")

# Files whose content was verified in this process: path, size, time of the last change.
_verified: set[tuple[str, int, int]] = set()


def folder_of(data_root: Path, table: str) -> Path:
    """Folder with one folder of caches per task of `table`."""
    return Path(data_root) / "cache" / table


def path_of(data_root: Path, table: str, task: str, split: str, *, encoder: str = "") -> Path:
    """The cache file of one split of one task. For texts, `encoder` is `TextEncoder.cache_name`."""
    return folder_of(data_root, table) / task / (f"{split}-{encoder}.pt" if encoder else f"{split}.pt")


def write(
    path: Path, *, images: "Tensor", labels: "Tensor", classes: tuple[str, ...], signature: str
) -> None:
    """Write a cache file of images.

    Args:
        images: uint8 (N, C, S, S).
        labels: int64 (N,), indices into `classes`.
        signature: identifies the raw files; the cache is out of date when it changes.
    """
    mean, std = channel_statistics(images)
    _save(path, labels, classes, signature, inputs={"images": images}, more={"mean": mean, "std": std})


def write_texts(
    path: Path,
    *,
    tokens: "Tensor",
    labels: "Tensor",
    classes: tuple[str, ...],
    signature: str,
    encoder: str,
    counts: Mapping[str, int],
    edition: str = "",
) -> None:
    """Write a cache file of texts.

    Args:
        tokens: int32 (N, L), token ids from 1, 0 where padded.
        labels: int64 (N,), indices into `classes`.
        signature: identifies the raw files; the cache is out of date when it changes.
        encoder: identity of the encoder that made the token ids.
        counts: how many texts were left out, cut or decoded with replacement.
        edition: which edition of the collection this is, if there are several.
    """
    more = {"encoder": encoder, "counts": dict(counts), "edition": edition}
    _save(path, labels, classes, signature, inputs={"tokens": tokens}, more=more)


def _save(
    path: Path,
    labels: "Tensor",
    classes: tuple[str, ...],
    signature: str,
    *,
    inputs: dict[str, "Tensor"],
    more: dict[str, Any],
) -> None:
    import torch

    (stored,) = inputs.values()
    record = {
        "format": FORMAT,
        **inputs,
        "labels": labels,
        "classes": list(classes),
        "signature": signature,
        "fingerprint": _fingerprint(stored, labels, classes),
        **more,
    }
    record["checksum"] = _checksum(record)
    buffer = io.BytesIO()
    torch.save(record, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path, *, remedy: str, kind: str = "image") -> dict[str, Any]:
    """Read a cache file of `kind` "image" or "text". Its tensors stay memory-mapped.

    The content is verified against its hashes, once per process and file.

    Raises:
        UserError: if it is truncated, damaged or not a cache; `remedy` ends the message.
    """
    return _verified_record(path, remedy=f"delete it and {remedy}", kind=kind)


def _verified_record(path: Path, *, remedy: str, kind: str) -> dict[str, Any]:
    record = _opened(path, remedy=remedy, kind=kind)
    status = path.stat()
    state = str(path.absolute()), status.st_size, status.st_mtime_ns
    if state not in _verified:
        damage = _damage(record, kind)
        if damage:
            raise UserError(f"{path} is damaged ({damage}): {remedy}")
        _verified.add(state)
    return record


def is_intact(path: Path, *, kind: str = "image") -> bool:
    """Whether `path` is an undamaged cache file."""
    try:
        read(path, remedy="", kind=kind)
    except UserError:
        return False
    return True


def classes_in(path: Path, *, remedy: str, kind: str = "image") -> list[str]:
    """The classes of a cache file, without reading its samples.

    Raises:
        UserError: if it is truncated or not a cache; `remedy` ends the message.
    """
    return _opened(path, remedy=f"delete it and {remedy}", kind=kind)["classes"]


def labels_of(data_root: Path, table: str, task: str, split: str) -> "Tensor | None":
    """The labels of one split of one task, int64 (N,), memory-mapped; None if it is in no cache.

    Of texts, the cache of any encoder is read.

    Raises:
        UserError: if it is truncated or not a cache.
    """
    for path in sorted((folder_of(data_root, table) / task).glob(f"{split}*.pt")):
        kind = "image" if path.stem == split else "text"
        return _opened(path, remedy="delete it", kind=kind)["labels"]
    return None


def _opened(path: Path, *, remedy: str, kind: str) -> dict[str, Any]:
    record = read_tensors(path, what=f"a cache of {kind}s", remedy=remedy, mmap=True)
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or record.keys() - {"checksum"} != _KEYS[kind]
    ):
        raise UserError(f"{path} is not a cache of {kind}s of this version: {remedy}")
    return record


def _damage(record: dict[str, Any], kind: str) -> str:
    """What is wrong with a cache's content; empty if nothing is."""
    import torch

    images = kind == "image"
    inputs, labels, classes = record["images" if images else "tokens"], record["labels"], record["classes"]
    layouts = ((inputs, torch.uint8 if images else torch.int32, 4 if images else 2), (labels, torch.int64, 1))
    for tensor, dtype, dimensions in layouts:
        if not isinstance(tensor, torch.Tensor) or (tensor.dtype, tensor.dim()) != (dtype, dimensions):
            return "its tensors have other types or shapes"
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            return "its tensors have another layout"
    if len(inputs) != len(labels):
        return f"it has {len(inputs)} {kind}s and {len(labels)} labels"
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "its classes are not names"
    # Caches of earlier versions have no checksum.
    if "checksum" in record and record["checksum"] != _checksum(record):
        return "its checksum does not match"
    if record["fingerprint"] != _fingerprint(inputs, labels, tuple(classes)):
        return "its fingerprint does not match"
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        return f"it has a label outside 0 to {len(classes) - 1}"
    if images and not _plausible(record, channels=inputs.shape[1]):
        return "its mean or std is impossible"
    return ""


def _plausible(record: dict[str, Any], *, channels: int) -> bool:
    """Whether a cache's mean and std are numbers in [0, 1] per channel, with std above 0."""
    for name in _STATISTICS:
        values = record[name]
        if not isinstance(values, list) or len(values) != channels:
            return False
        if not all(isinstance(value, float) and 0 <= value <= 1 for value in values):
            return False
    return min(record["std"]) > 0


def read_or_build(
    path: Path, *, kind: str, fits: Callable[[dict[str, Any]], bool], build: Callable[[], None]
) -> dict[str, Any]:
    """Read the cache file at `path`; `build` writes it first if it is missing, damaged or does not fit."""
    record = _current(path, kind, fits)
    if record is not None:
        return record
    with locked(path):
        # Another process may have built it while this one waited for the lock.
        record = _current(path, kind, fits, warn=True)
        if record is not None:
            return record
        build()
    return read(path, remedy="run the same command again", kind=kind)


def _current(
    path: Path, kind: str, fits: Callable[[dict[str, Any]], bool], *, warn: bool = False
) -> dict[str, Any] | None:
    """The cache at `path`; None if it must be built. `warn` logs why."""
    if not path.exists():
        return None
    try:
        record = _verified_record(path, remedy="rebuilding it", kind=kind)
    except UserError as error:
        if warn:
            logging.warning("%s", error)
        return None
    return record if fits(record) else None


def channel_statistics(images: "Tensor") -> tuple[list[float], list[float]]:
    """Mean and population standard deviation of each channel, in [0, 1].

    Computed from a histogram of the 256 values, so the result does not depend on the number of threads. The
    standard deviation of a constant channel is reported as 1, so that dividing by it is harmless.
    """
    import torch

    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        mean = (share * values).sum()
        std = (share * (values - mean) ** 2).sum().sqrt().item()
        means.append(mean.item())
        stds.append(std if std > 0 else 1.0)
    return means, stds


def _checksum(record: dict[str, Any]) -> str:
    """A hash of what decides a result beside the samples, which the fingerprint covers."""
    covered = ("format", "classes", "signature", "fingerprint", *_STATISTICS, *_COUNTS)
    content = [(name, record[name]) for name in covered if name in record]
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def _fingerprint(inputs: "Tensor", labels: "Tensor", classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((tuple(inputs.shape), classes)).encode())
    digest.update(inputs.contiguous().numpy())
    digest.update(labels.numpy())
    return digest.hexdigest()
