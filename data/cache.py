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
    buffer = io.BytesIO()
    torch.save(record, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path, *, remedy: str, kind: str = "image") -> dict[str, Any]:
    """Read a cache file of `kind` "image" or "text". Its tensors stay memory-mapped.

    Raises:
        UserError: if it is truncated or not a cache; `remedy` ends the message.
    """
    record = read_tensors(path, what=f"a cache of {kind}s", remedy=f"delete it and {remedy}", mmap=True)
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= _KEYS[kind]:
        raise UserError(f"{path} is not a cache of {kind}s of this version: delete it and {remedy}")
    return record


def read_or_build(
    path: Path, *, kind: str, fits: Callable[[dict[str, Any]], bool], build: Callable[[], None]
) -> dict[str, Any]:
    """Read the cache file at `path`; `build` writes it first if it is missing, damaged or does not fit."""
    record = _current(path, kind, fits)
    if record is not None:
        return record
    with locked(path):
        # Another process may have built it while this one waited for the lock.
        record = _current(path, kind, fits)
        if record is not None:
            return record
        build()
    return read(path, remedy="run the same command again", kind=kind)


def _current(path: Path, kind: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = read(path, remedy="run the same command again", kind=kind)
    except UserError as error:
        logging.warning("%s; rebuilding it", error)
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


def _fingerprint(inputs: "Tensor", labels: "Tensor", classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((tuple(inputs.shape), classes)).encode())
    digest.update(inputs.contiguous().numpy())
    digest.update(labels.numpy())
    return digest.hexdigest()
