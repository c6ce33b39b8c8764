"""The uint8 cache: one file for every table, task and split."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "test")

# Raised when decoding changes, so that caches of an older version are made anew.
FORMAT = 1
_KEYS = {"format", "images", "labels", "classes", "signature", "fingerprint", "mean", "std"}


def folder_of(data_root: Path, table: str) -> Path:
    """Folder that holds one folder of caches for each task of `table`."""
    return Path(data_root) / "cache" / table


def path_of(data_root: Path, table: str, task: str, split: str) -> Path:
    """The cache file of one split of one task."""
    return folder_of(data_root, table) / task / f"{split}.pt"


def write(
    path: Path, *, images: "Tensor", labels: "Tensor", classes: tuple[str, ...], signature: str
) -> None:
    """Write a cache file.

    Args:
        images: uint8 (N, C, S, S).
        labels: int64 (N,), indices into `classes`.
        signature: what the images were made from; a different one means that they are out of date.
    """
    import torch

    mean, std = channel_statistics(images)
    record = {
        "format": FORMAT,
        "images": images,
        "labels": labels,
        "classes": list(classes),
        "signature": signature,
        "fingerprint": _fingerprint(images, labels, classes),
        "mean": mean,
        "std": std,
    }
    buffer = io.BytesIO()
    torch.save(record, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a cache file; its images stay memory-mapped.

    Raises:
        UserError: if it is truncated or no cache; `remedy` ends the message.
    """
    import torch

    try:
        record = torch.load(path, weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{path} is truncated or no image cache: delete it and {remedy}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= _KEYS:
        raise UserError(f"{path} is no image cache of this version: delete it and {remedy}")
    return record


def channel_statistics(images: "Tensor") -> tuple[list[float], list[float]]:
    """Mean and population standard deviation of each channel, in [0, 1].

    Computed from counts of the 256 values, so exact whatever the number of threads. A constant channel
    gets a standard deviation of 1, so that dividing by it is harmless.
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


def _fingerprint(images: "Tensor", labels: "Tensor", classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((tuple(images.shape), classes)).encode())
    digest.update(images.contiguous().numpy())
    digest.update(labels.numpy())
    return digest.hexdigest()
