"""Probes that are no device's own data: samples of a public pool, or noise."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.cache import channel_statistics
from data.images import decode_files
from data.loading import Normaliser, ToInputs, load_task
from data.raw_files import raw_file
from data.tables import Table, Task
from utils.errors import UserError

_IMAGES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Probes:
    """Probes that two networks are compared on.

    Attributes:
        halves: (n, …) each, as networks read them: in place of the candidate's and of the target's own.
        fingerprint: hash of the probes.
    """

    halves: tuple[Tensor, Tensor]
    fingerprint: str

    def to(self, device: torch.device) -> "Probes":
        """The same probes on `device`."""
        return Probes((self.halves[0].to(device), self.halves[1].to(device)), self.fingerprint)


def noise_probes(count: int, *, table: Table, seed: int) -> Probes:
    """2 × `count` images of white noise, the same on every machine.

    Every value is drawn uniformly and then normalised, so that each channel has mean 0 and standard
    deviation 1, as the images of any task have for its network.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * count, table.channels, table.size, table.size)
    return _of_images(torch.randint(256, shape, generator=generator, dtype=torch.uint8))


def probes_of_task(
    task: Task, count: int, *, table: Table, data_root: Path, seed: int, text_encoder: str
) -> Probes:
    """2 × `count` training samples of a task, drawn by `seed`. Images are normalised by their own statistics.

    Raises:
        UserError: if the task has fewer.
    """
    data = load_task(
        table,
        task,
        data_root=data_root,
        protocol="published",
        seed=seed,
        device="cpu",
        text_encoder=text_encoder,
        train_per_class=0,
    )
    stored = data.train.inputs[_drawn(len(data.train), count, seed=seed, pool=f"task {task.name}")]
    return _of_images(stored) if task.modality == "image" else _halved(stored, data.to_inputs)


def probes_in_folder(folder: Path, count: int, *, table: Table, seed: int) -> Probes:
    """2 × `count` PNG and JPEG images anywhere below a folder, drawn by `seed`.

    They are resized to the table's images, and normalised by their own statistics.

    Raises:
        UserError: if it holds fewer, or one of those drawn cannot be read.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    rows = _drawn(len(found), count, seed=seed, pool=str(folder)).tolist()
    images, _ = decode_files(
        [raw_file(found[row], 0) for row in rows], size=table.size, channels=table.channels
    )
    return _of_images(images)


def _drawn(size: int, count: int, *, seed: int, pool: str) -> Tensor:
    if size < 2 * count:
        raise UserError(
            f"the pool of probes {pool} has {size} samples, and {count} for either network need {2 * count}: "
            "lower --val_batch_size, or name another --public_probes"
        )
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: 2 * count]


def _of_images(images: Tensor) -> Probes:
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in channel_statistics(images))
    return _halved(images, Normaliser(mean, std))


def _halved(stored: Tensor, to_inputs: ToInputs) -> Probes:
    first, second = (
        to_inputs(half[:, :length])
        for half in stored.chunk(2)
        for length in to_inputs.longest(half, batch_size=len(half))
    )
    return Probes((first, second), hashlib.sha256(stored.contiguous().numpy()).hexdigest()[:16])
