"""A table's tasks and pairs, as selected by flags, and the results that earlier stages wrote for them."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.tables import Table, Task
from pipeline.flags import FROM_CSV
from training.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.files import read_csv, read_json
from utils.paths import Paths, checkpoints_in, widths_file

# Flags that name a folder or file of a single task.
_OF_ONE_TASK = ("load_folder", "save_folder", "pruning_ratio_to_acc_record_file", "report_file")


def paths_of(args: argparse.Namespace) -> Paths:
    """Where the files of a run are."""
    run = args.run or Paths.run_name(arch=args.arch, seed=args.seed, protocol=args.protocol)
    return Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)


def pairs_file(args: argparse.Namespace, config: str) -> Path:
    """CSV of the chosen backbones of table `config`, as `--csv_path` and `--candidates` name it."""
    return args.csv_path or paths_of(args).result_csv(config, among=args.candidates.among)


def selected_tasks(
    args: argparse.Namespace, table: Table, *, spec: str | None = None, modality: str | None = None
) -> Sequence[Task]:
    """The tasks that `--dataset` names.

    Args:
        spec: overrides `--dataset`.
        modality: keeps only the tasks of this modality.

    Raises:
        UserError: if no task is left, or if a flag names a single task's folder or file but several are left.
    """
    tasks = [task for task in table.select(spec or args.dataset) if modality in (None, task.modality)]
    if not tasks:
        raise UserError(f"--modality {modality} leaves none of the tasks {args.dataset}: leave it out")
    given = [f"--{name}" for name in _OF_ONE_TASK if getattr(args, name, None)]
    if given and len(tasks) > 1:
        raise UserError(f"{', '.join(given)} belongs to one task: name one with --dataset")
    return tasks


def check_num_classes(asked: int, *, task: Task) -> None:
    """Refuse a `--num_classes` that contradicts the task table."""
    if asked not in (-1, task.num_classes):
        raise UserError(f"--num_classes {asked}: task {task.name} has {task.num_classes} classes")


def check_text_encoder(payload: Mapping, *, task: Task, identity: str | None, where: Path) -> None:
    """Refuse a network whose newest task is `task`, learned with another text encoder.

    Args:
        identity: identity of the encoder in use; None for tasks without texts.

    Raises:
        UserError: naming `where` and both encoders.
    """
    entry = payload.get("task_table", {})
    if identity is None or entry.get("name") != task.name:
        return
    learned_with = entry.get("text_encoder", identity)
    if learned_with != identity:
        raise UserError(
            f"{where}: task {task.name} was learned with the text encoder {learned_with}, not {identity}: "
            "give the same --text_encoder"
        )


def read_baseline(path: Path, *, task: str) -> float:
    """The scratch accuracy of `task` in a baseline file.

    Raises:
        UserError: if the file or the entry is missing or not a number.
    """
    remedy = "run run_pickaback/baseline.sh first, or give the file with --jsonfile"
    entries = read_json(path, remedy=remedy)
    if task not in entries:
        raise UserError(f"{path} has no entry for task {task}: {remedy}")
    try:
        return float(entries[task])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the entry of task {task} is not a number ({entries[task]!r}): {remedy}"
        ) from error


def test_accuracy(folder: Path, *, arch: str, layers: str) -> float | None:
    """Test accuracy of the finished network in `folder`; None if there is none."""
    found = checkpoints_in(folder)
    if not found:
        return None
    return load_checkpoint(found[max(found)], architecture=arch, layers=layers)["metrics"]["test_accuracy"]


def read_widths(folder: Path) -> dict[float, dict]:
    """Width multiplier → metrics of a target on its backbone, narrowest first.

    Raises:
        UserError: if the target has not been trained.
    """
    entries = read_json(widths_file(folder), remedy="run run_pickaback/w_backbone.sh first")
    return {float(width): entries[width] for width in sorted(entries, key=float)}


def chosen_backbone(path: Path, *, table: Table, target: Task) -> Task:
    """The backbone that stage 3-1 chose for `target`.

    Raises:
        UserError: if the CSV has no row for it, or names an unknown task or the target itself.
    """
    remedy = "run run_pickaback/find_backbone.sh first, or give --backbone"
    for row in read_csv(path, columns=("target_id", "task_id"), remedy=remedy):
        if row["target_id"] == str(target.id):
            try:
                backbone = table.task(row["task_id"])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if backbone == target:
                raise UserError(f"{path} pairs task {target.name} with itself: {remedy}")
            return backbone
    raise UserError(f"{path} has no row for target {target.id} ({target.name}): {remedy}")


def backbone_of(target: Task, *, asked: str, table: Table, pairs: Path) -> Task:
    """The backbone of `target`: the task `asked`, or with from_csv the one that stage 3-1 chose.

    Args:
        pairs: CSV of the chosen backbones.

    Raises:
        UserError: if no backbone is found, or if it is the target itself.
    """
    if asked == FROM_CSV:
        return chosen_backbone(pairs, table=table, target=target)
    return named_backbone(asked, table=table, target=target)


def named_backbone(asked: str, *, table: Table, target: Task) -> Task:
    """The task that --backbone names.

    Raises:
        UserError: if there is no such task, or if it is the target itself.
    """
    backbone = table.task(asked)
    if backbone == target:
        raise UserError(f"--backbone {asked} is the target itself: choose another task")
    return backbone


def final_width(paths: Paths, *, table: Table, target: Task, pairs: Path) -> float:
    """The width multiplier that a target reached in stage 3-2, on its backbone in the CSV `pairs`."""
    backbone = chosen_backbone(pairs, table=table, target=target)
    return max(read_widths(paths.target(table.name, backbone.name, target.name)))
