"""The view shows what is running, what stopped and why, and what is finished."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import Fleet, refusal
from tools import watch
from utils import logs
from utils.errors import UserError
from utils.folders import alone_in
from utils.paths import Paths

CONFIGURATION = "Configuration: arch=lenet5 epochs=20"
TRAINING = "Training fish, prune 0.3, for at most 20 epochs"


def epoch(number: int, accuracy: str = "75.60") -> str:
    return f"In validate()-> Val Ep. #{number} loss: 0.742, accuracy: {accuracy}, sparsity: 0.000"


def log_lines(*messages: str, seconds: int = 10) -> list[str]:
    """The messages as lines of a log, some seconds apart."""
    times = [divmod(seconds * number, 60) for number in range(len(messages))]
    return [
        f"2026-01-01 00:{minute:02}:{second:02},000 - root - INFO - {message}"
        for (minute, second), message in zip(times, messages, strict=True)
    ]


def write(folder: Path, lines: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(checkpoints=tmp_path / "c", logs=tmp_path / "l", data=tmp_path, run="lenet5/seed1")
    made.checkpoints.mkdir()
    made.logs.mkdir()
    return made


def view(paths: Paths, run: str | None = None) -> watch.View:
    return watch.take_view(checkpoints=paths.checkpoints, logs=paths.logs, run=run)


def lines_of(paths: Paths, run: str | None = None) -> list[str]:
    """The plain lines of a view, without the time of day."""
    first, *others = watch.as_lines(view(paths, run))
    return [first.split("  ", 1)[1], *others]


def test_time_left_is_counted_from_the_epochs_of_this_process() -> None:
    resumed = "Resuming c/fish after epoch 5"
    state = watch.state_of(log_lines(CONFIGURATION, resumed, TRAINING, epoch(6), epoch(7)))
    assert (state.title, state.epoch, state.epochs, state.accuracy) == ("fish, prune 0.3", 7, 20, 75.6)
    assert state.left.total_seconds() == 13 * 10
    assert watch.state_of(log_lines(resumed, TRAINING)).left is None
    assert watch.state_of(log_lines(resumed, TRAINING)).epoch == 5


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.4, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7380, "2 h 3 min"), (-5, "0 s")],
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert watch.shown_time(watch.timedelta(seconds=seconds)) == shown


def test_a_run_is_running_while_its_folder_is_held_and_stopped_after(paths: Paths) -> None:
    folder = write(paths.pruned("digits", "fish") / "0.3", log_lines(CONFIGURATION, TRAINING, epoch(1)))
    # The stage that trains it logs the same into its own folder.
    outer = write(paths.single_scratch("digits", "fish"), log_lines(CONFIGURATION, TRAINING, epoch(1)))
    (folder / "resume.pth.tar").touch()
    with alone_in(outer), alone_in(folder):
        assert lines_of(paths) == [
            "1 running, 0 stopped",
            "running   lenet5/seed1  fish, prune 0.3  epoch 1/20  accuracy 75.60  left 3 min",
        ]
    assert lines_of(paths) == [
        "0 running, 1 stopped",
        "stopped   lenet5/seed1  fish, prune 0.3  stopped after epoch 1/20",
    ]
    assert lines_of(paths, run="lenet5/seed") == ["nothing has started yet"]
    assert len(lines_of(paths, run="lenet5")) == 2


def test_a_run_that_has_not_begun_its_first_epoch_is_named_by_its_folder(paths: Paths) -> None:
    with alone_in(paths.single_scratch("digits", "fish")):
        assert lines_of(paths)[1] == "running   lenet5/seed1  fish/scratch  epoch -  accuracy -  left -"


def test_a_run_that_was_killed_before_its_first_epoch_has_stopped(paths: Paths) -> None:
    write(paths.baselines("digits") / "fish", log_lines(CONFIGURATION, TRAINING))
    write(paths.in_sequence("digits", 1, "fish") / "scratch" / "width-1.0", log_lines(TRAINING, epoch(20)))
    run = write(paths.logs / "spg/s/spg/seed1", log_lines("spg on s, seed 1: 5 tasks"))
    with alone_in(paths.checkpoints / "spg/s/spg/seed1"):
        pass
    killed = "stopped   spg/s/spg/seed1  task 1 of 5  stopped before the first epoch"
    expected = "stopped   lenet5/seed1  fish, prune 0.3  stopped before the first epoch"
    assert lines_of(paths) == ["0 running, 2 stopped", expected, killed]
    (run / "metrics.json").touch()
    assert lines_of(paths) == ["0 running, 1 stopped", expected]


def test_an_error_that_ends_a_run_is_in_its_log_and_in_the_view(paths: Paths) -> None:
    folder = write(paths.baselines("digits") / "fish", log_lines(CONFIGURATION, TRAINING))
    with pytest.raises(UserError), logs.to_file(folder / "train.log"):
        raise UserError("fish: val_loss is nan\nin epoch 1: lower --lr")
    reason = "fish: val_loss is nan in epoch 1: lower --lr"
    assert (folder / "train.log").read_text().endswith(f" - root - ERROR - Stopped: {reason}\n")
    assert lines_of(paths)[1] == f"stopped   lenet5/seed1  fish, prune 0.3  {reason}"


def test_a_sequence_shows_which_task_it_learns(paths: Paths) -> None:
    run = "spg/digits_5/spg/seed1"
    lines = log_lines(
        *("Configuration: appr=spg", "spg on digits_5, seed 1: 5 tasks"),
        *("Training a, train, for at most 9 epochs", epoch(1, "50.00"), epoch(2, "60.00")),
        "Accuracy after task 1 of 5, a: 0.600",
        *("Training b, train, for at most 9 epochs", epoch(1, "70.00")),
    )
    write(paths.logs / run, lines)
    (paths.logs / run / "accuracy_matrix.csv").write_text("after,a,b,c,d,e\na,0.6,,,,\n")
    running = f"running   {run}  task 2 of 5: b, train  epoch 1/9  accuracy 70.00  left 1 min"
    with alone_in(paths.checkpoints / run):
        (paths.checkpoints / run / "b" / "train").mkdir(parents=True)
        (paths.checkpoints / run / "b" / "train" / "resume.pth.tar").touch()
        assert lines_of(paths) == ["1 running, 0 stopped", running, f"finished  {run}  1 of 5 tasks"]
    assert lines_of(paths)[1] == f"stopped   {run}  task 2 of 5: b, train  stopped after epoch 1/9"


def test_finished_networks_of_a_real_fleet_are_counted(trained_fleet: Fleet) -> None:
    found = view(trained_fleet.paths)
    assert not found.running and not found.stopped
    # Per task the unpruned network, two ratios and the chosen one; three widths and the final target.
    assert found.finished == {"lenet5/seed1": "12 own and pruned, 4 on backbones, 3 scratch"}


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_the_terminal_and_shows_names_as_they_are(paths: Paths, width: int) -> None:
    rich = pytest.importorskip("rich.console")
    title = "Training a_task_with_a_long_name[red], in sequence, width 1.5, for at most 100 epochs"
    for number in range(3):
        folder = write(paths.baselines("digits") / f"{number}", log_lines(title, epoch(12)))
        (folder / "resume.pth.tar").touch()
    with alone_in(paths.baselines("digits") / "0"):
        console = rich.Console(width=width, record=True, file=(paths.logs / "out").open("w"))
        console.print(watch.as_tables(view(paths), height=24))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "12/100" in text and "75.60" in text and "[red]" in text


def test_without_a_terminal_one_view_is_printed(
    trained_fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [
        "--checkpoints_root",
        str(trained_fleet.checkpoints),
        "--logs_root",
        str(trained_fleet.paths.logs),
    ]
    watch.main(roots)
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].startswith("finished  lenet5/seed1")


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    message = refusal(
        watch.main, ["--checkpoints_root", str(tmp_path / "none"), "--logs_root", str(tmp_path)]
    )
    assert "--checkpoints_root" in message and "is not a folder" in message
