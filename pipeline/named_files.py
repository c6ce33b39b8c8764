"""Files that flags name, checked before any work: no file is written over another kind of file."""

import argparse
from pathlib import Path

from utils.errors import UserError
from utils.files import read_csv, read_json
from utils.folders import is_json_with, is_log, require_different, require_kind
from utils.paths import Paths

_FLAGS = ("jsonfile", "pruning_ratio_to_acc_record_file", "report_file", "csv_path", "pretrained_file")
_DISTANCE = "ddv_cos"


def check_named_files(args: argparse.Namespace) -> None:
    """Reject flags that name one file twice, or an existing file of another kind.

    Args:
        args: a script's flags; those that it lacks are not checked.

    Raises:
        UserError: naming the flag and the file.
    """
    named: dict[str, Path | None] = {f"--{name}": getattr(args, name, None) for name in _FLAGS}
    log, name = getattr(args, "log_path", None), getattr(args, "logfile", None)
    named["--log_path"] = log / name if log else None
    config = Path(args.dataset_config)
    named["--dataset_config"] = config if config.is_file() else None
    require_different(named)
    for flag in ("--jsonfile", "--pruning_ratio_to_acc_record_file"):
        path = named[flag]
        if path is not None and path.exists():
            read_json(path, remedy=f"name another file with {flag}")
    require_kind(
        named["--report_file"],
        flag="--report_file",
        what="a report",
        fits=is_json_with("task", "parameters", "multiply_adds"),
    )
    check_log(named["--log_path"])
    check_pairs(named["--csv_path"])


def check_log(path: Path | None) -> None:
    """Reject a log file that exists and is something else."""
    require_kind(path, flag="--logfile", what="a log", fits=is_log)


def check_pairs(path: Path | None) -> None:
    """Reject a `--csv_path` that exists and is not a CSV of chosen backbones.

    Raises:
        UserError: naming the file.
    """
    if path is None or not path.exists():
        return
    rows = read_csv(path, columns=("target_id", "task_id"), remedy="name another file with --csv_path")
    if rows and _DISTANCE in rows[0]:
        raise UserError(f"--csv_path {path} holds the distances, not the chosen backbones: name another file")


def check_search_files(args: argparse.Namespace, *, paths: Paths, config: str) -> None:
    """Reject a `--csv_path` that is the CSV of the distances, which the search also writes.

    Raises:
        UserError: naming both.
    """
    check_named_files(args)
    for among in ("all", "same", "other"):
        require_different(
            {"the CSV of the distances": paths.table_csv(config, among=among), "--csv_path": args.csv_path}
        )
