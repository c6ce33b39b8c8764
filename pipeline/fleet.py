"""A table's tasks and pairs, as selected by flags, and the results that earlier stages wrote for them."""

import argparse
import logging
import math
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from data.tables import Table, Task
from methods.cpg import BASELINE_DIGITS
from pipeline.flags import FROM_CSV, SEED_PLACE
from training.checkpoints import load_checkpoint, read_checkpoint
from training.trackers import Trackers
from utils.errors import UserError
from utils.files import read_csv, read_json, read_once
from utils.paths import (
    Paths,
    arguments_file,
    checkpoints_in,
    control_file,
    kv_transfer_file,
    redo_command,
    widths_file,
)

# Largest width multiplier that a result file may name.
WIDEST = 10_000.0

# Entry of the arguments that made a choice: the choice itself.
CHOSEN = "chosen"

# Flags that name a folder or file of a single task.
_OF_ONE_TASK = ("load_folder", "save_folder", "pruning_ratio_to_acc_record_file", "report_file")


def paths_of(args: argparse.Namespace) -> Paths:
    """Where the files of a run are."""
    run = args.run or Paths.run_name(
        arch=args.arch, seed=args.seed, protocol=args.protocol, train_per_class=args.train_per_class
    )
    run = run.replace(SEED_PLACE, str(args.seed))
    return Paths(checkpoints=args.checkpoints_root, logs=args.logs_root, data=args.data_root, run=run)


def fleet_paths(args: argparse.Namespace) -> Paths:
    """Where the files of the run are that candidates and backbones come from: `--fleet`, or this run.

    Raises:
        UserError: if there is no such run, or if it holds nothing of the task table.
    """
    paths = paths_of(args)
    if args.fleet is None:
        return paths
    fleet = replace(paths, run=args.fleet.replace(SEED_PLACE, str(args.seed)))
    if not (fleet.checkpoints / fleet.run).is_dir():
        raise UserError(
            f"--fleet {fleet.run}: {fleet.checkpoints / fleet.run} not found: train that run first, or name "
            "another"
        )
    return fleet


def check_of_fleet(payload: Mapping, args: argparse.Namespace, *, where: Path) -> None:
    """Refuse a network of `--fleet` that was trained with another seed.

    Checkpoints that do not record a seed, such as published ones, are accepted.
    """
    seed = payload.get("arguments", {}).get("seed", args.seed)
    if args.fleet is not None and seed != args.seed:
        raise UserError(
            f"{where} was trained with seed {seed}, not {args.seed}: give a --fleet of the same seed"
        )


def one_run_per_seed(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The flags of each of `--seeds`, or of `--seed` alone.

    Raises:
        UserError: if `--run` names a single run, but there are several seeds.
    """
    seeds = args.seeds or [args.seed]
    if args.run and len(seeds) > 1 and SEED_PLACE not in args.run:
        raise UserError(
            f"{args.run} is one run, but there are {len(seeds)} seeds: put {{seed}} into its name"
        )
    return [argparse.Namespace(**vars(args) | {"seed": seed}) for seed in seeds]


def trackers_of(args: argparse.Namespace, paths: Paths) -> Trackers:
    """The trackers that `--log_to` names, for the run whose files are at `paths`."""
    return Trackers(
        kinds=args.log_to or (),
        folder=paths.tracking(),
        checkpoints=paths.checkpoints / paths.run,
        group=paths.run,
    )


def transferred_checkpoint(
    source: Path, *, target: Task, backbone: str, args: argparse.Namespace, config: str
) -> Path:
    """The copy of a backbone's checkpoint `source` that holds the target's K/V projection.

    It is beside `source`, except that the folders of another run (`--fleet`) are only read.
    """
    transferred = kv_transfer_file(source, target.name)
    if args.fleet is None or args.load_folder is not None:
        return transferred
    return paths_of(args).pruned(config, backbone) / transferred.name


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
        UserError: if the file or the entry is missing, or not a number from 0 to 1.
    """
    remedy = "run run_pickaback/baseline.sh first, or give the file with --jsonfile"
    entries = read_once(read_json, path, remedy=remedy)
    if task not in entries:
        raise UserError(f"{path} has no entry for task {task}: {remedy}")
    return accuracy(entries[task], entry=f"{path}: the entry of task {task}", remedy=remedy)


def scratch_baseline(args: argparse.Namespace, *, config: str, task: str) -> float:
    """The scratch accuracy of a task, from `--jsonfile` or from the layout.

    Raises:
        UserError: if it is missing, or not a number from 0 to 1.
    """
    paths = paths_of(args)
    path = args.jsonfile or paths.baseline_file(config)
    value = read_baseline(path, task=task)
    found = checkpoints_in(paths.baselines(config) / task)
    if found and not args.jsonfile:
        checkpoint = found[max(found)]
        with suppress(UserError):  # a damaged one is reported by the stages that need it
            payload = read_checkpoint(checkpoint)
            entry = f"{path}: the entry of task {task}"
            warn_if_edited(value, payload, entry=entry, where=checkpoint, digits=BASELINE_DIGITS)
    return value


def warn_if_edited(
    value: float, payload: Mapping, *, entry: str, where: Path, digits: int | None = None
) -> None:
    """Warn if a result file's accuracy is not the one that the network's checkpoint records.

    Args:
        payload: the content of the checkpoint `where`.
        entry: the file and the entry, which begin the message.
        digits: decimals in the result file; None for all.
    """
    recorded = payload.get("metrics", {}).get("validation_accuracy")
    if recorded is None or value == (recorded if digits is None else float(f"{recorded:.{digits}f}")):
        return
    logging.warning(
        "%s is %s, but %s records %s: continuing with the former; correct the file if nobody edited it",
        *(entry, value, where, recorded),
    )


def accuracy(value: object, *, entry: str, remedy: str) -> float:
    """An accuracy as a result file records it, as a number or (in baseline files) as text.

    Args:
        entry: the file and the entry, which begin the message.

    Raises:
        UserError: unless it is a number from 0 to 1; `remedy` ends the message.
    """
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not 0 <= number <= 1:
        raise UserError(f"{entry} is not a number from 0 to 1 ({reprlib.repr(value)}): {remedy}")
    return number


def test_accuracy(folder: Path, *, arch: str, layers: str) -> float | None:
    """Test accuracy of the finished network in `folder`; None if there is none.

    Raises:
        UserError: if the checkpoint is damaged, or does not record its accuracy.
    """
    found = checkpoints_in(folder)
    if not found:
        return None
    path = found[max(found)]
    payload = load_checkpoint(path, architecture=arch, layers=layers)
    if "metrics" not in payload:
        raise UserError(f"{path} does not record its accuracy: {redo_command(path)}")
    return payload["metrics"]["test_accuracy"]


def read_widths(folder: Path) -> dict[float, dict]:
    """Width multiplier → metrics of a target on its backbone, narrowest first.

    Raises:
        UserError: if the target has not been trained, or if an entry is not what stage 3-2 writes.
    """
    path, remedy = widths_file(folder), "run run_pickaback/w_backbone.sh first"
    entries = read_json(path, remedy=remedy)
    again = f"delete it, and {remedy.removesuffix(' first')}"
    widths: dict[float, dict] = {}
    for name, metrics in entries.items():
        try:
            width = float(name)
        except ValueError:
            width = math.nan
        if not 0 < width <= WIDEST or not isinstance(metrics, dict):
            raise UserError(f"{path}: the entry {reprlib.repr(name)} does not belong there: {again}")
        for key in ("train_accuracy", "validation_accuracy", "test_accuracy"):
            accuracy(metrics.get(key), entry=f"{path}: {key} at width {width}", remedy=again)
        widths[width] = metrics
    if not widths:
        raise UserError(f"{path} holds no width: {again}")
    return {width: widths[width] for width in sorted(widths)}


def read_control(folder: Path) -> dict:
    """The metrics of a control; {} if it was not run."""
    path = control_file(folder)
    if not path.exists():
        return {}
    metrics = read_json(path, remedy="delete it, and run its stage again").get("metrics")
    if not isinstance(metrics, dict):
        raise UserError(f"{path} holds no metrics: delete it, and run its stage again")
    return metrics


def read_arguments(path: Path, entry: str) -> dict:
    """The arguments that made an entry of a shared file, not to be modified; {} if it does not record them.

    Args:
        path: the file of arguments beside it.

    Raises:
        UserError: if they cannot be read.
    """
    if not path.exists():
        return {}
    remedy = "delete it, and redo the choice with --overwrite"
    found = read_once(read_json, path, remedy=remedy).get(entry, {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: the entry {entry} holds no JSON object: {remedy}")
    return found


def read_reference(path: Path, *, tasks: int, remedy: str) -> tuple[dict, list[float]]:
    """The arguments of a finished run on a sequence, and its accuracy on each task after learning it.

    Args:
        path: the run's metrics.json.
        tasks: number of tasks in the sequence.

    Raises:
        UserError: if they cannot be read.
    """
    found = read_json(path, remedy=remedy)
    arguments, matrix = found.get("arguments"), found.get("accuracy_matrix")
    if not isinstance(arguments, dict):
        raise UserError(f"{path} does not record its arguments: {remedy}")
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) != tasks or not all(isinstance(row, list) for row in rows):
        raise UserError(f"{path}: accuracy_matrix does not have {tasks} rows: {remedy}")
    own = []
    for number, row in enumerate(rows, 1):
        entry = f"{path}: row {number} of accuracy_matrix"
        if len(row) != number:
            raise UserError(f"{entry} has {len(row)} accuracies, not {number}: {remedy}")
        own.append(accuracy(row[-1], entry=entry, remedy=remedy))
    return arguments, own


def read_choices(path: Path, *, remedy: str) -> Mapping[str, str]:
    """Id of a target → id of its backbone, in a CSV of chosen backbones. The first row of a target counts.

    Raises:
        UserError: if the file cannot be read; `remedy` ends the message.
    """
    return read_once(_choices_in, path, remedy=remedy)


def _choices_in(path: Path, *, remedy: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in read_csv(path, columns=("target_id", "task_id"), remedy=remedy):
        found.setdefault(row["target_id"], row["task_id"])
    return found


def chosen_backbone(path: Path, *, table: Table, target: Task) -> Task:
    """The backbone that stage 3-1 chose for `target`.

    Raises:
        UserError: if the CSV has no row for it, or names an unknown task or the target itself.
    """
    remedy = "run run_pickaback/find_backbone.sh first, or give --backbone"
    chosen = read_choices(path, remedy=remedy).get(str(target.id))
    if chosen is None:
        raise UserError(f"{path} has no row for target {target.id} ({target.name}): {remedy}")
    try:
        backbone = table.task(chosen)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if backbone == target:
        raise UserError(f"{path} pairs task {target.name} with itself: {remedy}")
    recorded = read_arguments(arguments_file(path), str(target.id)).get(CHOSEN, backbone.id)
    if recorded != backbone.id:
        logging.warning(
            "%s pairs target %d with %d, but stage 3-1 chose %s: continuing with the former; correct "
            "the file if nobody edited it",
            *(path, target.id, backbone.id, recorded),
        )
    return backbone


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


def candidates_of(target: Task, args: argparse.Namespace, *, table: Table) -> list[Task]:
    """The tasks that `--candidates` names as backbones of `target`.

    Raises:
        UserError: if there are none.
    """
    candidates = table.candidates(args.candidates.tasks, target=target, among=args.candidates.among)
    if not candidates:
        raise UserError(f"--candidates {args.candidates} leaves none for target {target.name}")
    return candidates


def final_width(paths: Paths, *, table: Table, target: Task, pairs: Path) -> float:
    """The width multiplier that a target reached in stage 3-2, on its backbone in the CSV `pairs`."""
    backbone = chosen_backbone(pairs, table=table, target=target)
    return max(read_widths(paths.target(table.name, backbone.name, target.name)))
