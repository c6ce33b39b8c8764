"""Sequences of tasks: a table's classes or tasks, ordered, drawn and sampled by a seed."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache as memoised
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import cache
from data.loading import Samples, TaskData
from data.splits import load_split
from data.tables import Augmentation, Table, Task, check_keys, load_table, read_toml, shown, statistics_of
from utils.errors import UserError
from utils.paths import check_run
from utils.seeds import derive_seed

_SEQUENCES_FILE = Path(__file__).with_name("sequences.toml")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# HAT's (Serrà et al. 2018), whose network this is.
_DROPOUT = (0.2, 0.5)
_KEYS = {
    *("table", "by", "tasks", "classes", "per", "train", "val", "test"),
    *("dropout", "width", "size", "mean", "std"),
}
_UNITS = ("class", "task")
# What is drawn from each split of the table, in this order.
_PARTS = {"train": ("val", "train"), "test": ("test",)}
_ALL = "all"
# Names that a run's files give a meaning of their own (accuracy_matrix.csv, --tune, joint training).
_RESERVED_TASKS = ("after", "tune", "all_tasks")
# Inclusive bounds of the numbers in a sequence's entry. An owner is a byte, so there are at most 255 tasks.
_TASKS, _CLASSES, _IMAGES, _SIZES = (1, 255), (1, 10_000), (1, 10_000_000), (1, 1024)
_WIDTHS = (0.001, 100)
_MOST_DROPOUT = 0.99
_OWN_FILE = re.compile(r"(?P<file>.+?\.toml)(?::(?P<name>.+))?")


@dataclass(frozen=True)
class Counts:
    """How many images each task takes.

    Args:
        train, test: numbers; None: all that there are.
        val: number of validation images, which are taken from the training images; None: a tenth of each
            class's, rounded, at least one.
        per: what the numbers count: the images of each "class", or of a "task" in total. "" multiplies them
            by the task's number of classes to a total. A total is drawn in proportion to the classes' sizes.
    """

    train: int | None
    val: int | None
    test: int | None
    per: str = ""

    def quota(self, part: str, sizes: Tensor) -> Tensor:
        """How many images of each class a part ("train", "val" or "test") takes, int64 (C,).

        Args:
            sizes: images that each class has, int64 (C,).
        """
        count = getattr(self, part)
        if count is None:
            return (sizes / 10).round().long().clamp(min=1).minimum(sizes) if part == "val" else sizes
        if self.per == "class":
            return torch.full_like(sizes, count)
        return in_proportion(sizes, count if self.per == "task" else count * len(sizes))

    def as_text(self, *parts: str) -> str:
        """The numbers as an entry writes them."""
        unit = {"class": "of each class", "task": "of a task"}.get(self.per, "times the number of classes")
        numbers = {name: getattr(self, name) for name in parts}
        if set(numbers.values()) == {None}:
            return "a training and a validation image" if "train" in parts else "a test image"
        given = [f"{name} = {count}" for name, count in numbers.items() if count is not None]
        return f"{' and '.join(given)} {unit}"


@dataclass(frozen=True)
class Sequence:
    """Tasks in the order in which they are learned.

    Args:
        source: the table that provides the images.
        table: the tasks in order, with their names, classes and normalisation.
        members: for each class of each task, the task of `source` and the class that it comes from.
        counts: number of images per task.
        dropout: the rates tuned for the sequence: after the first two convolutions, and after the others.
        width: multiplier of the network's channels.
        seed: seed of all draws.
        definition: sha256 of the entries of a user's own file; None for the sequences of this folder.
        notes: what the sequence leaves out of its table, one line each.
    """

    name: str
    source: Table
    table: Table
    members: tuple[tuple[tuple[Task, str], ...], ...]
    counts: Counts
    dropout: tuple[float, float]
    width: float
    seed: int
    definition: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A sequence's checked entry. None: all that there are, or the table's own.

    Args:
        where: the entry's place, for messages.
        table: the table's name or file.
    """

    name: str
    where: str
    table: str
    by: str
    tasks: int | None
    classes: int | None
    counts: Counts
    dropout: tuple[float, float]
    width: float
    size: int | None
    mean: object
    std: object
    definition: str | None

    @property
    def statistics(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("mean", "std") if getattr(self, name) is not None}


def known_sequences() -> tuple[str, ...]:
    """Names of the sequences in data/sequences.toml."""
    return tuple(_entries())


def sequence_name(which: str) -> str:
    """The name of the sequence that `--seq` names. See `load_sequence`."""
    return _find(which).name


def load_sequence(which: str, *, data_root: Path, seed: int) -> Sequence:
    """Load a sequence, with its classes split into tasks or its tasks ordered at random by `seed`.

    Args:
        which: a name in data/sequences.toml, or a .toml file: either a task table, each of whose tasks is
            learned whole, or sequences in the format of data/sequences.toml. `FILE.toml:NAME` picks one of
            several.

    Raises:
        UserError: for an unknown sequence (the message lists the known ones), an invalid entry, tasks that
            are not images, or raw files that are missing or only partly prepared.
    """
    entry = _find(which)
    source = load_table(entry.table, data_root=data_root)
    for task in source.tasks:
        if task.modality != "image":
            raise UserError(
                f"{entry.where}: task {task.name} of table {source.name} has {task.modality}s: "
                "the architectures of SPG read images only: use a table without it"
            )
    source = _resized(source, entry)
    notes: list[str] = []
    generator = torch.Generator().manual_seed(derive_seed(seed, entry.name, "order"))
    split = _by_class if entry.by == "classes" else _by_task
    names, members = split(source, entry, generator=generator, notes=notes, data_root=data_root)
    normalisation = _normalisation(source, entry)
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
        name=entry.name,
        source=source,
        table=replace(source, name=entry.name, augment=Augmentation(), tasks=tasks),
        members=members,
        counts=entry.counts,
        dropout=entry.dropout,
        width=entry.width,
        seed=seed,
        definition=entry.definition,
        notes=tuple(notes),
    )


_Members = tuple[tuple[tuple[Task, str], ...], ...]


def _by_class(
    source: Table, entry: _Entry, *, generator: torch.Generator, notes: list[str], data_root: Path
) -> tuple[list[str], _Members]:
    """Split the classes of all tasks at random: the names of the new tasks, and their members."""
    classes = [(task, class_name) for task in source.tasks for class_name in task.classes]
    per_task = entry.classes
    count = len(classes) // per_task if entry.tasks is None else entry.tasks
    wanted = max(count, 1) * per_task
    _require(source, entry, found=len(classes), wanted=wanted, what="classes", data_root=data_root)
    if len(classes) > wanted:
        notes.append(
            f"{entry.name} takes {wanted} of the {len(classes)} classes of table {source.name}, by seed"
        )
    order = torch.randperm(len(classes), generator=generator).tolist()[:wanted]
    groups = [order[start : start + per_task] for start in range(0, wanted, per_task)]
    names = [f"task_{number:0{len(str(count))}}" for number in range(1, count + 1)]
    return names, tuple(tuple(classes[index] for index in group) for group in groups)


def _by_task(
    source: Table, entry: _Entry, *, generator: torch.Generator, notes: list[str], data_root: Path
) -> tuple[list[str], _Members]:
    """Order the table's tasks at random: their names and members."""
    count = len(source.tasks) if entry.tasks is None else entry.tasks
    _require(source, entry, found=len(source.tasks), wanted=count, what="tasks", data_root=data_root)
    if len(source.tasks) > count and entry.definition is not None:
        notes.append(
            f"{entry.name} takes the first {count} of the {len(source.tasks)} tasks of table {source.name}"
        )
    order = torch.randperm(count, generator=generator).tolist()
    chosen = [source.tasks[index] for index in order]
    members = []
    for task in chosen:
        if task.name in _RESERVED_TASKS:
            raise UserError(
                f"{entry.where}: the task name {task.name!r} has a meaning in a run's files: rename it in "
                f"the table, e.g. task_{task.name}"
            )
        wanted = task.num_classes if entry.classes is None else entry.classes
        if wanted > task.num_classes:
            raise UserError(
                f"{entry.where}: classes is {wanted}, but task {task.name} has {task.num_classes}: "
                f'lower it, or write classes = "{_ALL}"'
            )
        names = task.classes
        if wanted < len(names):
            drawn = torch.randperm(len(names), generator=generator)[:wanted].sort().values
            names = tuple(names[index] for index in drawn.tolist())
            notes.append(
                f"task {task.name}: takes {wanted} of its {task.num_classes} classes, by seed: "
                f"{', '.join(names)}"
            )
        members.append(tuple((task, class_name) for class_name in names))
    return [task.name for task in chosen], tuple(members)


def _resized(source: Table, entry: _Entry) -> Table:
    """The table with the entry's image size. Images of another size have a cache of their own."""
    size = entry.size or source.size
    if size == source.size:
        return source
    fixed = [task.origin.name for task in source.tasks if task.origin is not None]
    if source.source == "archive" or fixed:
        raise UserError(
            f"{entry.where}: size is {size}, but the images of table {(fixed or [source.name])[0]} are "
            f"prepared at {source.size}: leave out size"
        )
    return replace(source, name=f"{source.name}-{size}", size=size)


def _normalisation(source: Table, entry: _Entry) -> dict[str, tuple[float, ...]]:
    """Mean and std of all tasks: the entry's, else the table's if a user's own, else ImageNet's.

    One pair for all tasks, since they share a network. ImageNet's is averaged for grey images.
    """
    given = statistics_of(entry.statistics, source.channels, entry.where)
    if given[0] is None and entry.table.endswith(".toml"):
        common = {(task.mean, task.std) for task in source.tasks}
        given = common.pop() if len(common) == 1 else given
    if given[0] is not None:
        return dict(zip(("mean", "std"), given, strict=True))
    if source.channels == 3:
        return dict(_IMAGENET)
    return {key: (sum(values) / len(values),) for key, values in _IMAGENET.items()}


def load_task(sequence: Sequence, number: int, *, data_root: Path, device: torch.device | str) -> TaskData:
    """Load the images of task `number`, counted from 1.

    If the table has more images than the sequence takes, a stratified draw reduces them. The images are
    shuffled once, so every epoch sees the same order.

    Raises:
        UserError: if the table has too few images.
    """
    task = sequence.table.tasks[number - 1]
    generator = torch.Generator().manual_seed(derive_seed(sequence.seed, sequence.name, number))
    digest = hashlib.sha256(repr(task.classes).encode())

    def drawn(split: str, *parts: str) -> list[Samples]:
        pool, fingerprints = _pool(sequence, number, split, data_root=data_root)
        sizes = pool.labels.bincount(minlength=task.num_classes)
        quotas = _quotas(sequence, task, split, parts, sizes=sizes, data_root=data_root)
        found = []
        rest = torch.arange(len(pool))
        for quota in quotas:
            chosen = drawn_by_class(pool.labels[rest], quota, generator=generator)
            rows = rest[chosen]
            kept = torch.ones(len(rest), dtype=torch.bool)
            kept[chosen] = False
            rest = rest[kept]
            found.append(Samples(pool.inputs[rows].to(device), pool.labels[rows].to(device)))
            digest.update(repr((fingerprints, rows.tolist())).encode())
        return found

    validation, train = drawn("train", *_PARTS["train"])
    (test,) = drawn("test", *_PARTS["test"])
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


def require_enough_images(sequence: Sequence, *, data_root: Path) -> None:
    """Check that every task of a user's own sequence has enough images, before the first one is learned.

    Raises:
        UserError: naming the first class with too few.
    """
    if sequence.definition is None:
        return
    for task, members in zip(sequence.table.tasks, sequence.members, strict=True):
        for split, parts in _PARTS.items():
            sizes = torch.zeros(task.num_classes, dtype=torch.int64)
            for label, (source, class_name) in enumerate(members):
                labels = load_split(sequence.source, source, split, data_root=data_root)["labels"]
                sizes[label] = (labels == source.classes.index(class_name)).sum()
            _quotas(sequence, task, split, parts, sizes=sizes, data_root=data_root)


def _quotas(
    sequence: Sequence, task: Task, split: str, parts: tuple[str, ...], *, sizes: Tensor, data_root: Path
) -> list[Tensor]:
    """How many images of each class each part takes from a split whose classes have `sizes` (C,) images.

    Raises:
        UserError: if they are too few, naming a class and its number of images.
    """
    counts, quotas = sequence.counts, []
    rest = sizes
    for part in parts:
        quota = counts.quota(part, rest)
        short = quota > rest
        if part == "train" and counts.train is None:
            short |= (quota == 0) & (sizes > 0)
        if short.any():
            raise _too_few(sequence, task, split, parts, sizes=sizes, short=short, data_root=data_root)
        quotas.append(quota)
        rest = rest - quota
    return quotas


def _too_few(
    sequence: Sequence,
    task: Task,
    split: str,
    parts: tuple[str, ...],
    *,
    sizes: Tensor,
    short: Tensor,
    data_root: Path,
) -> UserError:
    kind = {"train": "training", "test": "test"}[split]
    if sequence.definition is None:
        return UserError(
            f"{sequence.name}: task {task.name} has {int(sizes.sum())} {kind} images in "
            f"{cache.folder_of(data_root, sequence.source.name)}, too few for "
            f"{sequence.counts.as_text(*parts)}: complete the raw files and run "
            f"`python -m data.prepare {sequence.source.name}` again"
        )
    fewest = int(sizes.masked_fill(~short, int(sizes.max()) + 1).argmin())
    return UserError(
        f"{sequence.name}: class {task.classes[fewest]} of task {task.name} has {int(sizes[fewest])} {kind} "
        f"images (the task {int(sizes.sum())}), too few for {sequence.counts.as_text(*parts)}: "
        f'add images, or lower the numbers or write "{_ALL}" in the sequence'
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


def in_proportion(sizes: Tensor, total: int) -> Tensor:
    """Divide `total` among classes in proportion to their `sizes` (C,), int64 (C,).

    Fractional shares are rounded by largest remainder, so that the total holds.
    """
    exact = sizes.double() * total / sizes.sum().clamp(min=1)
    quota = exact.floor().long()
    largest = (exact - quota).sort(descending=True, stable=True).indices
    quota[largest[: total - int(quota.sum())]] += 1
    return quota


def drawn_by_class(labels: Tensor, quota: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw `quota[c]` samples of each class c, in random order.

    Args:
        labels: int64 (N,).
        quota: int64 (C,), at most the number of samples of each class.

    Returns:
        Indices of the drawn samples, int64 (quota.sum(),).
    """
    rows = []
    for label, count in enumerate(quota.tolist()):
        of_class = (labels == label).nonzero().squeeze(1)
        shuffled = torch.randperm(len(of_class), generator=generator)
        rows.append(of_class[shuffled[:count]])
    drawn = torch.cat(rows)
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


def _require(source: Table, entry: _Entry, *, found: int, wanted: int, what: str, data_root: Path) -> None:
    """Refuse a table with too few classes or tasks."""
    if found >= wanted:
        return
    if source.source != "archive" and entry.definition is not None:
        raise UserError(
            f"{entry.where} needs {wanted} {what}, but table {source.name} has {found}: "
            f'lower the numbers, or write tasks = "{_ALL}"'
        )
    folder = cache.folder_of(data_root, source.name)
    state = f"holds {found} of {wanted} {what}" if folder.is_dir() else "not found"
    raise UserError(
        f"{folder} {state}: run `python -m data.prepare {source.name}`, which reads the raw files in "
        f"{Path(data_root) / source.root} or says where to get them"
    )


# Entries of data/sequences.toml and of a user's own files


def _find(which: str) -> _Entry:
    """The checked entry of the sequence that `--seq` names."""
    own = _OWN_FILE.fullmatch(which)
    if own is not None:
        return _own(Path(own["file"]), own["name"])
    entries = _entries()
    if which not in entries:
        raise UserError(
            f"unknown sequence {which!r}: choose from {', '.join(entries)}, or give the path of a .toml file"
        )
    return _parse(which, entries[which], where=f"sequence {which}")


def _own(path: Path, wanted: str | None) -> _Entry:
    """The sequence in a user's file; `wanted` picks one of several."""
    if not path.is_file():
        raise UserError(f"{path} not found: give the file of a task table or of sequences")
    entries = read_toml(path)
    if not entries:
        raise UserError(f"{path} is empty: describe a task table or a sequence in it")
    kinds = {isinstance(entry, Mapping) and "table" in entry for entry in entries.values()}
    if len(kinds) > 1:
        raise UserError(f"{path} holds sequences and task tables: move the tables to files of their own")
    if wanted is not None and wanted not in entries:
        raise UserError(f"{path} has no sequence {shown(wanted)}: choose from {', '.join(entries)}")
    if wanted is None and len(entries) > 1:
        example = next(iter(entries))
        raise UserError(
            f"{path} holds {len(entries)} sequences ({', '.join(entries)}): pick one, as {path}:{example}"
        )
    name = next(iter(entries)) if wanted is None else wanted
    where = f"{path} [{name}]"
    _check_name(name, where)
    entry, tables = entries[name], {}
    if kinds == {False}:
        tables = entries
        entry = {"table": str(path), "by": "tasks"}
    elif isinstance(entry["table"], str) and entry["table"].endswith(".toml"):
        # A relative path starts at the file that names it.
        beside = path.parent / entry["table"]
        tables = read_toml(beside) if beside.is_file() else {}
        entry = dict(entry) | {"table": str(beside)}
    definition = (
        {"sequence": dict(entry) | {"table": ""}, "tables": tables} if tables else {"sequence": entry}
    )
    return replace(
        _parse(name, entry, where=where),
        definition=hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode()).hexdigest(),
    )


def _check_name(name: str, where: str) -> None:
    """Refuse a sequence's name that cannot be part of a run's, or that is taken."""
    if name in _entries():
        raise UserError(f"{where}: {name} is the name of a sequence in data/sequences.toml: choose another")
    if "/" in name:
        raise UserError(f"{where}: {name!r} cannot name a run: leave out '/'")
    try:
        check_run(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _parse(name: str, entry: Mapping[str, Any], *, where: str) -> _Entry:
    check_keys(entry, _KEYS, where)
    table = entry.get("table")
    if not isinstance(table, str) or not table:
        raise UserError(f'{where}: table is {shown(table)}: name the task table, e.g. table = "cifar100"')
    by = entry.get("by", "tasks")
    if by not in ("classes", "tasks"):
        raise UserError(f"{where}: by is {shown(by)}: choose from classes, tasks")
    per = entry.get("per", "")
    if "per" in entry and per not in _UNITS:
        raise UserError(f"{where}: per is {shown(per)}: choose from {', '.join(_UNITS)}")
    classes = _count(entry, "classes", where, _CLASSES)
    if by == "classes" and classes is None:
        raise UserError(f'{where}: by = "classes" needs the classes of a task: add e.g. classes = 2')
    if entry.get("val") == _ALL:
        raise UserError(
            f"{where}: val is {_ALL!r}: write a number, or leave it out for a tenth of each class"
        )
    counts = {part: _count(entry, part, where, _IMAGES) for part in ("train", "val", "test")}
    return _Entry(
        name=name,
        where=where,
        table=table,
        by=by,
        tasks=_count(entry, "tasks", where, _TASKS),
        classes=classes,
        counts=Counts(**counts, per=per),
        dropout=_dropout(entry, where),
        width=_width(entry, where),
        size=_number(entry["size"], "size", where, _SIZES) if "size" in entry else None,
        mean=entry.get("mean"),
        std=entry.get("std"),
        definition=None,
    )


def _count(entry: Mapping[str, Any], key: str, where: str, bounds: tuple[int, int]) -> int | None:
    """A number in `bounds`; None for "all" and for a key that is left out."""
    value = entry.get(key, _ALL)
    return None if value == _ALL else _number(value, key, where, bounds, other=f" or {_ALL!r}")


def _number(value: object, key: str, where: str, bounds: tuple[int, int], *, other: str = "") -> int:
    if type(value) is not int or not bounds[0] <= value <= bounds[1]:
        raise UserError(
            f"{where}: {key} is {shown(value)}: write a whole number from {bounds[0]} to {bounds[1]}{other}"
        )
    return value


def _dropout(entry: Mapping[str, Any], where: str) -> tuple[float, float]:
    value = entry.get("dropout", list(_DROPOUT))
    numbers = isinstance(value, list) and all(type(rate) in (int, float) for rate in value)
    if not numbers or len(value) != 2 or not all(0 <= rate <= _MOST_DROPOUT for rate in value):
        raise UserError(
            f"{where}: dropout is {shown(value)}: write two numbers from 0 to {_MOST_DROPOUT}: of the first "
            "two convolutions, and of the rest"
        )
    return tuple(value)


def _width(entry: Mapping[str, Any], where: str) -> float:
    value = entry.get("width", 1.0)
    if type(value) not in (int, float) or not _WIDTHS[0] <= value <= _WIDTHS[1]:
        raise UserError(f"{where}: width is {shown(value)}: write a number from {_WIDTHS[0]} to {_WIDTHS[1]}")
    return value


@memoised
def _entries() -> dict[str, dict[str, Any]]:
    return read_toml(_SEQUENCES_FILE)
