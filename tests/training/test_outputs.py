"""Which outputs are reused: those with the same stamp."""

from pathlib import Path

import pytest

from training.outputs import require_same
from utils.errors import UserError

WHERE = Path("checkpoint-1.pth.tar")


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
    assert "b (" not in message and "--overwrite" in message and "--run NAME" in message


def test_what_old_outputs_imply_stands_in_for_missing_entries_only() -> None:
    implied = {"clip": 1.0}
    require_same({"lr": 0.1}, {"lr": 0.1, "clip": 1.0}, where=WHERE, implied=implied)
    require_same({"clip": 2.0}, {"clip": 2.0}, where=WHERE, implied=implied)
    assert "clip (1.0 recorded, 2.0 requested)" in difference({}, {"clip": 2.0}, implied=implied)
    assert "clip (2.0 recorded, 1.0 requested)" in difference({"clip": 2.0}, {"clip": 1.0}, implied=implied)
    assert "clip (1.0 recorded, none requested)" in difference({}, {}, implied=implied)
