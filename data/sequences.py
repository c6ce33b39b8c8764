"""Sequences of tasks: a table's classes or users, split, ordered and sampled by a seed."""

import hashlib
import tomllib
from dataclasses import dataclass, replace
from functools import cache as memoised
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import cache
from data.loading import Samples, TaskData
from data.splits import load_split
from data.tables import Augmentation, Table, Task, load_table
from utils.errors import UserError
from utils.seeds import derive_seed

_SEQUENCES_FILE = Path(__file__).with_name("sequences.toml")
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Sequence:
    """Tasks in the order in which they are learned.

    Args:
        source: the table that provides the images.
        table: the tasks in order, with their names, classes and normalisation.
        members: for each class of each task, the task of `source` and the class that it comes from.
        counts: total number of images per task, for "train", "val" and "test".
        dropout: the rates tuned for the sequence: after the first two convolutions, and after the others.
        width: multiplier of the network's channels.
        seed: seed of all draws.
    """

    name: str
    source: Table
    table: Table
    members: tuple[tuple[tuple[Task, str], ...], ...]
    counts: dict[str, int]
    dropout: tuple[float, float]
    width: float
    seed: int


def known_sequences() -> tuple[str, ...]:
    """Names of the sequences in data/sequences.toml."""
    return tuple(_entries())


def load_sequence(name: str, *, data_root: Path, seed: int) -> Sequence:
    """Load a sequence, with its classes split into tasks or its users ordered at random by `seed`.

    Raises:
        UserError: for an unknown sequence (the message lists the known ones), or if its raw files are
            missing or only partly prepared.
    """
    entry = _entry(name)
    source = load_table(entry["table"], data_root=data_root)
    size = entry.get("size", source.size)
    if size != source.size:
        source = replace(source, name=f"{source.name}-{size}", size=size)
    generator = torch.Generator().manual_seed(derive_seed(seed, name, "order"))
    count, per_task = entry["tasks"], entry["classes"]

    if entry["by"] == "classes":
        classes = [(task, class_name) for task in source.tasks for class_name in task.classes]
        _require(source, found=len(classes), wanted=count * per_task, what="classes", data_root=data_root)
        order = torch.randperm(len(classes), generator=generator).tolist()
        groups = [order[start : start + per_task] for start in range(0, len(classes), per_task)]
        members = tuple(tuple(classes[index] for index in group) for group in groups)
        names = [f"task_{number:0{len(str(count))}}" for number in range(1, count + 1)]
    else:
        _require(source, found=len(source.tasks), wanted=count, what="users", data_root=data_root)
        order = torch.randperm(count, generator=generator).tolist()
        chosen = [source.tasks[index] for index in order]
        members = tuple(tuple((task, class_name) for class_name in task.classes) for task in chosen)
        names = [task.name for task in chosen]

    normalisation = {key: tuple(entry.get(key, _IMAGENET[key])) for key in ("mean", "std")}
    tasks = tuple(
        Task(
            id=number,
            name=task_name,
            classes=tuple(class_name for _, class_name in group),
            modality="image",
            **normalisation,
        )
        for number, (task_name, group) in enumerate(zip(names, members, strict=True), start=1)
    )
    return Sequence(
        name=name,
        source=source,
        table=replace(source, name=name, augment=Augmentation(), tasks=tasks),
        members=members,
        counts={split: entry[split] * per_task for split in ("train", "val", "test")},
        dropout=tuple(entry["dropout"]),
        width=entry.get("width", 1.0),
        seed=seed,
    )


def load_task(sequence: Sequence, number: int, *, data_root: Path, device: torch.device | str) -> TaskData:
    """Load the images of task `number`, counted from 1.

    If the table has more images than the sequence needs, a stratified draw reduces them to the totals. The
    images are shuffled once, so every epoch sees the same order.

    Raises:
        UserError: if the table has too few images.
    """
    task = sequence.table.tasks[number - 1]
    generator = torch.Generator().manual_seed(derive_seed(sequence.seed, sequence.name, number))
    digest = hashlib.sha256(repr(task.classes).encode())
    counts = sequence.counts

    def drawn(split: str, *totals: int) -> list[Samples]:
        pool, fingerprints = _pool(sequence, number, split, data_root=data_root)
        if len(pool) < sum(totals):
            raise UserError(
                f"{sequence.name}: task {task.name} has {len(pool)} {split} images in "
                f"{cache.folder_of(data_root, sequence.source.name)}, {sum(totals)} are needed: "
                f"complete the raw files and run `python -m data.prepare {sequence.source.name}` again"
            )
        parts = []
        rest = torch.arange(len(pool))
        for total in totals:
            chosen = stratified(pool.labels[rest], total, generator=generator)
            rows = rest[chosen]
            kept = torch.ones(len(rest), dtype=torch.bool)
            kept[chosen] = False
            rest = rest[kept]
            parts.append(Samples(pool.inputs[rows].to(device), pool.labels[rows].to(device)))
            digest.update(repr((fingerprints, rows.tolist())).encode())
        return parts

    validation, train = drawn("train", counts["val"], counts["train"])
    (test,) = drawn("test", counts["test"])
    return TaskData(
        table=sequence.table,
        task=task,
        train=train,
        validation=validation,
        test=test,
        mean=torch.tensor(task.mean, dtype=torch.float32, device=device),
        std=torch.tensor(task.std, dtype=torch.float32, device=device),
        fingerprint=digest.hexdigest(),
        protocol="heldout",
    )


def joint_task(sequence: Sequence, parts: list[TaskData], *, name: str) -> TaskData:
    """All tasks of a sequence as one task, shuffled. Its labels number the classes of all tasks in order."""
    offsets = [sum(part.task.num_classes for part in parts[:number]) for number in range(len(parts))]
    generator = torch.Generator().manual_seed(derive_seed(sequence.seed, sequence.name, name))

    def together(split: str) -> Samples:
        samples = [getattr(part, split) for part in parts]
        labels = torch.cat([part.labels + offset for part, offset in zip(samples, offsets, strict=True)])
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        return Samples(torch.cat([part.inputs for part in samples])[order], labels[order])

    first = parts[0]
    classes = tuple(f"{part.task.name}/{label}" for part in parts for label in part.task.classes)
    return replace(
        first,
        task=replace(first.task, id=0, name=name, classes=classes),
        **{split: together(split) for split in ("train", "validation", "test")},
        fingerprint=hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest(),
    )


def stratified(labels: Tensor, total: int, *, generator: torch.Generator) -> Tensor:
    """Draw `total` samples in random order, with each class in proportion to its size.

    Fractional shares are rounded by largest remainder, so that the total holds.

    Args:
        labels: int64 (N,), N ≥ total.

    Returns:
        Indices of the drawn samples, int64 (total,).
    """
    classes, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    exact = sizes.double() * total / max(len(labels), 1)
    quota = exact.floor().long()
    largest = (exact - quota).sort(descending=True, stable=True).indices
    quota[largest[: total - int(quota.sum())]] += 1
    rows = []
    for index in range(len(classes)):
        of_class = (inverse == index).nonzero().squeeze(1)
        shuffled = torch.randperm(len(of_class), generator=generator)
        rows.append(of_class[shuffled[: int(quota[index])]])
    drawn = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _pool(sequence: Sequence, number: int, split: str, *, data_root: Path) -> tuple[Samples, tuple[str, ...]]:
    """All images of a task's classes in one split of the source, and their caches' fingerprints."""
    parts, labels, fingerprints = [], [], []
    records: dict[str, dict[str, Any]] = {}
    for label, (task, class_name) in enumerate(sequence.members[number - 1]):
        if task.name not in records:
            records[task.name] = load_split(sequence.source, task, split, data_root=data_root)
        record = records[task.name]
        rows = (record["labels"] == task.classes.index(class_name)).nonzero().squeeze(1)
        parts.append(record["images"][rows])
        labels.append(torch.full((len(rows),), label, dtype=torch.int64))
        fingerprints.append(record["fingerprint"])
    return Samples(torch.cat(parts), torch.cat(labels)), tuple(fingerprints)


def _require(source: Table, *, found: int, wanted: int, what: str, data_root: Path) -> None:
    if found == wanted or (what == "users" and found >= wanted):
        return
    folder = cache.folder_of(data_root, source.name)
    state = f"holds {found} of {wanted} {what}" if folder.is_dir() else "not found"
    raise UserError(
        f"{folder} {state}: run `python -m data.prepare {source.name}`, which reads the raw files in "
        f"{Path(data_root) / source.root} or says where to get them"
    )


def _entry(name: str) -> dict[str, Any]:
    entries = _entries()
    if name not in entries:
        raise UserError(f"unknown sequence {name!r}: choose from {', '.join(entries)}")
    return entries[name]


@memoised
def _entries() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_SEQUENCES_FILE.read_text(encoding="utf-8"))
