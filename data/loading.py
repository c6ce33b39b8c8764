"""A task's images as tensors, and batches of them, normalised, on the device that trains."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data import images
from data.augmentation import Augmenter, Draws
from data.tables import Table, Task
from utils.errors import UserError
from utils.seeds import derive_seed

PROTOCOLS = ("published", "heldout")

# Batches cut out at once, to spread the fixed cost of an operation; more gains nothing and leaves the
# processor's cache.
_CHUNK = 16


@dataclass(frozen=True)
class Samples:
    """Images uint8 (N, C, S, S) and labels int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """All data of one task.

    Args:
        validation: what decisions may look at; under the published protocol this is `test` itself.
        mean, std: (C,), in [0, 1].
        fingerprint: sha256 of the train and test images and labels, of mean and std, and of how the
            training images are augmented.
    """

    table: Table
    task: Task
    train: Samples
    validation: Samples
    test: Samples
    mean: Tensor
    std: Tensor
    fingerprint: str
    protocol: str


def load_task(
    table: Table,
    task: Task,
    *,
    data_root: Path,
    protocol: str,
    seed: int,
    device: torch.device | str,
) -> TaskData:
    """Load a task from its cache, which is made first where need be.

    Args:
        protocol: "published" validates on the test images; "heldout" on a tenth of each class's training
            images, drawn by `seed`, which the returned training images then lack.
        device: where the tensors go. On the CPU they stay memory-mapped where they are not selected from.

    Mean and std are the table's; where it gives none, those of all the training images, held-out ones
    included.

    Raises:
        UserError: for missing or unreadable files, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    train_record = images.load_split(table, task, "train", data_root=data_root)
    test_record = images.load_split(table, task, "test", data_root=data_root)
    mean = task.mean or train_record["mean"]
    std = task.std or train_record["std"]
    contents = train_record["fingerprint"], test_record["fingerprint"]
    fingerprint = hashlib.sha256(repr((*contents, list(mean), list(std), table.augment)).encode())

    train = Samples(train_record["images"], train_record["labels"])
    test = _to(Samples(test_record["images"], test_record["labels"]), device)
    if protocol == "published":
        train, validation = _to(train, device), test
    else:
        drawn = _held_out(train.labels, task, seed=derive_seed(seed, table.name, task.name))
        validation = _to(Samples(train.images[drawn], train.labels[drawn]), device)
        train = _to(Samples(train.images[~drawn], train.labels[~drawn]), device)
    return TaskData(
        table=table,
        task=task,
        train=train,
        validation=validation,
        test=test,
        mean=torch.tensor(mean, dtype=torch.float32, device=device),
        std=torch.tensor(std, dtype=torch.float32, device=device),
        fingerprint=fingerprint.hexdigest(),
        protocol=protocol,
    )


def _to(samples: Samples, device: torch.device | str) -> Samples:
    return Samples(samples.images.to(device), samples.labels.to(device))


def _held_out(labels: Tensor, task: Task, *, seed: int) -> Tensor:
    """Which samples are held out: bool (N,), a tenth of each class, rounded, at least one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(task.classes):
        of_class = (labels == label).nonzero().squeeze(1)
        if len(of_class) < 2:
            raise UserError(
                f"task {task.name}, class {name} has {len(of_class)} training image: "
                "the held-out protocol needs two or more"
            )
        count = max(1, round(len(of_class) / 10))
        drawn[of_class[torch.randperm(len(of_class), generator=generator)[:count]]] = True
    return drawn


def normalise(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std, computed on the images' device.

    Args:
        images: uint8 (B, C, H, W).
        mean, std: (C,), on the same device, in [0, 1].

    Returns:
        float32 (B, C, H, W), in agreement with the formula to 1e-6.
    """
    scale, shift = _scale_and_shift(mean, std)
    return _scaled(images, scale, shift)


def _scale_and_shift(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    scale = (1 / (255 * std.double())).float()
    shift = (-mean.double() / std.double()).float()
    return scale[:, None, None], shift[:, None, None]


def _scaled(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return images.float().mul_(scale).add_(shift)


class Batches:
    """Batches of one task, normalised.

    Args:
        data: the task; its table says how to augment.
        batch_size: images in a training batch; the last batch of an epoch may be smaller.
        val_batch_size: images in an evaluation batch.
        shuffle: whether each epoch draws its own order.
        augment: whether to crop and flip as the table says.
    """

    def __init__(
        self,
        data: TaskData,
        *,
        batch_size: int,
        val_batch_size: int = 500,
        shuffle: bool = True,
        augment: bool = True,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}: give 1 or more")
        self._data = data
        self._val_batch_size = val_batch_size
        self._samples = data.train
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._scale, self._shift = _scale_and_shift(data.mean, data.std)
        self._augment = augment and (data.table.augment.crop_padding > 0 or data.table.augment.flip)

    @cached_property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self._samples.images, self._data.table.augment)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self._samples) // self._batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: images float32 (B, C, S, S) and labels int64 (B,), on the device.

        Everything random is drawn here and now, from a CPU generator: where it stands afterwards does
        not depend on how many of the batches are used, and every device sees the same draws.
        """
        count, device = len(self._samples), self._samples.images.device
        order = torch.randperm(count, generator=generator) if self._shuffle else torch.arange(count)
        draws = self._augmenter.draw(count, generator).to(device) if self._augment else None
        return self._batches(order.to(device), draws)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation batches of the samples that decisions look at."""
        return self._evaluation(self._data.validation)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation batches of the test samples."""
        return self._evaluation(self._data.test)

    def _evaluation(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(
            samples, mean=self._data.mean, std=self._data.std, batch_size=self._val_batch_size
        )

    def _batches(self, order: Tensor, draws: Draws | None) -> Iterator[tuple[Tensor, Tensor]]:
        chunk_size = _CHUNK * self._batch_size
        for start in range(0, len(order), chunk_size):
            part = slice(start, start + chunk_size)
            index = order[part]
            cuts = None if draws is None else draws[part]
            chunk = self._samples.images[index] if cuts is None else self._augmenter.take(index, cuts)
            labels = self._samples.labels[index]
            for at in range(0, len(labels), self._batch_size):
                batch = slice(at, at + self._batch_size)
                yield _scaled(chunk[batch], self._scale, self._shift), labels[batch]


def evaluation_batches(
    samples: Samples, *, mean: Tensor, std: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in their order: normalised images float32 (B, C, S, S) and labels int64 (B,)."""
    scale, shift = _scale_and_shift(mean, std)
    for start in range(0, len(samples), batch_size):
        part = slice(start, start + batch_size)
        yield _scaled(samples.images[part], scale, shift), samples.labels[part]
