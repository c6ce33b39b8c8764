"""One output folder: what is finished in it, what is half done, and what made it."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import csv_text, write_atomically
from utils.paths import RESUME_NAME, TRAIN_CSV, checkpoint_name, checkpoints_in
from utils.training import Progress

# Flags that decide what a training run computes; where it runs and how fast is not among them.
_DECIDING = ("arch", "seed", "protocol", "precision", "batch_size", "weight_decay")


def deciding(args: argparse.Namespace, **more: object) -> dict:
    """The arguments to keep with an output: the flags every training run depends on, and `more`."""
    return {name: getattr(args, name) for name in _DECIDING} | more


def require_same(found: Mapping, asked: Mapping, *, where: Path) -> None:
    """Refuse an output that other arguments made.

    Raises:
        UserError: naming the arguments that differ.
    """
    names = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
    if names:
        differences = ", ".join(
            f"{name} ({_brief(found.get(name))} there, {_brief(asked.get(name))} asked)" for name in names
        )
        raise UserError(
            f"{where} was made with other arguments: {differences}: "
            "give the same ones, --overwrite to redo this stage, or --run NAME to keep both"
        )


def _brief(value: object) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} of them"
    if value is None:
        return "none"
    return str(value)


@dataclass
class Output:
    """The checkpoint folder of one training run.

    Attributes:
        folder: holds `checkpoint-<epochs>.pth.tar`, `train.csv` and, until finished, a resume file.
        epochs: of the finished run.
        architecture: {"name", "layers"}.
        arguments: all that decides the result, data fingerprint included: plain numbers and strings.
        task_table: what the checkpoint should say of its task: classes, normalisation, image size.
        overwrite: redo what is finished, and drop what other arguments left half done.
    """

    folder: Path
    epochs: int
    architecture: dict
    arguments: dict
    task_table: dict
    overwrite: bool = False

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
            UserError: if other arguments made it.
        """
        found = checkpoints_in(self.folder)
        if self.overwrite or not found:
            return None
        path = found[max(found)]
        payload = self._load(path)
        require_same(payload.get("arguments", {}), self.arguments, where=path)
        return payload

    def unfinished(self) -> dict | None:
        """The payload to resume from; None if there is none.

        Raises:
            UserError: if other arguments made it and it may not be overwritten.
        """
        if not self.resume.exists():
            return None
        payload = self._load(self.resume)
        if self.overwrite and payload["arguments"] != self.arguments:
            return None
        require_same(payload["arguments"], self.arguments, where=self.resume)
        logging.info("Resuming %s after epoch %d", self.folder, payload["epoch"])
        return payload

    def save_unfinished(self, payload: dict, progress: Progress) -> None:
        """Write what continuing needs, without waiting for the disk."""
        complete = self._complete(payload, progress) | {"progress": dict(vars(progress))}
        save_checkpoint(self.resume, complete, durable=False)

    def finish(self, payload: dict, progress: Progress, *, metrics: dict) -> dict:
        """Write the finished checkpoint and `train.csv`, drop the resume file; returns the payload."""
        complete = self._complete(payload, progress) | {"progress": dict(vars(progress)), "metrics": metrics}
        if progress.history:
            write_atomically(self.folder / TRAIN_CSV, csv_text(progress.history, list(progress.history[0])))
        stale = [path for path in checkpoints_in(self.folder).values() if path != self.checkpoint]
        save_checkpoint(self.checkpoint, complete)
        for path in stale:
            path.unlink()
        self.resume.unlink(missing_ok=True)
        return complete

    def _load(self, path: Path) -> dict:
        return load_checkpoint(
            path, architecture=self.architecture["name"], layers=self.architecture["layers"]
        )

    def _complete(self, payload: dict, progress: Progress) -> dict:
        return payload | {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "task_table": self.task_table,
            "epoch": progress.epoch,
        }
