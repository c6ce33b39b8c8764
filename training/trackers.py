"""Experiment trackers: TensorBoard, Weights & Biases and MLflow follow every training run.

A tracker only receives copies of what the log and `train.csv` get. It never affects a result: it draws no
random numbers, and one that fails is switched off with a warning while training goes on.
"""

import importlib
import json
import logging
import math
import netrc
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from utils.errors import UserError
from utils.files import json_text, locked, write_atomically

Values = Mapping[str, float]

_MLFLOW_PARAMETER = 500  # characters that MLflow keeps


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about one training run.

    Attributes:
        name: the output folder relative to the run's checkpoints, such as `baseline_scratch/digits/fish`.
        group: name of the run that it belongs to, such as `lenet5/seed1`.
        store: folder of the tracker's files of all training runs of the group.
        configuration: the resolved recipe.
    """

    name: str
    group: str
    store: Path
    configuration: Mapping[str, Any]


class Tracker(Protocol):
    """Sends one training run to one tool. Any exception switches the tool off.

    Attributes:
        package: what pip installs to make the tool available.
        module: the module that is imported then.
        id: identifies the training run in the tool; a resumed training run is opened with the same one.
    """

    package: str
    module: str
    id: str

    def __init__(self, run: TrackedRun, *, id: str | None, step: int) -> None:
        """Open the training run.

        Args:
            id: of an earlier process's training run to continue; None for a new one.
            step: number of the last step already sent.
        """

    def log(self, step: int, values: Values) -> None:
        """Send the values of one step; they must not be lost if the process is killed afterwards."""

    def close(self, figures: Values, *, finished: bool) -> None:
        """Send the final figures and close the training run.

        Args:
            finished: False if training stopped; it may be resumed later.
        """


class TensorBoard:
    """TensorBoard event files in the folder of the training run; the recipe is its text `recipe`."""

    package = "tensorboard>=2.15"
    module = "torch.utils.tensorboard"

    def __init__(self, run: TrackedRun, *, id: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = run.name
        # TensorBoard hides the events of earlier processes from this step on.
        self._writer = SummaryWriter(str(run.store / run.name), purge_step=step + 1 if id else 0)
        self._last = step
        if id is None:
            rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(run.configuration.items()))
            self._writer.add_text("recipe", f"| setting | value |\n|---|---|\n{rows}", 0)

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._last = step

    def close(self, figures: Values, *, finished: bool) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, self._last)
        self._writer.close()


class WandB:
    """Weights & Biases; offline unless the user is logged in or sets WANDB_MODE."""

    package = "wandb>=0.17"
    module = "wandb"

    def __init__(self, run: TrackedRun, *, id: str | None, step: int) -> None:
        import wandb

        self.id = id or uuid.uuid4().hex[:12]
        run.store.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "pickaback",
            group=run.group,
            name=run.name,
            id=self.id,
            resume="allow" if id else None,
            dir=str(run.store.parent),  # W&B adds a folder `wandb`
            config=dict(run.configuration),
            mode=os.environ.get("WANDB_MODE") or ("online" if _logged_in_to_wandb() else "offline"),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self, figures: Values, *, finished: bool) -> None:
        self._run.summary.update(dict(figures))
        self._run.finish(exit_code=0 if finished else 1)


def _logged_in_to_wandb() -> bool:
    """Whether `wandb login` or WANDB_API_KEY has provided a key. (`wandb.init` would ask for one.)"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


class MLflow:
    """MLflow; the tracking server in MLFLOW_TRACKING_URI, or a database in the group's folder."""

    package = "mlflow>=2.10"
    module = "mlflow"

    def __init__(self, run: TrackedRun, *, id: str | None, step: int) -> None:
        from mlflow import MlflowClient

        server = os.environ.get("MLFLOW_TRACKING_URI")
        database = run.store.resolve() / "mlflow.db"
        # Of several processes, one creates the database and the experiment.
        with locked(database):
            self._client = MlflowClient(tracking_uri=server or f"sqlite:///{database}")
            experiment = self._experiment(
                run, artifacts=None if server else str(database.parent / "artifacts")
            )
        self._last = step
        if id is None:
            self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
            for name, value in run.configuration.items():
                self._client.log_param(self.id, name, str(value)[:_MLFLOW_PARAMETER])
        else:
            self.id = id
            self._client.update_run(self.id, status="RUNNING")

    def _experiment(self, run: TrackedRun, *, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.group
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=artifacts)

    def log(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)
        self._last = step

    def close(self, figures: Values, *, finished: bool) -> None:
        self.log(self._last, figures)
        self._client.set_terminated(self.id, status="FINISHED" if finished else "FAILED")


# Every tracker, by the name that `--log_to` accepts.
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}

# Trackers that have failed in this process.
_FAILED: set[str] = set()


def require_trackers(kinds: Sequence[str] | None) -> None:
    """Refuse trackers that are not installed; None requires none.

    Raises:
        UserError: naming the first one, and the command that installs it.
    """
    for kind in kinds or ():
        try:
            importlib.import_module(TRACKERS[kind].module)
        except ImportError as error:
            raise UserError(
                f"--log_to {kind} is not available ({error}): install it with "
                f"`.venv/bin/python -m pip install '{TRACKERS[kind].package}'`"
            ) from error


@dataclass(frozen=True)
class Trackers:
    """The trackers of one run.

    Attributes:
        kinds: names in `TRACKERS`.
        folder: folder of all their files.
        checkpoints: folder of the run's checkpoints; output folders below it name the training runs.
        group: name of the run.
    """

    kinds: Sequence[str]
    folder: Path
    checkpoints: Path
    group: str

    def name_of(self, output: Path) -> str:
        """The name of the training run into an output folder."""
        output, root = output.resolve(), self.checkpoints.resolve()
        if output.is_relative_to(root):
            return output.relative_to(root).as_posix()
        return "/".join(("elsewhere", *output.parts[1:]))

    @contextmanager
    def follow(
        self, name: str, *, configuration: Mapping[str, Any], resumed: bool = False
    ) -> Iterator["Tracking"]:
        """Follow one training run within the context.

        Args:
            name: of the training run.
            configuration: the resolved recipe.
            resumed: continue what an earlier process sent, instead of a new run in each tracker.
        """
        trackers = []
        for kind in dict.fromkeys(self.kinds):
            run = TrackedRun(
                name=name, group=self.group, store=self.folder / kind, configuration=configuration
            )
            sent = self.folder / "sent" / kind / f"{name}.json"
            trackers.append(_Guarded(kind, run, sent=sent, resumed=resumed))
        tracking = Tracking(trackers)
        try:
            yield tracking
        finally:
            tracking.close()


class Tracking:
    """One training run in all trackers. No method raises an exception of a tracker."""

    def __init__(self, trackers: Sequence["_Guarded"]) -> None:
        self._trackers = trackers
        self._figures: Values = {}
        self._finished = False

    def log(self, history: Sequence[Mapping[str, Any]], *, step: str = "epoch") -> None:
        """Send the rows that a tracker has not received yet; None and non-finite values are left out.

        Args:
            history: all rows so far.
            step: the column that numbers the rows, from 1.
        """
        for tracker in self._trackers:
            for row in history:
                if row[step] > tracker.step:
                    tracker.log(row[step], _numbers({key: row[key] for key in row if key != step}))

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Training has finished with these figures; they are sent as `final/<name>`."""
        self._figures = {f"final/{name}": value for name, value in _numbers(figures).items()}
        self._finished = True

    def close(self) -> None:
        """Close the training run in all trackers."""
        for tracker in self._trackers:
            tracker.close(self._figures, finished=self._finished)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


class _Guarded:
    """A tracker whose failure is one warning.

    Args:
        sent: JSON of the training run's id in the tool and the last step sent, for resumed runs.

    Attributes:
        step: the last step sent.
    """

    def __init__(self, kind: str, run: TrackedRun, *, sent: Path, resumed: bool) -> None:
        self.kind = kind
        self.step = 0
        self._sent = sent
        self._tracker: Tracker | None = None
        if kind in _FAILED:
            return
        with self._guard():
            state = self._read() if resumed else {}
            self.step = state.get("step", 0)
            if not state.get("finished"):
                self._tracker = TRACKERS[kind](run, id=state.get("id"), step=self.step)
                self._write(finished=False)

    def log(self, step: int, values: Values) -> None:
        """Send one step."""
        with self._guard():
            if self._tracker is not None:
                self._tracker.log(step, values)
                self.step = step
                self._write(finished=False)

    def close(self, figures: Values, *, finished: bool) -> None:
        """Send the final figures."""
        with self._guard():
            if self._tracker is not None:
                self._tracker.close(figures, finished=finished)
                self._write(finished=finished)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: a tracker must never stop training
            self._tracker = None
            _FAILED.add(self.kind)
            reason = " ".join(str(error).split()) or "no message"
            logging.warning(
                "%s failed and is switched off: %s: %s: training continues without it",
                *(self.kind, type(error).__name__, reason),
            )

    def _read(self) -> dict:
        return json.loads(self._sent.read_text()) if self._sent.exists() else {}

    def _write(self, *, finished: bool) -> None:
        entries = {"id": self._tracker.id, "step": self.step, "finished": finished}
        write_atomically(self._sent, json_text(entries))
