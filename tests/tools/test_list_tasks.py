"""The tasks of a stage, and those whose networks it needs."""

import pytest

from tools import list_tasks


def test_candidates_are_listed_after_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    list_tasks.main(["--dataset", "3", "--candidates", "1-3", "--with_candidates"])
    assert capsys.readouterr().out.split() == ["four_five", "zero_one", "two_three"]
    list_tasks.main(["--dataset", "3", "--candidates", "3", "--with_candidates"])
    assert capsys.readouterr().out == "", "no candidate but itself"
