"""The rule `race`: training on candidates for a few epochs."""

import csv
import json
import re
from pathlib import Path

import pytest

import pickaback_perceiverIO as search_script
from pipeline import search
from tests.helpers import Fleet, refusal, snapshot

NAMES = {"1": "zero_one", "2": "two_three"}
RACE = ("--select", "race", "--race_epochs", "2", "--lr", "0.1", "--scores", "chosen")


def column(fleet: Fleet, name: str = "race") -> dict[str, str]:
    """A column of the scores of target 3, by candidate."""
    with fleet.paths.table_csv("digits").open(newline="") as file:
        return {row["task_id"]: row[name] for row in csv.DictReader(file) if row["target_id"] == "3"}


def chosen(fleet: Fleet) -> str:
    with fleet.paths.result_csv("digits", rule="race").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row["task_id"]


def recorded(fleet: Fleet) -> dict:
    path = fleet.paths.result_csv("digits", rule="race")
    return json.loads(path.with_name(f"{path.name}.arguments.json").read_text())["3"]


def test_a_race_is_stage_3_2_cut_short_and_judged_on_held_out_images(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = snapshot(fleet.checkpoints)
    fleet.search("3", *RACE)
    assert snapshot(fleet.checkpoints) == before
    log = capsys.readouterr().err

    reached = {}
    for candidate, name in NAMES.items():
        folder = tmp_path / name
        width = ("--max_allowed_network_width_multiplier", "1.0", "--save_folder", folder)
        training = ("--protocol", "heldout", "--run", fleet.run, "--epochs", "2", "--lr", "0.1")
        fleet.target("3", *training, "--backbone", name, *width)
        with (folder / "train.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        accuracy, loss = float(last["val_accuracy"]), float(last["val_loss"])
        assert float(column(fleet)[candidate]) == pytest.approx(accuracy, abs=1e-6)
        assert f"Race [{candidate} => 3] accuracy {accuracy:.4f}, loss {loss:.4f} on" in log
        reached[candidate] = (accuracy, -loss)
    assert chosen(fleet) == max(reached, key=reached.get)
    assert re.search(r"Cost of the scores .* race \d+\.\d\d s [\d,]+ bytes", log)


def test_only_the_best_by_another_rule_race(fleet: Fleet) -> None:
    fleet.search("3", *RACE, "--finalists", "1", "--first_rule", "leep")
    leep, race = column(fleet, "leep"), column(fleet)
    best = max(leep, key=lambda candidate: float(leep[candidate]))
    assert chosen(fleet) == best
    assert [candidate for candidate, value in race.items() if value] == [best]

    # More than there are candidates: all of them race. A candidate that does not keeps no earlier result.
    fleet.search("3", *RACE, "--finalists", "99", "--first_rule", "leep", "--overwrite")
    assert all(column(fleet).values())
    fleet.search("3", *RACE, "--finalists", "1", "--first_rule", "leep", "--overwrite")
    assert column(fleet) == race


def test_a_race_is_recorded_and_not_run_twice(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.search("3", *RACE, "--scores", "cheap")
    made = recorded(fleet)
    assert made["race_epochs"] == 2 and made["lr"] == 0.1 and made["batch_size"] == 32
    assert len(made["pruned"]) == 2 and "finalists" not in made
    raced = column(fleet)
    monkeypatch.setattr(search, "Runner", lambda **_: pytest.fail("raced again"))
    fleet.search("3", *RACE)
    # Other searches keep the column while the networks are the same.
    fleet.search("3", "--select", "nearest")
    assert column(fleet) == raced
    message = refusal(search_script.main, fleet.search_flags("3", *RACE, "--lr", "0.05"))
    assert "result_race.csv was made with other arguments" in message and "lr (0.1 recorded" in message


def test_a_race_that_cannot_be_run_is_refused_in_a_line(fleet: Fleet) -> None:
    def message(*more: str) -> str:
        return refusal(search_script.main, fleet.search_flags("3", *RACE, *more))

    assert "target four_five has a class with a single training sample: --select race" in message(
        "--train_per_class", "1", "--run", fleet.run
    )
    assert "every candidate of target four_five diverged: lower --lr" in message("--lr", "1e30")
    fleet.chosen_checkpoint("zero_one").unlink()
    assert "zero_one" in message()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--select", "race", "--finalists", "2"), "--finalists and --first_rule go together"),
        (("--select", "nearest", "--lr", "0.1"), "--lr requires --select race"),
        (("--select", "race", "--backbone", "2", "--race_epochs", "1"), "--race_epochs requires"),
    ],
)
def test_flags_that_have_no_effect_are_refused(
    flags: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        search_script.parse(flags)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
