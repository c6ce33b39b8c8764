"""One output folder: what is finished in it, what can be resumed, and which recipe made it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from training.loop import Progress
from utils.errors import UserError
from utils.files import csv_text, write_atomically
from utils.paths import RESUME_NAME, TRAIN_CSV, checkpoint_name, checkpoints_in


class Unfinished(Exception):
    """Training is left, and the run may only list unfinished work."""


def require_same(found: Mapping, asked: Mapping, *, where: Path, implied: Mapping | None = None) -> None:
    """Refuse an output that another recipe made.

    Args:
        found, asked: stamps; a missing entry equals None.
        implied: values of entries that older outputs do not record.

    Raises:
        UserError: naming the entries that differ.
    """
    found = {**(implied or {}), **found}
    names = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
    if names:
        differences = ", ".join(
            f"{name} ({_brief(found.get(name))} recorded, {_brief(asked.get(name))} requested)"
            for name in names
        )
        raise UserError(
            f"{where} was made with other arguments: {differences}: "
            "use the same ones, or --overwrite to redo this stage, or --run NAME to keep both"
        )


def _brief(value: object) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} of them"
    if value is None:
        return "none"
    return str(value)


def remove_output(folder: Path, *, root: Path, made_by: Mapping) -> None:
    """Delete what training runs left in an output folder, and the folder if nothing else is in it.

    Args:
        root: the folder must lie inside it.
        made_by: entries that the recipe of every checkpoint deleted must have.

    Raises:
        UserError: naming a folder outside the root, or a checkpoint that another recipe made; nothing is
            deleted then.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} is not inside {root}: nothing is deleted")
    ours = [path for path in (*checkpoints_in(folder).values(), folder / RESUME_NAME) if path.is_file()]
    for path in ours:
        found = read_checkpoint(path).get("arguments", {})
        if any(found.get(name) != value for name, value in made_by.items()):
            raise UserError(f"{path} belongs to another run: choose another --run")
    for path in (*ours, folder / TRAIN_CSV):
        path.unlink(missing_ok=True)
    for empty in (folder, *folder.parents):
        if empty == root or not empty.is_dir() or any(empty.iterdir()):
            break
        empty.rmdir()


@dataclass(frozen=True)
class Output:
    """The checkpoint folder of one training run.

    Attributes:
        folder: holds `checkpoint-<epochs>.pth.tar`, `train.csv` and, until finished, a resume file.
        epochs: of the finished run.
        architecture: {"name", "layers"}, plus "sizes" if it has any.
        stamp: the recipe's stamp: everything that affects the result, as plain numbers and strings.
        task_table: the task as the checkpoint describes it: classes, normalisation, image size.
        overwrite: redo finished work, and discard another recipe's unfinished run.
        listing: train nothing; only check whether the output is finished.
    """

    folder: Path
    epochs: int
    architecture: dict
    stamp: dict
    task_table: dict
    overwrite: bool = False
    listing: bool = False

    @property
    def checkpoint(self) -> Path:
        """The finished checkpoint."""
        return self.folder / checkpoint_name(self.epochs)

    @property
    def resume(self) -> Path:
        """The checkpoint of an unfinished run."""
        return self.folder / RESUME_NAME

    def finished(self) -> dict | None:
        """The finished checkpoint's payload; None if there is none or it is to be redone.

        Raises:
            UserError: if another recipe made it.
        """
        found = checkpoints_in(self.folder)
        if self.overwrite or not found:
            return None
        path = found[max(found)]
        payload = self._load(path)
        require_same(payload.get("arguments", {}), self.stamp, where=path)
        return payload

    def unfinished(self) -> dict | None:
        """The payload to resume from; None if there is none.

        Raises:
            UserError: if another recipe made it and `overwrite` is off.
            Unfinished: if `listing` is on.
        """
        if self.listing:
            raise Unfinished
        if not self.resume.exists():
            return None
        payload = self._load(self.resume)
        if self.overwrite and payload["arguments"] != self.stamp:
            return None
        require_same(payload["arguments"], self.stamp, where=self.resume)
        logging.info("Resuming %s after epoch %d", self.folder, payload["epoch"])
        return payload

    def save_unfinished(self, payload: dict, progress: Progress) -> None:
        """Write the resume file, without waiting for the disk."""
        complete = self._complete(payload, progress) | {"progress": dict(vars(progress))}
        save_checkpoint(self.resume, complete, durable=False)

    def finish(self, payload: dict, progress: Progress, *, metrics: dict) -> dict:
        """Write the finished checkpoint and `train.csv`, remove the resume file, and return the payload.

        The states of optimizers, schedules and generators go with the resume file.
        """
        complete = self._complete(payload, progress) | {"metrics": metrics}
        if progress.history:
            write_atomically(self.folder / TRAIN_CSV, csv_text(progress.history, list(progress.history[0])))
        stale = [path for path in checkpoints_in(self.folder).values() if path != self.checkpoint]
        save_checkpoint(self.checkpoint, complete)
        for path in stale:
            path.unlink()
        self.resume.unlink(missing_ok=True)
        return complete

    def discard(self) -> None:
        """Remove the resume file: a resumed run would only diverge again."""
        self.resume.unlink(missing_ok=True)

    def _load(self, path: Path) -> dict:
        return load_checkpoint(
            path, architecture=self.architecture["name"], layers=self.architecture["layers"]
        )

    def _complete(self, payload: dict, progress: Progress) -> dict:
        return payload | {
            "architecture": self.architecture,
            "arguments": self.stamp,
            "task_table": self.task_table,
            "epoch": progress.epoch,
        }
