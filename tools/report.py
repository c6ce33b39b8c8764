"""Report each task's accuracy: trained from scratch, pruned, and on its backbone."""

from utils import errors

if __name__ == "__main__":
    errors.end_on_interrupt()

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.tables import Table, Task, load_table
from pipeline import flags
from pipeline.architectures import PLAIN, SHARABLE
from pipeline.fleet import chosen_backbone, pairs_file, paths_of, read_widths, test_accuracy
from training.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.files import csv_text, read_csv, write_atomically
from utils.paths import Paths, checkpoint_in, widths_file
from utils.tables import as_text

NOTES = """\
Accuracies on the test set. gain: last width minus scratch. scratch@w and cpg@w: the task alone at the
width that it ended at, with PackNet's layers and with CPG's (batch norm), by run_all.sh --control; gain@w
and gain@w (cpg): last width minus those. -: not trained. ±: standard error of the mean over tasks."""
MULTIMODAL_NOTES = """\
its modality: the backbone's. after transfer: last width. same, other: last width on the best backbone of
the target's own modality and of the other; untransferred: as other, but without the K/V transfer, by
run_all_MM.sh --control."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    flags.add_files(parser)
    flags.add_chosen_pairs(parser)
    args = parser.parse_args(argv)
    table = load_table(args.dataset_config, data_root=args.data_root)
    paths = paths_of(args)
    rows, columns = task_rows(
        table.select(args.dataset),
        table=table,
        paths=paths,
        arch=args.arch,
        pairs=pairs_file(args, table.name),
    )
    write_atomically(paths.report_file(table.name), csv_text(rows, columns))
    print(as_text(rows, columns))
    print(NOTES)
    if is_multimodal(table):
        print(MULTIMODAL_NOTES)
    if args.protocol == "published":
        print("Growth, pruning ratio and backbone were chosen on the test set (--protocol published).")
    print(f"The same table: {paths.report_file(table.name)}")


def task_rows(
    tasks: Sequence[Task], *, table: Table, paths: Paths, arch: str, pairs: Path
) -> tuple[list[dict], list[str]]:
    """One row per task, and the columns that any of them fills.

    Args:
        pairs: CSV of the chosen backbones.
    """
    rows = [task_row(task, table=table, paths=paths, arch=arch, pairs=pairs) for task in tasks]
    widths = sorted({width for row in rows for width in row["widths"]})
    columns = []
    for name in rows[0]:
        columns += [f"w{width}" for width in widths] if name == "widths" else [name]
    filled = []
    for row in rows:
        at_width = {f"w{width}": row["widths"].get(width) for width in widths}
        filled.append({name: {**row, **at_width}[name] for name in columns})
    columns = [name for name in columns if any(row[name] is not None for row in filled)]
    return [{name: row[name] for name in columns} for row in filled], columns


def task_row(task: Task, *, table: Table, paths: Paths, arch: str, pairs: Path) -> dict:
    """One task's values, None if missing; `widths` maps width multipliers to test accuracies."""
    config = table.name
    scratch = finished(paths.baselines(config) / task.name, arch=arch, layers=PLAIN, stage="baseline.sh")
    chosen = finished(
        paths.pruned(config, task.name),
        arch=arch,
        layers=SHARABLE,
        stage="select_pruning_ratio_of_backbone.sh",
    )
    backbone = chosen_backbone(pairs, table=table, target=task)
    widths = read_widths(paths.target(config, backbone.name, task.name))
    last = max(widths)
    final = widths[last]["test_accuracy"]
    plain = test_accuracy(paths.baselines(config, width_multiplier=last) / task.name, arch=arch, layers=PLAIN)
    alone = (
        paths.single_scratch(config, task.name)
        if last == 1.0
        else paths.control(config, task.name, width_multiplier=last)
    )
    sharable = test_accuracy(alone, arch=arch, layers=SHARABLE)
    same = on_choice(task, table=table, paths=paths, among="same")
    other = on_choice(task, table=table, paths=paths, among="other")
    untransferred = on_choice(task, table=table, paths=paths, among="other", kv_transfer=False)
    return {
        "id": task.id,
        "task": task.name,
        "modality": task.modality if is_multimodal(table) else None,
        "scratch": scratch["metrics"]["test_accuracy"],
        "ratio": chosen["selection"]["ratio"],
        "pruned": chosen["metrics"]["test_accuracy"],
        "backbone": backbone.name,
        "its modality": backbone.modality if is_multimodal(table) else None,
        "widths": {width: metrics["test_accuracy"] for width, metrics in widths.items()},
        "after transfer": final if is_multimodal(table) else None,
        "gain": final - scratch["metrics"]["test_accuracy"],
        "scratch@w": plain,
        "gain@w": None if plain is None else final - plain,
        "cpg@w": sharable,
        "gain@w (cpg)": None if sharable is None else final - sharable,
        "same": same.accuracy,
        "best of same": same.backbone,
        "other": other.accuracy,
        "best of other": other.backbone,
        "untransferred": untransferred.accuracy,
    }


def is_multimodal(table: Table) -> bool:
    """Whether the table has tasks of several modalities."""
    return len({task.modality for task in table.tasks}) > 1


@dataclass(frozen=True)
class OnBackbone:
    """A target's backbone and its test accuracy there at the last width; None if it was not trained."""

    backbone: str | None = None
    accuracy: float | None = None


def on_choice(
    target: Task, *, table: Table, paths: Paths, among: str, kv_transfer: bool = True
) -> OnBackbone:
    """The target on the backbone chosen among candidates of the same or of the other modality."""
    pairs = paths.result_csv(table.name, among=among)
    if not pairs.exists():
        return OnBackbone()
    chosen = read_csv(pairs, columns=("target_id", "task_id"), remedy="run run_pickaback/find_backbone.sh")
    if str(target.id) not in {row["target_id"] for row in chosen}:
        return OnBackbone()
    backbone = chosen_backbone(pairs, table=table, target=target).name
    folder = paths.target(table.name, backbone, target.name, kv_transfer=kv_transfer)
    if not widths_file(folder).exists():
        return OnBackbone()
    widths = read_widths(folder)
    return OnBackbone(backbone, widths[max(widths)]["test_accuracy"])


def finished(folder: Path, *, arch: str, layers: str, stage: str) -> dict:
    """Read the checkpoint that a stage left in `folder`.

    Raises:
        UserError: if there is none, or if this project did not write it.
    """
    remedy = f"run run_pickaback/{stage} first"
    path = checkpoint_in(folder, remedy=remedy)
    payload = load_checkpoint(path, architecture=arch, layers=layers)
    if "metrics" not in payload or (stage.startswith("select") and "selection" not in payload):
        raise UserError(f"{path} does not record its accuracy: {remedy}")
    return payload


if __name__ == "__main__":
    errors.run(main)
