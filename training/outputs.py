"""One output folder: what is finished in it, what can be resumed, and which recipe made it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint, set_aside
from training.loop import Progress
from utils.errors import UserError
from utils.files import csv_text, json_text, write_atomically
from utils.paths import CONFIG_JSON, RESUME_NAME, TRAIN_CSV, checkpoint_name, checkpoints_in, redo_command
from utils.tensor_files import Damaged


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


def is_made_by(payload: Mapping, made_by: Mapping) -> bool:
    """Whether a checkpoint records these entries of the recipe that made it."""
    found = payload.get("arguments", {})
    return all(name in found and found[name] == value for name, value in made_by.items())


def remove_output(folder: Path, *, root: Path, made_by: Mapping) -> None:
    """Delete what training runs left in an output folder, and the folder if nothing else is in it.

    Damaged files, which do not show what made them, are set aside.

    Args:
        root: the folder must lie inside it.
        made_by: entries that the recipe of every checkpoint deleted must have.

    Raises:
        UserError: naming a folder outside the root, or a checkpoint that another recipe made; nothing is
            deleted then.
    """
    if not folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} is not inside {root}: nothing is deleted")
    ours: list[Path] = []
    damaged: dict[Path, Damaged] = {}
    for path in (*checkpoints_in(folder).values(), folder / RESUME_NAME):
        try:
            if not path.is_file():
                continue
            if not is_made_by(read_checkpoint(path), made_by):
                raise UserError(f"{path} belongs to another run: choose another --run")
            ours.append(path)
        except Damaged as error:
            damaged[path] = error
    for path, error in damaged.items():
        set_aside(path, reason=error, consequence="delete it once you do not need it")
    for path in (*ours, folder / TRAIN_CSV, folder / CONFIG_JSON):
        path.unlink(missing_ok=True)
    for empty in (folder, *folder.parents):
        if empty == root or not empty.is_dir() or any(empty.iterdir()):
            break
        empty.rmdir()


def remove_stale(current: Path, *, made_by: Mapping) -> None:
    """Remove the checkpoints that earlier runs of the same work left beside `current`.

    Otherwise a reader would take the one with the most epochs. Checkpoints of other work stay, with a
    warning; damaged ones, which do not show what made them, are set aside.

    Args:
        made_by: entries that the recipe of every checkpoint removed must have.
    """
    for path in checkpoints_in(current.parent).values():
        if path == current:
            continue
        try:
            ours = is_made_by(read_checkpoint(path), made_by)
        except Damaged as error:
            set_aside(path, reason=error, consequence=f"{current.name} replaces it")
            continue
        except UserError:  # in a newer format, or a folder
            ours = False
        if ours:
            path.unlink()
        else:
            logging.warning("%s is not from this stage of this task: left in place", path)


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
        configuration: content of `config.json`, for people: nothing reads it back. None: no such file.
    """

    folder: Path
    epochs: int
    architecture: dict
    stamp: dict
    task_table: dict
    overwrite: bool = False
    listing: bool = False
    configuration: dict | None = None

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
            Damaged: if it is not what a training run wrote.
        """
        found = checkpoints_in(self.folder)
        if self.overwrite or not found:
            return None
        path = found[max(found)]
        payload = self._load(path)
        require_same(payload.get("arguments", {}), self.stamp, where=path)
        if "metrics" not in payload:
            raise Damaged(f"{path} does not record its accuracy", remedy=redo_command(path))
        return payload

    def unfinished(self) -> dict | None:
        """The payload to resume from; None if there is none.

        A damaged resume file is set aside: the run starts from scratch.

        Raises:
            UserError: if another recipe made it and `overwrite` is off.
            Unfinished: if `listing` is on.
        """
        if self.listing:
            raise Unfinished
        if not self.resume.exists():
            return None
        try:
            payload = self._load(self.resume)
            if "progress" not in payload:
                raise Damaged(f"{self.resume} is damaged: progress is missing", remedy="delete it")
        except Damaged as error:
            set_aside(self.resume, reason=error, consequence="training starts from scratch")
            return None
        if self.overwrite and payload["arguments"] != self.stamp:
            return None
        require_same(payload["arguments"], self.stamp, where=self.resume)
        logging.info("Resuming %s after epoch %d", self.folder, payload["epoch"])
        return payload

    def save_unfinished(self, payload: dict, progress: Progress) -> None:
        """Write the resume file."""
        complete = self._complete(payload, progress) | {"progress": dict(vars(progress))}
        save_checkpoint(self.resume, complete)

    def finish(self, payload: dict, progress: Progress, *, metrics: dict) -> dict:
        """Write the finished checkpoint with `train.csv` and `config.json`; remove the resume file.

        Returns:
            The payload.

        The states of optimizers, schedules and generators go with the resume file.
        """
        complete = self._complete(payload, progress) | {"metrics": metrics}
        if progress.history:
            write_atomically(self.folder / TRAIN_CSV, csv_text(progress.history, list(progress.history[0])))
        if self.configuration is not None:
            write_atomically(self.folder / CONFIG_JSON, json_text(self.configuration))
        save_checkpoint(self.checkpoint, complete)
        names = ("appr", "seq", "config", "task", "stage")
        remove_stale(
            self.checkpoint, made_by={name: self.stamp[name] for name in names if name in self.stamp}
        )
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
