"""Stage 2-2: choose each task's pruning ratio and copy the checkpoint pruned to it."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from data.loading import validation_labels
from data.tables import Table, Task, load_table
from methods.cpg import choose_ratio
from pipeline import flags
from pipeline.architectures import SHARABLE, resolved_sizes
from pipeline.cpg import log_choice, warn_at_chance
from pipeline.fleet import accuracy, paths_of, scratch_baseline, selected_tasks, warn_if_edited
from training.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from training.outputs import remove_stale, require_same
from utils import logs
from utils.errors import UserError
from utils.files import read_json
from utils.folders import alone_in
from utils.paths import Paths, checkpoint_in, checkpoints_in, record_file, sparsity_folder

REMEDY = "run run_pickaback/wo_backbone.sh for this task first"


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    flags.add_overwrite(parser)
    flags.add_sparsities(parser)
    flags.add_allowed_loss(parser)
    flags.add_baseline_file(parser)
    flags.add_record_file(parser)
    args = parser.parse_args(argv)
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = selected_tasks(args, table)
    paths = paths_of(args)
    load = partial(
        load_checkpoint,
        architecture=args.arch,
        layers=SHARABLE,
        sizes=resolved_sizes(args.arch, layers=SHARABLE, given=flags.given_sizes(args)),
    )
    with logs.to_file(paths.stage_log(table.name, "select_pruning_ratio")):
        logs.configuration(flags.changed(args))
        logs.protocol(args.protocol)
        for task in tasks:
            folder = paths.pruned(table.name, task.name)
            with alone_in(folder) if folder.is_dir() else nullcontext():
                select(args, paths=paths, table=table, task=task, load=load)


def select(
    args: argparse.Namespace, *, paths: Paths, table: Table, task: Task, load: Callable[[Path], dict]
) -> None:
    """Choose one task's ratio and copy its checkpoint to the folder of the pruned networks.

    Args:
        load: reads a checkpoint, and rejects one of another architecture or size.
    """
    folder = paths.pruned(table.name, task.name)
    record_path = args.pruning_ratio_to_acc_record_file or record_file(folder)
    record = read_record(record_path, ratios=args.target_sparsity)
    baseline = scratch_baseline(args, config=table.name, task=task.name)
    labels = validation_labels(
        table,
        task,
        data_root=args.data_root,
        protocol=args.protocol,
        seed=args.seed,
        train_per_class=args.train_per_class,
    )
    warn_at_chance(baseline, task=task.name, labels=labels)
    ratio = choose_ratio(record, baseline=baseline, allow_acc_loss=args.allow_acc_loss)
    log_choice(ratio, task=task.name, accuracy=record[ratio], baseline=baseline)

    folders = [
        paths.single_scratch(table.name, task.name),
        *(sparsity_folder(folder, step) for step in args.target_sparsity),
    ]
    payload = read_chosen(folders, record=record, ratio=ratio, load=load, record_path=record_path)
    pruned = checkpoint_in(folders[-1], remedy=REMEDY)
    selection = {
        "ratio": ratio,
        "accuracy": record[ratio],
        "baseline": baseline,
        "allow_acc_loss": args.allow_acc_loss,
        "network": fingerprint(payload),
    }
    chosen = folder / pruned.name
    for path in checkpoints_in(folder).values():
        if not args.overwrite:
            existing = load(path)
            require_same(existing.get("selection", {}), selection, where=path)
            logging.info("%s is in place: skipped (--overwrite redoes it)", path)
            return
    save_checkpoint(chosen, payload | {"selection": selection})
    remove_stale(chosen, made_by={"config": table.name, "task": task.name})


def read_chosen(
    folders: Sequence[Path],
    *,
    record: Mapping[float, float],
    ratio: float,
    load: Callable[[Path], dict],
    record_path: Path,
) -> dict:
    """Read the checkpoint pruned to `ratio` and check that each network was pruned from the previous one.

    At most three checkpoints are in memory at a time. An accuracy that differs from its checkpoint's is
    logged.

    Args:
        folders: of the network at each sparsity of `record`, in the same order.
        record_path: the file that `record` comes from, for messages.

    Raises:
        UserError: if a network was not pruned from the previous one, because stage 2-1 was redone in part.
    """
    chosen, before = {}, None
    for folder, (sparsity, value) in zip(folders, record.items(), strict=True):
        path = checkpoint_in(folder, remedy=REMEDY)
        payload = load(path)
        warn_if_edited(value, payload, entry=f"{record_path}: the entry of sparsity {sparsity}", where=path)
        parent = payload.get("arguments", {}).get("parent")
        if before is not None and parent not in (None, before):
            raise UserError(
                f"{path} was not pruned from the network before it: "
                "redo it with OVERWRITE=1 bash run_pickaback/wo_backbone.sh"
            )
        before = fingerprint(payload)
        if sparsity == ratio:
            chosen = payload
    return chosen


def read_record(path: Path, *, ratios: Sequence[float]) -> dict[float, float]:
    """Read the accuracy at sparsity 0.0 and at each of `ratios`.

    Raises:
        UserError: if the file or an accuracy is missing, or an accuracy is not a number from 0 to 1.
    """
    remedy = "run run_pickaback/wo_backbone.sh for this task again"
    entries = read_json(path, remedy=remedy)
    missing = [str(ratio) for ratio in (0.0, *ratios) if str(ratio) not in entries]
    if missing:
        raise UserError(f"{path} lacks the sparsity {', '.join(missing)}: {remedy}")
    return {
        ratio: accuracy(entries[str(ratio)], entry=f"{path}: the entry of sparsity {ratio}", remedy=remedy)
        for ratio in (0.0, *ratios)
    }


if __name__ == "__main__":
    errors.run(main)
