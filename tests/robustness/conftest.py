"""Fixtures of the robustness tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import train_task
from tests.helpers import Fleet
from training.loop import Progress
from training.outputs import Output


class Killed(BaseException):
    """Stands in for a kill."""


@pytest.fixture
def unfinished(fresh: Fleet, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Kill stage 1 of task 1 after its second epoch; return the resume file."""

    def make() -> Path:
        save, saved = Output.save_unfinished, []

        def dying(self: Output, payload: dict, progress: Progress) -> None:
            save(self, payload, progress)
            saved.append(self.resume)
            if len(saved) == 2:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(train_task, "SAVING_SHARE", 1e9)
            patch.setattr(Output, "save_unfinished", dying)
            with pytest.raises(Killed):
                fresh.baseline("1")
        return saved[-1]

    return make
