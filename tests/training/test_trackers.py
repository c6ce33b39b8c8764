"""Trackers get every epoch once, never change a result, and never stop training."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import packnet_cifar100_main_normal as packnet_script
import spg_main
from pipeline.train_task import EpochLog
from tests.helpers import EPOCHS, Fleet, assert_same_checkpoint, refusal
from tools import list_tasks
from training import trackers
from training.loop import Progress
from training.trackers import TRACKERS, Trackers

NAME = "baseline_scratch/digits/zero_one"


class Fake:
    """A tracker that keeps what it receives, or fails where it is told to."""

    package = "fake>=1"
    module = "json"
    fails_in = ""
    opened: list["Fake"]

    def __init__(self, run, *, id, step):
        self.run, self.asked, self.id = run, id, id or f"run{len(self.opened)}"
        self.steps, self.figures, self.finished = [], None, None
        self.opened.append(self)
        self.check("open")

    def check(self, where):
        if self.fails_in == where:
            raise ConnectionError("no network")

    def log(self, step, values):
        self.check("log")
        self.steps.append((step, dict(values)))

    def close(self, figures, *, finished):
        self.check("close")
        self.figures, self.finished = dict(figures), finished


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """The fake, registered as the tracker `fake`."""
    kind = type("Fake", (Fake,), {"opened": []})
    monkeypatch.setitem(TRACKERS, "fake", kind)
    monkeypatch.setattr(trackers, "_FAILED", set())
    return kind


def stop_after(epoch: int, patch: pytest.MonkeyPatch) -> None:
    """Let training end like a Ctrl-C after `epoch`, whose state is saved."""
    log = EpochLog.after_epoch

    def after_epoch(self: EpochLog, progress: Progress) -> None:
        log(self, progress)
        if progress.epoch == epoch:
            self.save(progress)
            raise KeyboardInterrupt

    patch.setattr(EpochLog, "after_epoch", after_epoch)


def interrupted(fleet: Fleet, epoch: int, patch: pytest.MonkeyPatch, *flags: str) -> None:
    """Train task 1, killed after `epoch`, and again to the end."""
    with patch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(epoch, patched)
        fleet.baseline("1", *flags)
    fleet.baseline("1", *flags)


def test_a_tracker_gets_the_recipe_every_epoch_and_the_final_accuracies_and_changes_nothing(
    fake: type[Fake], fresh: Fleet, trained_fleet: Fleet
) -> None:
    fresh.baseline("1", "--log_to", "fake", "fake")
    (sent,) = fake.opened
    assert (sent.run.name, sent.run.group) == (NAME, "lenet5/seed1")
    assert sent.run.configuration["lr"] == 0.1 and sent.run.configuration["seed"] == 1
    assert [step for step, _ in sent.steps] == [*range(1, EPOCHS + 1)]
    assert sent.steps[-1][1]["val_accuracy"] == sent.figures["final/validation_accuracy"]
    assert sent.finished
    assert_same_checkpoint(
        fresh.baseline_checkpoint("zero_one"), trained_fleet.baseline_checkpoint("zero_one")
    )
    fresh.baseline("1", "--log_to", "fake")
    assert len(fake.opened) == 1, "a finished output is not tracked again"


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_warns_once_and_training_goes_on(
    where: str, fake: type[Fake], fresh: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails_in = where
    fresh.baseline("1-2", "--log_to", "fake", "--epochs", "1")
    assert fresh.baseline_checkpoint("two_three").exists()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "fake failed and is switched off: ConnectionError: no network: training continues without it"
    ]


def test_a_resumed_run_continues_in_the_tracker_without_duplicate_steps(
    fake: type[Fake], fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(fresh, 2, monkeypatch, "--log_to", "fake")
    first, second = fake.opened
    assert (first.finished, second.finished, second.asked) == (False, True, first.id)
    assert [step for step, _ in first.steps + second.steps] == [*range(1, EPOCHS + 1)]
    fresh.baseline("1", "--log_to", "fake", "--overwrite")
    assert fake.opened[-1].asked is None and len(fake.opened[-1].steps) == EPOCHS


def test_a_tracker_added_on_resuming_gets_the_epochs_before(
    fake: type[Fake], fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(2, patched)
        fresh.baseline("1")
    fresh.baseline("1", "--log_to", "fake")
    assert [step for step, _ in fake.opened[0].steps] == [*range(1, EPOCHS + 1)]


def test_values_that_are_not_finite_numbers_are_left_out(fake: type[Fake], tmp_path: Path) -> None:
    runs = Trackers(kinds=["fake"], folder=tmp_path, checkpoints=tmp_path / "c", group="g")
    with runs.follow("x", configuration={}) as tracking:
        tracking.log([{"epoch": 1, "loss": None, "val_loss": float("nan"), "accuracy": 0.5}])
    assert fake.opened[0].steps == [(1, {"accuracy": 0.5})]


def test_output_folders_outside_the_layout_have_different_names(tmp_path: Path) -> None:
    runs = Trackers(kinds=[], folder=tmp_path, checkpoints=tmp_path / "c", group="g")
    assert runs.name_of(tmp_path / "c" / "s" / "t") == "s/t"
    assert runs.name_of(tmp_path / "a" / "t") != runs.name_of(tmp_path / "b" / "t")


def test_a_sequence_sends_each_tasks_epochs_and_the_matrix(
    fake: type[Fake], digits_root: Path, tmp_path: Path
) -> None:
    roots = [f"--data_root={digits_root}", f"--checkpoints_root={tmp_path / 'c'}", f"--logs_root={tmp_path}"]
    argv = [*roots, "--appr", "ncl", "--epochs", "1", "--device", "cpu", "--log_to", "fake"]
    spg_main.main(argv)
    *tasks, whole = fake.opened
    assert len(tasks) == 5 and all(len(sent.steps) == 1 for sent in tasks)
    assert [len(values) for _, values in whole.steps] == [1, 2, 3, 4, 5]
    metrics = json.loads((tmp_path / "spg/digits_5/ncl/seed1/metrics.json").read_text())
    assert whole.figures["final/average_accuracy"] == metrics["average_accuracy"]
    spg_main.main(argv)
    assert len(fake.opened) == 6


@pytest.mark.parametrize("main", [packnet_script.main, spg_main.main, list_tasks.main])
def test_a_tracker_that_is_not_installed_is_refused_before_training(
    main: Callable, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "module", "no_such_module")
    assert refusal(main, ["--log_to", "fake"]) == (
        "error: --log_to fake is not available (No module named 'no_such_module'): install it with "
        "`.venv/bin/python -m pip install 'fake>=1'`"
    )


# The real packages, where they are installed.


def test_tensorboard_shows_each_epoch_of_a_resumed_run_once(
    fresh: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(fresh, 2, monkeypatch, "--log_to", "tensorboard")
    events = EventAccumulator(str(fresh.paths.tracking() / "tensorboard" / NAME)).Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [*range(1, EPOCHS + 1)]
    assert len(events.Scalars("final/test_accuracy")) == 1
    assert b"| epochs | 4 |" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    fresh.baseline("1", "--log_to", "tensorboard", "--overwrite", "--epochs", "3")
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [1, 2, 3]


def test_wandb_works_offline(
    fresh: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(fresh.root / "none"))
    interrupted(fresh, 2, monkeypatch, "--log_to", "wandb")
    assert "failed" not in caplog.text
    folders = [path.name for path in (fresh.paths.tracking() / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert len({name.rsplit("-", 1)[1] for name in folders}) == 1, "both belong to one run"


def test_mlflow_keeps_each_epoch_of_a_resumed_run_once(
    fresh: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    interrupted(fresh, 2, monkeypatch, "--log_to", "mlflow")
    assert "failed" not in caplog.text
    database = fresh.paths.tracking() / "mlflow" / "mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    (run,) = client.search_runs([client.get_experiment_by_name("lenet5/seed1").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["epochs"]) == (NAME, "FINISHED", "4")
    assert [entry.step for entry in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2, 3, 4]
    assert "final/test_accuracy" in run.data.metrics
