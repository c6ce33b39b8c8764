"""--list_unfinished: one process lists the work left, without starting any of it."""

import logging
from collections.abc import Callable

import pytest

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from pipeline import train_task
from tests.helpers import Fleet, snapshot

LIST = "--list_unfinished"
STAGES: dict[str, tuple[object, Callable, str]] = {
    "baseline": (packnet_script, Fleet.baseline_flags, "1-3"),
    "own": (cpg_script, Fleet.own_flags, "1-3"),
    "target": (cpg_script, Fleet.target_flags, "3"),
}


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> tuple[object, Callable, str]:
    return STAGES[request.param]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("listing must not train")

    monkeypatch.setattr(train_task, "fit", fail)


@pytest.mark.usefixtures("no_training")
def test_finished_tasks_are_reported_as_skipped_and_nothing_is_listed(
    stage: tuple, fleet: Fleet, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    script, flags_of, tasks = stage
    before = snapshot(fleet.root)
    with caplog.at_level(logging.INFO):
        script.main(flags_of(fleet, tasks, LIST))
    assert capsys.readouterr().out == ""
    assert caplog.text.count("is finished: skipped") >= 3
    assert snapshot(fleet.root) == before


@pytest.mark.usefixtures("no_training")
def test_tasks_with_work_left_are_listed_by_name(
    stage: tuple, fleet: Fleet, capsys: pytest.CaptureFixture
) -> None:
    script, flags_of, tasks = stage
    script.main(flags_of(fleet, tasks, LIST, "--run", "another"))
    names = ["four_five"] if tasks == "3" else ["zero_one", "two_three", "four_five"]
    assert capsys.readouterr().out.splitlines() == names
    assert not (fleet.checkpoints / "another").exists()


@pytest.mark.usefixtures("no_training")
def test_only_interrupted_and_damaged_tasks_are_listed(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    path = fleet.baseline_checkpoint("two_three")
    path.rename(path.with_name("resume.pth.tar"))
    fleet.baseline_checkpoint("four_five").write_bytes(b"damaged")
    packnet_script.main(fleet.baseline_flags("1-3", LIST))
    assert capsys.readouterr().out.splitlines() == ["two_three", "four_five"]


@pytest.mark.usefixtures("no_training")
def test_a_missing_entry_in_a_shared_file_is_restored(fleet: Fleet) -> None:
    """Finished tasks are not run again, so listing must restore it."""
    path = fleet.paths.baseline_file("digits")
    before = path.read_text()
    path.unlink()
    packnet_script.main(fleet.baseline_flags("1-3", LIST))
    assert path.read_text() == before


def test_targets_without_a_chosen_backbone_are_listed(fleet: Fleet, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(fleet.root)
    search_script.main(fleet.search_flags("1-3", "--backbone", "zero_one", LIST))
    assert capsys.readouterr().out.splitlines() == ["zero_one", "two_three"]
    assert snapshot(fleet.root) == before


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (packnet_script, ["--overwrite"]),
        (packnet_script, ["--mode", "inference"]),
        (cpg_script, ["--overwrite"]),
        (cpg_script, ["--mode", "finetune", "prune", "--total_num_tasks", "3"]),
        (search_script, ["--overwrite"]),
    ],
)
def test_listing_rejects_flags_under_which_no_task_is_unfinished(script: object, more: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main([LIST, *more])
    assert ended.value.code == 2
