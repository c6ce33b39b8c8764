"""A task's images or texts as tensors on the training device, and batches of network inputs."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import cache
from data.augmentation import Augmenter, Draws
from data.cache import channel_statistics
from data.splits import load_split
from data.tables import Table, Task
from data.text_encoders import HASH, MAX_TOKENS, TextEncoder, load_encoder
from utils.errors import UserError
from utils.seeds import derive_seed

PROTOCOLS = ("published", "heldout")

# Number of batches selected at once, to amortise the fixed cost of an operation. More gain nothing and
# exceed the CPU's cache.
_CHUNK = 16


@dataclass(frozen=True)
class Samples:
    """Stored inputs and their labels, on one device.

    Args:
        inputs: images uint8 (N, C, S, S), or texts as token ids int32 (N, L) from 1, 0 where padded.
        labels: int64 (N,).
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def none(self) -> "Samples":
        """An empty set of such samples, which shares no memory with these."""
        return Samples(self.inputs.new_empty((0, *self.inputs.shape[1:])), self.labels.new_empty(0))


@dataclass(frozen=True)
class TaskData:
    """All data of one task.

    Args:
        validation: the samples that decisions are based on; `test` itself under the published protocol.
        mean, std: float32 (C,), in [0, 1]; empty for texts.
        fingerprint: sha256 of the training and test samples, their labels, and what else determines the
            network's inputs: mean, std and augmentation of images, encoder and maximum length of texts, and
            how many training samples were drawn per class.
        train_per_class: training samples drawn per class, including those held out; None: all.
        encoder: the text encoder, on the device; None for images.
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
    encoder: TextEncoder | None = None
    train_per_class: int | None = None

    @cached_property
    def to_inputs(self) -> "ToInputs":
        """The transform from stored samples to network inputs."""
        return Normaliser(self.mean, self.std) if self.encoder is None else Embedder(self.encoder)

    @property
    def encoder_identity(self) -> str | None:
        """Identity of the text encoder; None for images."""
        return None if self.encoder is None else self.encoder.identity

    def only(self, split: str) -> "TaskData":
        """The same task with the samples of one split only: "train", "validation" or "test"."""
        others = {"train", "validation", "test"} - {split}
        return replace(self, **{name: getattr(self, name).none() for name in others})

    def first_inputs(self, count: int) -> Tensor:
        """The first `count` validation samples as network inputs, or all if there are fewer."""
        stored = self.validation.inputs[:count]
        (length,) = self.to_inputs.longest(stored, batch_size=count)
        return self.to_inputs(stored[:, :length])


def load_task(
    table: Table,
    task: Task,
    *,
    data_root: Path,
    protocol: str,
    seed: int,
    device: torch.device | str,
    text_encoder: str = HASH,
    train_per_class: int | None = None,
) -> TaskData:
    """Load a task from its cache, which is built first if necessary.

    Mean and std are the table's. If it has none, they are computed from all drawn training images, including
    those held out.

    Args:
        protocol: "published" validates on the test samples; "heldout" on a tenth of each class's training
            samples, drawn by `seed` and removed from the training samples.
        device: device of the tensors. On the CPU they stay memory-mapped unless samples are held out.
        text_encoder: name of the encoder of text tasks (`text_encoders.load_encoder`).
        train_per_class: draw this many training samples of each class by `seed`, before any are held out; a
            smaller draw is part of a larger one. 0: all. None: as the table says.

    Raises:
        UserError: for missing or unreadable files, an unknown protocol, or if nothing is left to hold out.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    encoder = load_encoder(text_encoder, device=device) if task.modality == "text" else None
    train_record, test_record = (
        load_split(table, task, split, data_root=data_root, text_encoder=text_encoder)
        for split in ("train", "test")
    )
    contents = train_record["fingerprint"], test_record["fingerprint"]
    train = _samples(train_record)
    per_class = _effective(train_per_class, task, labels=train.labels)
    if per_class is not None:
        rows = _drawn(train.labels, per_class, seed=_seed_of_draw(seed, table, task))
        train = Samples(train.inputs[rows], train.labels[rows])
    if encoder is None:
        measured = train_record["mean"], train_record["std"]
        if per_class is not None and task.mean is None:
            measured = channel_statistics(train.inputs)
        mean, std = task.mean or measured[0], task.std or measured[1]
        preprocessing = (list(mean), list(std), table.augment)
    else:
        if train_record["edition"]:
            logging.info("%s: %s", task.name, train_record["edition"])
        mean = std = ()
        preprocessing = (encoder.identity, MAX_TOKENS)
    if per_class is not None:
        preprocessing += (f"{per_class} per class",)
    fingerprint = hashlib.sha256(repr((*contents, *preprocessing)).encode())

    test = _to(_samples(test_record), device)
    if protocol == "published":
        train, validation = _to(train, device), test
    else:
        if per_class == 1:
            raise UserError(
                f"task {task.name}: 1 training sample per class leaves none to hold out: give "
                "--train_per_class 2 or more, or --protocol published"
            )
        drawn = _held_out(train.labels, task, seed=derive_seed(seed, table.name, task.name))
        validation = _to(Samples(train.inputs[drawn], train.labels[drawn]), device)
        train = _to(Samples(train.inputs[~drawn], train.labels[~drawn]), device)
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
        encoder=encoder,
        train_per_class=per_class,
    )


def validation_labels(
    table: Table,
    task: Task,
    *,
    data_root: Path,
    protocol: str,
    seed: int,
    train_per_class: int | None = None,
) -> Tensor | None:
    """Labels of the samples that decisions are based on, int64 (N,), without reading the samples.

    Args:
        protocol, seed, train_per_class: as in `load_task`.

    Returns:
        None if the task is not in the cache.
    """
    published = protocol == "published"
    owner = task.origin or table
    labels = cache.labels_of(data_root, owner.name, task.name, "test" if published else "train")
    if labels is None or published:
        return labels
    per_class = _effective(train_per_class, task, labels=labels)
    if per_class is not None:
        labels = labels[_drawn(labels, per_class, seed=_seed_of_draw(seed, table, task))]
    return labels[_held_out(labels, task, seed=derive_seed(seed, table.name, task.name))]


def _samples(record: dict[str, Any]) -> Samples:
    return Samples(record["tokens"] if "tokens" in record else record["images"], record["labels"])


def _to(samples: Samples, device: torch.device | str) -> Samples:
    return Samples(samples.inputs.to(device), samples.labels.to(device))


def _effective(requested: int | None, task: Task, *, labels: Tensor) -> int | None:
    """How many training samples to draw per class; None if that is all of them."""
    count = task.train_per_class if requested is None else requested or None
    if count is None:
        return None
    held = labels.bincount(minlength=task.num_classes)
    short = [name for name, size in zip(task.classes, held.tolist(), strict=True) if size < count]
    if short:
        logging.info(
            "Task %s: fewer than %d training samples of %s: all of them are used",
            task.name,
            count,
            ", ".join(short),
        )
    return count if int(held.max()) > count else None


def _seed_of_draw(seed: int, table: Table, task: Task) -> int:
    return derive_seed(seed, table.name, task.name, "train_per_class")


def _drawn(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """Increasing indices of `per_class` samples of each class, or of all if there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    chosen = [order[shuffled == label][:per_class] for label in shuffled.unique()]
    return torch.cat(chosen).sort().values


def _held_out(labels: Tensor, task: Task, *, seed: int) -> Tensor:
    """The mask of held-out samples, bool (N,): a tenth of each class, rounded, at least one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(task.classes):
        of_class = (labels == label).nonzero().squeeze(1)
        if len(of_class) < 2:
            raise UserError(
                f"task {task.name}, class {name} has {len(of_class)} training {task.modality}s: "
                "the held-out protocol needs at least 2: add some"
            )
        count = max(1, round(len(of_class) / 10))
        drawn[of_class[torch.randperm(len(of_class), generator=generator)[:count]]] = True
    return drawn


class ToInputs(ABC):
    """Turns stored samples (B, …) into float32 network inputs (B, …), on the samples' device."""

    @abstractmethod
    def __call__(self, stored: Tensor) -> Tensor:
        """The inputs of one batch."""

    def longest(
        self, stored: Tensor, *, batch_size: int, order: Tensor | slice = slice(None)
    ) -> Sequence[int | None]:
        """The length of each batch's longest sample, to which the batch is cut; None: nothing is cut.

        Args:
            stored: all samples (N, …).
            batch_size: samples per batch; the last batch may be smaller.
            order: the samples of the batches, on the samples' device.
        """
        return [None] * -(-len(stored) // batch_size)


class Normaliser(ToInputs):
    """(images / 255 - mean) / std, to 1e-6: uint8 (B, C, H, W) → float32 of the same shape.

    Args:
        mean, std: (C,), on the images' device, in [0, 1].
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._scale = (1 / (255 * std.double())).float()[:, None, None]
        self._shift = (-mean.double() / std.double()).float()[:, None, None]

    def __call__(self, stored: Tensor) -> Tensor:
        return stored.float().mul_(self._scale).add_(self._shift)


class Embedder(ToInputs):
    """Frozen embeddings: token ids int32 (B, L) → float32 (B, L, width)."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def __call__(self, stored: Tensor) -> Tensor:
        return self._encoder.embed(stored)

    def longest(
        self, stored: Tensor, *, batch_size: int, order: Tensor | slice = slice(None)
    ) -> Sequence[int]:
        """See the base class. Waits for the device once."""
        lengths = (stored != 0).sum(1)[order].split(batch_size)
        return torch.stack([length.max() for length in lengths]).tolist()


class Batches:
    """Batches of one task as network inputs: normalised images, or embedded texts.

    Args:
        data: the task. Its table defines the augmentation.
        batch_size: samples per training batch; the last batch of an epoch may be smaller.
        val_batch_size: samples per evaluation batch.
        shuffle: whether to shuffle the training samples in each epoch.
        augment: whether to crop and flip training images as the table defines.
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
            raise UserError(f"the batch size is {batch_size}: give at least 1")
        self._data = data
        self._val_batch_size = val_batch_size
        self._samples = data.train
        self._batch_size = batch_size
        self._shuffle = shuffle
        cropped = data.table.augment.crop_padding > 0 or data.table.augment.flip
        self._augment = augment and cropped and data.task.modality == "image"

    def resized(self, batch_size: int) -> "Batches":
        """Training batches of another size over the same samples."""
        return Batches(
            self._data,
            batch_size=batch_size,
            val_batch_size=self._val_batch_size,
            shuffle=self._shuffle,
            augment=self._augment,
        )

    @property
    def samples(self) -> Samples:
        """The training samples as stored, in fixed order."""
        return self._samples

    @property
    def to_inputs(self) -> ToInputs:
        """The transform from stored samples to network inputs."""
        return self._data.to_inputs

    @cached_property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self._samples.inputs, self._data.table.augment)

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches per epoch."""
        return -(-len(self._samples) // self._batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: inputs and labels int64 (B,), on the device.

        Inputs are images float32 (B, C, S, S), or embedded texts float32 (B, L, width), where L is the
        length of the batch's longest text and shorter texts end in all-zero rows.

        All random draws happen in this call, from a CPU generator. Its state afterwards does not depend on
        how many of the batches are used, and the draws are the same on every device.
        """
        count, device = len(self._samples), self._samples.inputs.device
        order = torch.randperm(count, generator=generator) if self._shuffle else torch.arange(count)
        draws = self._augmenter.draw(count, generator).to(device) if self._augment else None
        order = order.to(device)
        longest = self._data.to_inputs.longest(self._samples.inputs, batch_size=self._batch_size, order=order)
        return self._batches(order, draws, longest)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation batches of the validation samples, on which decisions are based."""
        return self._evaluation(self._data.validation)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation batches of the test samples."""
        return self._evaluation(self._data.test)

    def _evaluation(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(samples, self._data.to_inputs, batch_size=self._val_batch_size)

    def _batches(
        self, order: Tensor, draws: Draws | None, longest: Sequence[int | None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chunk_size, to_inputs, lengths = _CHUNK * self._batch_size, self._data.to_inputs, iter(longest)
        for start in range(0, len(order), chunk_size):
            part = slice(start, start + chunk_size)
            index = order[part]
            cuts = None if draws is None else draws[part]
            chunk = self._samples.inputs[index] if cuts is None else self._augmenter.take(index, cuts)
            labels = self._samples.labels[index]
            for stored, batch_labels in zip(
                chunk.split(self._batch_size), labels.split(self._batch_size), strict=True
            ):
                yield to_inputs(stored[:, : next(lengths)]), batch_labels


def evaluation_batches(
    samples: Samples, to_inputs: ToInputs, *, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in order, in batches: network inputs from `to_inputs`, and labels int64 (B,)."""
    longest = to_inputs.longest(samples.inputs, batch_size=batch_size)
    for number, length in enumerate(longest):
        part = slice(number * batch_size, (number + 1) * batch_size)
        yield to_inputs(samples.inputs[part, :length]), samples.labels[part]
