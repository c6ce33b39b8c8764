"""Stage 2-2: choose each task's pruning ratio and copy the checkpoint pruned to it."""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data.tables import Table, Task, load_table
from methods.cpg import choose_ratio
from models import ARCHITECTURES
from tools.task_run import read_baseline
from utils import arguments, errors, logs
from utils.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import read_json
from utils.paths import Paths, checkpoint_in, checkpoints_in, record_file, sparsity_folder
from utils.runs import require_same

LAYERS = "sharable"
REMEDY = "run run_pickaback/wo_backbone.sh for this task first"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    arguments.add_files(parser)
    arguments.add_overwrite(parser)
    arguments.add_sparsities(parser)
    arguments.add_allowed_loss(parser)
    arguments.add_baseline_file(parser)
    arguments.add_record_file(parser)
    args = parser.parse_args(argv)
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    tasks = table.select(args.dataset)
    arguments.check_of_one_task(args, tasks)
    paths = arguments.paths_of(args)
    load = partial(
        load_checkpoint,
        architecture=args.arch,
        layers=LAYERS,
        sizes=arguments.resolved_sizes(ARCHITECTURES, args.arch, arguments.given_sizes(args)),
    )
    with logs.to_file(paths.stage_log(table.name, "select_pruning_ratio")):
        logs.configuration(vars(args))
        logs.protocol(args.protocol)
        for task in tasks:
            select(args, paths=paths, table=table, task=task, load=load)


def select(
    args: argparse.Namespace, *, paths: Paths, table: Table, task: Task, load: Callable[[Path], dict]
) -> None:
    """Choose one task's ratio and copy its checkpoint to the folder of the pruned networks.

    Args:
        load: reads a checkpoint, and rejects one of another architecture or size.
    """
    folder = paths.pruned(table.name, task.name)
    record = read_record(
        args.pruning_ratio_to_acc_record_file or record_file(folder), ratios=args.target_sparsity
    )
    baseline = read_baseline(args.jsonfile or paths.baseline_file(table.name), task=task.name)
    ratio = choose_ratio(record, baseline=baseline, allow_acc_loss=args.allow_acc_loss)
    log_choice(ratio, task=task.name, accuracy=record[ratio], baseline=baseline)

    folders = [
        paths.single_scratch(table.name, task.name),
        *(sparsity_folder(folder, step) for step in args.target_sparsity),
    ]
    payload = read_chosen(folders, index=list(record).index(ratio), load=load)
    pruned = checkpoint_in(folders[-1], remedy=REMEDY)
    selection = {
        "ratio": ratio,
        "accuracy": record[ratio],
        "baseline": baseline,
        "allow_acc_loss": args.allow_acc_loss,
        "network": fingerprint(payload),
    }
    chosen = folder / pruned.name
    earlier = list(checkpoints_in(folder).values())
    for path in earlier:
        if not args.overwrite:
            existing = load(path)
            require_same(existing.get("selection", {}), selection, where=path)
            logging.info("%s is in place: skipped (--overwrite redoes it)", path)
            return
    save_checkpoint(chosen, payload | {"selection": selection})
    for path in earlier:
        if path != chosen:
            path.unlink()


def log_choice(ratio: float, *, task: str, accuracy: float, baseline: float) -> None:
    """Log the chosen ratio (0.0 is the unpruned network) and its accuracy."""
    logging.info("%s: scratch baseline %.4f, accuracy %.4f at sparsity %s", task, baseline, accuracy, ratio)
    if ratio:
        logging.info("We choose pruning ratio %s", ratio)
    else:
        logging.info("We select scratch: no pruned network of %s reaches the baseline", task)


def read_chosen(folders: Sequence[Path], *, index: int, load: Callable[[Path], dict]) -> dict:
    """Read the checkpoint in `folders[index]` and check that each network was pruned from the previous one.

    At most three checkpoints are in memory at a time.

    Raises:
        UserError: if a network was not pruned from the previous one, because stage 2-1 was redone in part.
    """
    chosen, before = {}, None
    for number, folder in enumerate(folders):
        path = checkpoint_in(folder, remedy=REMEDY)
        payload = load(path)
        parent = payload.get("arguments", {}).get("parent")
        if before is not None and parent not in (None, before):
            raise UserError(
                f"{path} was not pruned from the network before it: "
                "redo it with OVERWRITE=1 bash run_pickaback/wo_backbone.sh"
            )
        before = fingerprint(payload)
        if number == index:
            chosen = payload
    return chosen


def read_record(path: Path, *, ratios: Sequence[float]) -> dict[float, float]:
    """Read the accuracy at sparsity 0.0 and at each of `ratios`.

    Raises:
        UserError: if the file or an accuracy is missing, or an accuracy is not a number.
    """
    remedy = "run run_pickaback/wo_backbone.sh for this task again"
    entries = read_json(path, remedy=remedy)
    missing = [str(ratio) for ratio in (0.0, *ratios) if str(ratio) not in entries]
    if missing:
        raise UserError(f"{path} lacks the sparsity {', '.join(missing)}: {remedy}")
    try:
        return {ratio: float(entries[str(ratio)]) for ratio in (0.0, *ratios)}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds an accuracy that is not a number ({error}): {remedy}") from error


if __name__ == "__main__":
    errors.run(main)
