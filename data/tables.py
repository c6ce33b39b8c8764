"""Task tables: tasks, their order and their classes, read from the TOML files of this folder."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import cache
from utils.errors import UserError

_TABLES_FILES = tuple(Path(__file__).with_name(name) for name in ("tables.toml", "captioned.toml"))

MODALITIES = ("image", "text")
# "archive": a raw layout in data/sources that only `python -m data.prepare` reads. Tasks and classes that
# the table does not list are those in the cache.
_SOURCES = ("folders", "digits", "docstrings", "archive")
# Sources that come with an installation and so have no folder of raw files, and their modality.
BUNDLED = {"digits": "image", "docstrings": "text"}
# Words with a meaning to --dataset, --candidates, --backbone or --select. A task of such a name could not be
# selected there.
RESERVED = (
    *("all", "same", "other", "random", "farthest", "nearest", "from_csv", "from_target"),
    *("rsa", "cka", "leep", "nce", "logme", "hscore", "parc", "knn", "logistic", "accuracy", "room", "race"),
)
# What else to do if raw files are missing where the table expects them.
ELSEWHERE = "set DATA_ROOT (--data_root) to the folder they are under"
# Inclusive bounds of the numbers in a table.
_SIZES = (1, 1024)
_PADDINGS = (0, 64)
_MEANS = (-1000, 1000)
_STDS = (1e-6, 1000)
_COUNTS = (1, 1_000_000)
# Names become folders, whose names are limited to 255 bytes.
_MAX_NAME_BYTES = 200
_TABLE_KEYS = {
    *("modality", "size", "channels", "augment", "source", "root", "text_root", "download", "mean", "std"),
    *("train_per_class", "tasks"),
}
_TASK_KEYS = {"name", "classes", "mean", "std", "modality", "folder", "twin", "train_per_class"}
_BORROWED_KEYS = {"name", "table", "train_per_class"}
_ROOT_KEYS = {"image": "root", "text": "text_root"}
_AUGMENT_KEYS = {"crop_padding", "flip"}

_ID = re.compile(r"\d+")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with `crop_padding` black pixels (0: no crop), and random horizontal flip."""

    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Task:
    """One classification task.

    Args:
        mean, std: per channel, in [0, 1]; None for texts, and if computed from the training images.
        modality: "image" or "text".
        raw_folder: its folder in the raw tree, if it differs from the name.
        origin: the table that owns its raw files and cache, if not the one that lists it.
        train_per_class: training samples drawn from each class; None: all.
    """

    id: int
    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    modality: str
    raw_folder: str = ""
    origin: "Table | None" = None
    train_per_class: int | None = None

    @property
    def folder(self) -> str:
        """The name of its raw files' folder in `<root>/<split>`."""
        return self.raw_folder or self.name

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Table:
    """The tasks of one collection, and the shape of their images (channels × size × size).

    Args:
        root, text_root: folders of the raw images and raw texts, relative to the data folder.
    """

    name: str
    size: int
    channels: int
    augment: Augmentation
    source: str
    root: str
    text_root: str
    download: bool
    tasks: tuple[Task, ...]

    def task(self, which: str | int) -> Task:
        """The task with this name or id.

        Raises:
            UserError: if there is no such task; the message lists the known ones.
        """
        which = str(which)
        if _ID.fullmatch(which):
            found = [task for task in self.tasks if task.id == _id(which)]
        else:
            found = [task for task in self.tasks if task.name == which]
        if not found:
            known = ", ".join(f"{task.id} {task.name}" for task in self.tasks)
            raise UserError(f"table {self.name} has no task {_cut(which)!r}: choose from {known}")
        return found[0]

    def public_pool(self, name: str) -> "Task | Path":
        """The pool of public samples that `name` means: a task, or else a folder.

        Raises:
            UserError: if it is neither.
        """
        try:
            return self.task(name)
        except UserError as error:
            if Path(name).is_dir():
                return Path(name)
            raise UserError(f"--public_probes {_cut(name)} is no folder, and {error}") from error

    def select(self, spec: str) -> tuple[Task, ...]:
        """The tasks that `spec` names: comma-separated names, ids and ranges, or `all`.

        Tasks are in the order given, without repetitions: `"fish,14"`, `"1-20"`.

        Raises:
            UserError: for a task that the table lacks, or an empty or reversed range.
        """
        chosen: dict[int, Task] = {}
        for part in (part.strip() for part in str(spec).split(",")):
            for task in self._part(part, spec):
                chosen.setdefault(task.id, task)
        return tuple(chosen.values())

    def candidates(self, spec: str, *, target: Task, among: str = "all") -> list[Task]:
        """The tasks that `spec` names, as candidates for the backbone of `target`.

        Args:
            among: "same" keeps the tasks of the target's modality, "other" those of another, "all" both.
        """
        fits = {"all": (True, False), "same": (True,), "other": (False,)}[among]
        return [
            task
            for task in self.select(spec)
            if task != target and (task.modality == target.modality) in fits
        ]

    def _part(self, part: str, spec: str) -> Sequence[Task]:
        if not part:
            raise UserError(
                f"{spec!r} names no task: give names, ids or ranges such as fish,14 or 1-20, or all"
            )
        if part == "all":
            return self.tasks
        bounds = _RANGE.fullmatch(part)
        if bounds is None:
            return [self.task(part)]
        self.task(bounds.group(1)), self.task(bounds.group(2))
        first, last = _id(bounds.group(1)), _id(bounds.group(2))
        if first > last:
            raise UserError(f"the range {part} is reversed: write {last}-{first}")
        return [task for task in self.tasks if first <= task.id <= last]


def _id(text: str) -> int:
    """A task's id; Python refuses to convert thousands of digits."""
    return int(text) if len(text) < 100 else -1


def _cut(text: str) -> str:
    """The beginning of `text`, short enough for a message."""
    return text if len(text) <= 80 else f"{text[:80]}…"


def shown(value: object) -> str:
    """A setting's value, for a message."""
    try:
        return _cut(repr(value))
    except ValueError:  # Python refuses to print thousands of digits
        return "a number of thousands of digits"


def known_tables() -> tuple[str, ...]:
    """Names of the tables in data/tables.toml and data/captioned.toml."""
    return tuple(_known())


def load_table(config: str, *, data_root: Path, source: Path | None = None) -> Table:
    """Read a task table.

    Args:
        config: a known name (see `known_tables`), or the path of a .toml file with one table.
        data_root: folder of the raw files, read only for tasks and classes that the entry omits.
        source: folder to read those from instead: the tree of raw files, or the folder that holds it.

    Raises:
        UserError: for an unknown table (the message lists the known ones) or an invalid entry.
    """
    config = str(config)
    if not config.endswith(".toml"):
        entries = _known()
        if config not in entries:
            raise UserError(
                f"unknown task table {config!r}: choose from {', '.join(entries)}, "
                "or give the path of a .toml file"
            )
        where = f"table {config}"
        return _parse(config, entries[config], where=where, data_root=Path(data_root), given=source)

    path = Path(config)
    if not path.is_file():
        raise UserError(f"{path} not found: give a table's file, or one of {', '.join(known_tables())}")
    entries = read_toml(path)
    if len(entries) != 1:
        raise UserError(f"{path} holds {len(entries)} tables ({', '.join(entries)}): keep one")
    (name, entry), *_ = entries.items()
    if name in known_tables():
        raise UserError(f"{path}: {name} is the name of a table in data/: choose another name")
    where = f"{path} [{name}]"
    return _parse(name, entry, where=where, data_root=Path(data_root), given=source)


def _known() -> dict[str, Any]:
    return {name: entry for path in _TABLES_FILES for name, entry in read_toml(path).items()}


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{path} nests too deep: correct it") from error
    except ValueError as error:  # invalid TOML or UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not valid TOML ({error}): correct it") from error


def _parse(name: str, entry: object, *, where: str, data_root: Path, given: Path | None = None) -> Table:
    """Read a table's entry.

    Args:
        given: the folder in `--source`.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is not a table: write `[{name}]`, then its settings")
    check_keys(entry, _TABLE_KEYS, where)
    _check_name(name, "table", where)

    source = _choice(entry, "source", _SOURCES, where)
    roots = {modality: entry.get(key, "") for modality, key in _ROOT_KEYS.items()}
    rooted = [modality for modality, root in roots.items() if isinstance(root, str) and root]
    if source not in BUNDLED and not rooted:
        raise UserError(f'{where} has no root: add the folder of its images, e.g. root = "{name}"')
    for modality, root in roots.items():
        if not isinstance(root, str):
            raise UserError(f"{where}: {_ROOT_KEYS[modality]} is {shown(root)}: write the name of a folder")
    channels = _integer(entry, "channels", 3, where)
    if channels not in (1, 3):
        raise UserError(f"{where}: channels is {shown(channels)}: write 1 (grey) or 3 (RGB)")
    size = _integer(entry, "size", 32, where, bounds=_SIZES)
    download = _boolean(entry, "download", where)
    usual = BUNDLED.get(source, "text" if rooted == ["text"] else "image")
    modality = _choice(entry, "modality", MODALITIES, where, default=usual)
    augment = _augmentation(entry.get("augment", {}), where)
    statistics = statistics_of(entry, channels, where)
    per_class = _per_class(entry, where, default=None)

    folders = {
        modality: _Folders(
            name=name,
            modality=modality,
            root=data_root / root if given is None else tree_in(given, Path(root).name),
            caches=cache.folder_of(data_root, name),
            given=given is not None,
        )
        for modality, root in roots.items()
    }
    task_entries = entry.get("tasks")
    if task_entries is None and source == "archive":
        task_entries = [{"name": task} for task in folders["image"].prepared()]
    elif task_entries is None:
        task_entries = [
            {"name": task, "modality": modality} for modality in rooted for task in folders[modality].tasks()
        ]
    if not isinstance(task_entries, list) or not all(isinstance(task, Mapping) for task in task_entries):
        raise UserError(f"{where}: tasks is not a list of tables: write one [[{name}.tasks]] for each task")
    if not task_entries and source != "archive":
        raise UserError(f"{where} has no tasks: add one, or leave out tasks to use the folders")

    table = Table(name, size, channels, augment, source, roots["image"], roots["text"], download, ())
    tasks: list[Task] = []
    for number, task_entry in enumerate(task_entries, start=1):
        task_where = f"{where} task {number}"
        check_keys(task_entry, _BORROWED_KEYS if "table" in task_entry else _TASK_KEYS, task_where)
        task_name = task_entry.get("name")
        _check_name(task_name, "task", task_where)
        if any(task_name == task.name for task in tasks):
            raise UserError(
                f"{task_where}: {task_name} occurs twice: rename one (`folder` gives its folder in the tree)"
            )
        if "table" in task_entry:
            task = _borrowed(task_entry, number, table, where=task_where, data_root=data_root)
        else:
            usual = {"modality": modality, "statistics": statistics}
            task_entry = _completed(task_entry, tasks, where=task_where)
            task = _own(task_entry, number, table, folders, where=where, usual=usual)
        drawn = _per_class(task_entry, f"{where} task {task_name}", default=per_class)
        tasks.append(replace(task, train_per_class=drawn))
    return replace(table, tasks=tuple(tasks))


def _own(
    entry: Mapping,
    number: int,
    table: Table,
    folders: Mapping[str, "_Folders"],
    *,
    where: str,
    usual: Mapping[str, Any],
) -> Task:
    """A task whose raw files belong to the table that lists it."""
    name = entry["name"]
    raw_folder = entry.get("folder", "")
    if raw_folder:
        _check_name(raw_folder, "folder", f"{where} task {name}")
    where = f"{where} task {name}"
    modality = _choice(entry, "modality", MODALITIES, where, default=usual["modality"])
    if modality != BUNDLED.get(table.source, modality):
        raise UserError(
            f"{where} has {modality}s, but the source {table.source} has {BUNDLED[table.source]}s: "
            f'write modality = "{BUNDLED[table.source]}"'
        )
    if modality == "text" and table.source == "folders" and not table.text_root:
        raise UserError(
            f'{where} has texts, but the table has no text_root: add it, e.g. text_root = "{table.name}"'
        )
    if modality == "image" and table.source == "folders" and not table.root:
        raise UserError(f'{where} has images, but the table has no root: add it, e.g. root = "{table.name}"')
    classes = entry.get("classes")
    if classes is None:
        held = folders[modality]
        classes = (
            held.cached_classes(name) if table.source == "archive" else held.classes(name, raw_folder or name)
        )
    _check_classes(classes, where)
    mean, std = statistics_of(entry, table.channels, where)
    if modality == "text" and mean is not None:
        raise UserError(f"{where} has texts: leave out mean and std, which apply to images")
    if modality == "image" and mean is None:
        mean, std = usual["statistics"]
    return Task(number, name, tuple(sorted(classes)), mean, std, modality, raw_folder)


def _completed(entry: Mapping, earlier: Sequence[Task], *, where: str) -> Mapping:
    """An entry completed by the classes and the raw folder of its twin, an earlier task."""
    if "twin" not in entry:
        return entry
    twins = [task for task in earlier if task.name == entry["twin"]]
    if not twins:
        raise UserError(f"{where}: twin is {shown(entry['twin'])}: name an earlier task")
    (twin,) = twins
    return {"classes": list(twin.classes), "folder": twin.folder} | entry


def _borrowed(entry: Mapping, number: int, table: Table, *, where: str, data_root: Path) -> Task:
    """A task of another known table, with that table's classes, normalisation, raw files and cache."""
    if entry["table"] not in known_tables() or entry["table"] == table.name:
        known = ", ".join(known_tables())
        raise UserError(f"{where}: table is {shown(entry['table'])}: choose another of {known}")
    origin = load_table(entry["table"], data_root=data_root)
    if (origin.channels, origin.size) != (table.channels, table.size):
        raise UserError(
            f"{where}: images of table {origin.name} are {origin.channels}×{origin.size}×{origin.size}, but "
            f"this table's are {table.channels}×{table.size}×{table.size}: use the same channels and size"
        )
    return replace(origin.task(entry["name"]), id=number, origin=origin)


@dataclass(frozen=True)
class _Folders:
    """Tasks and classes as the folders list them, or the cache if the raw tree is gone.

    Attributes:
        given: whether `--source` names the tree.
    """

    name: str
    modality: str
    root: Path
    caches: Path
    given: bool = False

    def tasks(self) -> list[str]:
        if not (self.given or self.root.is_dir()) and self.caches.is_dir():
            return self.prepared()
        return self._below(self.root / "train", "<task>/<class>")

    def prepared(self) -> list[str]:
        """The tasks that have a cache."""
        if not self.caches.is_dir():
            return []
        return [folder for folder in subfolders(self.caches) if self._cached(folder)]

    def cached_classes(self, task: str) -> list[str]:
        """The classes of a task that has a cache."""
        remedy = f"run `python -m data.prepare {self.name}`"
        found = self._cached(task)
        if not found:
            raise UserError(f"{self.caches / task} holds no cache: {remedy}")
        return cache.classes_in(found[0], remedy=remedy, kind=self.modality)

    def classes(self, task: str, folder: str) -> list[str]:
        if not (self.given or self.root.is_dir()) and self._cached(task):
            return self.cached_classes(task)
        found = self._below(self.root / "train" / folder, "<class>")
        held = self.root / "test" / folder
        extra = set(subfolders(held)) - set(found) if held.is_dir() else set()
        if extra:
            missing = self.root / "train" / folder / min(extra)
            raise UserError(
                f"{missing} not found, but {held / min(extra)} is there: add it or remove the other"
            )
        return found

    def _cached(self, task: str) -> list[Path]:
        """The caches of a task's training samples; texts have one per encoder."""
        return sorted((self.caches / task).glob("train.pt" if self.modality == "image" else "train-*.pt"))

    def _below(self, folder: Path, rest: str) -> list[str]:
        if self.given and self.root.is_file():
            raise UserError(
                f"{self.root}: the table takes its tasks or classes from folders, not from a file: extract "
                "it and give its folder as --source, or list them in the table"
            )
        remedy = f"put the {self.modality}s there as {folder / rest}/*, or {ELSEWHERE}"
        if self.given:
            remedy = "give the folder that holds train/<task>/<class> and test/<task>/<class> as --source"
        if not folder.is_dir():
            raise UserError(f"{folder} not found: {remedy}")
        found = subfolders(folder)
        if not found:
            raise UserError(f"{folder} holds no folders: {remedy}")
        return found


def tree_in(source: Path, name: str) -> Path:
    """The tree of raw files that `--source` names: the folder `name` in it, or itself."""
    return source / name if name and (source / name).is_dir() else source


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, except hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def check_keys(entry: Mapping, known: set[str], where: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise UserError(
            f"{where} has the unknown key {', '.join(unknown)}: choose from {', '.join(sorted(known))}"
        )


def _check_name(name: object, kind: str, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise UserError(f'{where} has no name: add name = "…"')
    if name.startswith(".") or name.strip() != name or re.search(r"[/\\,\x00-\x1f]", name):
        raise UserError(
            f"{where}: {name!r} cannot be the name of a {kind}: "
            "it becomes a folder, so leave out '/', '\\', ',', control characters and a leading '.' or space"
        )
    if not _is_utf8(name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise UserError(
            f"{where}: {_cut(name)!r} cannot be the name of a {kind}: "
            f"it becomes a folder, so use at most {_MAX_NAME_BYTES} bytes of UTF-8"
        )
    if kind in ("task", "table") and name.startswith("-"):
        raise UserError(
            f"{where}: the {kind} name {name!r} reads as a flag on the command line: rename it, e.g. "
            f"{kind}_{name.lstrip('-')}"
        )
    # `Table.select` would take such a name for an id or a range.
    if kind == "task" and (_ID.fullmatch(name) or _RANGE.fullmatch(name)):
        raise UserError(
            f"{where}: the task name {name!r} reads as an id or a range: rename it, e.g. task_{name}"
        )
    if kind == "task" and name in RESERVED:
        raise UserError(
            f"{where}: the task name {name!r} has a meaning on the command line: rename it, e.g. task_{name}"
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(classes: object, where: str) -> None:
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: classes is not a list of names: write e.g. classes = ['cat', 'dog']")
    for name in classes:
        _check_name(name, "class", where)
    if len(set(classes)) != len(classes):
        raise UserError(f"{where} names a class twice: remove one")


def statistics_of(entry: Mapping, channels: int, where: str) -> tuple[tuple | None, tuple | None]:
    given = [key for key in ("mean", "std") if key in entry]
    if not given:
        return None, None
    if len(given) == 1:
        raise UserError(f"{where} has only {given[0]}: give mean and std, or neither to have them computed")
    for key in given:
        values = entry[key]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != channels:
            raise UserError(
                f"{where}: {key} is {shown(values)}: write one number for each of {channels} channels"
            )
    if not all(value > 0 for value in entry["std"]):
        raise UserError(f"{where}: std is {shown(entry['std'])}: write numbers above 0")
    for key, (least, most) in (("mean", _MEANS), ("std", _STDS)):
        if not all(least <= value <= most for value in entry[key]):
            raise UserError(
                f"{where}: {key} is {shown(entry[key])}: write numbers from {least} to {most}, "
                "in units of the full range of a pixel"
            )
    return tuple(map(float, entry["mean"])), tuple(map(float, entry["std"]))


def _augmentation(entry: object, where: str) -> Augmentation:
    where = f"{where} augment"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {shown(entry)}: write e.g. {{ crop_padding = 4, flip = true }}")
    check_keys(entry, _AUGMENT_KEYS, where)
    padding = _integer(entry, "crop_padding", 0, where, bounds=_PADDINGS)
    return Augmentation(crop_padding=padding, flip=_boolean(entry, "flip", where))


def _choice(entry: Mapping, key: str, known: Sequence[str], where: str, *, default: str | None = None) -> str:
    value = entry.get(key, default or known[0])
    if value not in known:
        raise UserError(f"{where}: {key} is {shown(value)}: choose from {', '.join(known)}")
    return value


def _integer(
    entry: Mapping, key: str, default: int, where: str, *, bounds: tuple[int, int] | None = None
) -> int:
    value = entry.get(key, default)
    if type(value) is not int:
        raise UserError(f"{where}: {key} is {shown(value)}: write a whole number")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise UserError(f"{where}: {key} is {shown(value)}: write a number from {bounds[0]} to {bounds[1]}")
    return value


def _per_class(entry: Mapping, where: str, *, default: int | None) -> int | None:
    """The number of training samples per class, None for all; `default` if the entry does not say."""
    if "train_per_class" not in entry:
        return default
    if entry["train_per_class"] == "all":
        return None
    return _integer(entry, "train_per_class", 0, where, bounds=_COUNTS)


def _boolean(entry: Mapping, key: str, where: str) -> bool:
    value = entry.get(key, False)
    if type(value) is not bool:
        raise UserError(f"{where}: {key} is {shown(value)}: write true or false")
    return value
