"""Which outputs are reused: those with the same stamp."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import packnet_models
from methods.ownership import SharedNetwork
from tests.helpers import same
from training.checkpoints import save_checkpoint
from training.loop import Progress
from training.outputs import Output, Unfinished, remove_output, require_same
from utils.errors import UserError
from utils.runtime import random_state

WHERE = Path("checkpoint-1.pth.tar")
METRICS = {"train_accuracy": 1.0, "validation_accuracy": 0.75, "test_accuracy": 0.5}


def difference(found: dict, asked: dict, **more: dict) -> str:
    with pytest.raises(UserError) as refused:
        require_same(found, asked, where=WHERE, **more)
    return str(refused.value)


def test_equal_stamps_are_accepted_and_none_equals_a_missing_entry() -> None:
    require_same({}, {}, where=WHERE)
    require_same({"lr": 0.1, "parent": None}, {"lr": 0.1}, where=WHERE)
    require_same({"lr": 0.1}, {"lr": 0.1, "parent": None}, where=WHERE)
    require_same({"flag": False, "count": 0}, {"flag": False, "count": 0}, where=WHERE)


@pytest.mark.parametrize("value", [0, 0.0, False, "", "x", [1]])
def test_an_entry_on_one_side_only_is_refused_by_name(value: object) -> None:
    """An old output lacks what a newer version records, and may record what a newer one dropped."""
    lacking = difference({"lr": 0.1}, {"lr": 0.1, "clip": value})
    assert f"clip (none recorded, {value} requested)" in lacking
    extra = difference({"lr": 0.1, "clip": value}, {"lr": 0.1})
    assert f"clip ({value} recorded, none requested)" in extra


def test_every_entry_that_differs_is_named() -> None:
    message = difference({"a": 1, "b": 2, "c": [1, 2, 3, 4, 5]}, {"a": 2, "b": 2, "c": [1, 2, 3, 4, 6]})
    assert message.startswith(f"{WHERE} was made with other arguments: ")
    assert "a (1 recorded, 2 requested), c (5 of them recorded, 5 of them requested)" in message
    assert "c ([1, 2, 3, 4] recorded" in difference({"c": [1, 2, 3, 4]}, {})
    assert "b (" not in message and "--overwrite" in message and "--run NAME" in message


def test_what_old_outputs_imply_stands_in_for_missing_entries_only() -> None:
    implied = {"clip": 1.0}
    require_same({"lr": 0.1}, {"lr": 0.1, "clip": 1.0}, where=WHERE, implied=implied)
    require_same({"clip": 2.0}, {"clip": 2.0}, where=WHERE, implied=implied)
    assert "clip (1.0 recorded, 2.0 requested)" in difference({}, {"clip": 2.0}, implied=implied)
    assert "clip (2.0 recorded, 1.0 requested)" in difference({"clip": 2.0}, {"clip": 1.0}, implied=implied)
    assert "clip (1.0 recorded, none requested)" in difference({}, {}, implied=implied)


def output(folder: Path, **stamp: object) -> Output:
    return Output(
        folder=folder,
        epochs=2,
        architecture={"name": "lenet5", "layers": "plain"},
        stamp=stamp,
        task_table={},
    )


def progress_after(epochs: int) -> Progress:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return Progress(
        epoch=epochs,
        history=[
            {"epoch": epoch, "loss": 0.5, "accuracy": 0.5, "lr": 0.1, "val_loss": 0.25, "val_accuracy": 0.75}
            for epoch in range(1, epochs + 1)
        ],
        optimizers={"weights": optimizer.state_dict()},
        generator=torch.Generator().get_state(),
        random=random_state(torch.device("cpu")),
        schedules={"weights": {}},
    )


@pytest.fixture
def payload() -> dict:
    shared = SharedNetwork(build=packnet_models.ARCHITECTURES["lenet5"])
    shared.begin_task("only", num_classes=2)
    return shared.payload() | {"epoch": 1}


def test_finished_work_is_reused_only_with_the_recipe_that_it_records(tmp_path: Path, payload: dict) -> None:
    finished = output(tmp_path, lr=0.1)
    assert finished.finished() is None
    complete = finished.finish(payload, progress_after(2), metrics=METRICS)
    assert finished.finished()["arguments"] == {"lr": 0.1}
    assert replace(finished, overwrite=True).finished() is None
    with pytest.raises(UserError, match=r"lr \(0.1 recorded, 0.2 requested\)"):
        output(tmp_path, lr=0.2).finished()
    del complete["arguments"]
    save_checkpoint(finished.checkpoint, complete)
    with pytest.raises(UserError, match=r"lr \(none recorded, 0.1 requested\)"):
        finished.finished()


def test_unfinished_work_is_continued_only_with_the_recipe_that_it_records(
    tmp_path: Path, payload: dict
) -> None:
    mine, other = output(tmp_path, lr=0.1), output(tmp_path, lr=0.2)
    assert mine.unfinished() is None
    mine.save_unfinished(payload, progress_after(1))
    assert mine.unfinished()["epoch"] == 1
    with pytest.raises(UserError, match=r"lr \(0.1 recorded, 0.2 requested\)"):
        other.unfinished()
    assert replace(mine, overwrite=True).unfinished()["epoch"] == 1, "resumes a redone stage"
    assert replace(other, overwrite=True).unfinished() is None


# Deleting


@pytest.fixture
def left(tmp_path: Path, payload: dict) -> Path:
    """What a finished and an unfinished run left in `<tmp_path>/root/run/task`."""
    folder = tmp_path / "root" / "run" / "task"
    output(folder, task="a", lr=0.1).finish(payload, progress_after(2), metrics=METRICS)
    output(folder, task="a", lr=0.2).save_unfinished(payload, progress_after(1))
    assert {"checkpoint-2.pth.tar", "train.csv"} < {path.name for path in folder.iterdir()}
    return folder


def test_an_output_is_deleted_with_the_folders_that_it_leaves_empty(left: Path, tmp_path: Path) -> None:
    remove_output(left, root=tmp_path / "root", made_by={"task": "a"})
    assert [*tmp_path.rglob("*")] == [tmp_path / "root"]
    remove_output(left, root=tmp_path / "root", made_by={"task": "a"})


def test_files_of_others_stay_with_their_folders(left: Path, tmp_path: Path) -> None:
    for mine in (left / "notes.txt", left.parent / "other"):
        mine.touch()
    remove_output(left, root=tmp_path / "root", made_by={"task": "a"})
    assert [*left.iterdir()] == [left / "notes.txt"]
    (left / "notes.txt").unlink()
    remove_output(left, root=tmp_path / "root", made_by={"task": "a"})
    assert [*left.parent.iterdir()] == [left.parent / "other"]


@pytest.mark.parametrize("made_by", [{"task": "b"}, {"task": "a", "lr": 0.1}, {"seed": 1}])
def test_nothing_is_deleted_if_any_checkpoint_is_another_runs(
    made_by: dict, left: Path, tmp_path: Path
) -> None:
    before = sorted(left.iterdir())
    with pytest.raises(UserError, match="another run"):
        remove_output(left, root=tmp_path / "root", made_by=made_by)
    assert sorted(left.iterdir()) == before


@pytest.mark.parametrize("inside", ["other", "root/run/task/deeper", "root/../run"])
def test_nothing_outside_the_root_is_deleted(inside: str, left: Path, tmp_path: Path) -> None:
    before = sorted(left.iterdir())
    with pytest.raises(UserError, match=r"is not inside .*: nothing is deleted"):
        remove_output(left, root=tmp_path / inside, made_by={"task": "a"})
    (tmp_path / "link").symlink_to(left)
    with pytest.raises(UserError, match=r"is not inside .*: nothing is deleted"):
        remove_output(tmp_path / "elsewhere" / ".." / "link", root=tmp_path / inside, made_by={"task": "a"})
    assert sorted(left.iterdir()) == before


# Writing


def test_finishing_replaces_the_resume_file_and_checkpoints_of_other_lengths(
    tmp_path: Path, payload: dict
) -> None:
    mine = output(tmp_path, lr=0.1)
    progress = progress_after(2)
    mine.save_unfinished(payload, progress)
    assert mine.unfinished()["progress"]["history"] == progress.history
    replace(mine, epochs=7).finish(payload, progress, metrics=METRICS)
    complete = mine.finish(payload, progress, metrics=METRICS)
    assert [*tmp_path.glob("*.pth.tar")] == [mine.checkpoint]
    assert (tmp_path / "train.csv").read_text().split() == [
        *("epoch,loss,accuracy,lr,val_loss,val_accuracy", "1,0.5,0.5,0.1,0.25,0.75"),
        "2,0.5,0.5,0.1,0.25,0.75",
    ]
    found = mine.finished()
    assert same({key: found[key] for key in complete}, complete)
    assert found["metrics"] == METRICS and found["epoch"] == 2
    assert found["arguments"] == {"lr": 0.1} and found["task_table"] == mine.task_table
    assert found["architecture"] == mine.architecture and "progress" not in found


def test_listing_reports_finished_work_and_stops_at_unfinished(tmp_path: Path, payload: dict) -> None:
    mine = output(tmp_path, lr=0.1)
    listing = replace(mine, listing=True)
    mine.save_unfinished(payload, progress_after(1))
    assert listing.finished() is None
    with pytest.raises(Unfinished):
        listing.unfinished()
    mine.finish(payload, progress_after(1), metrics=METRICS)
    assert listing.finished()["epoch"] == 1, "a schedule may end training early"


def test_a_discarded_run_starts_again(tmp_path: Path, payload: dict) -> None:
    mine = output(tmp_path, lr=0.1)
    mine.discard()
    mine.save_unfinished(payload, progress_after(1))
    mine.discard()
    assert mine.unfinished() is None
