"""Messages in the words of the caller."""

import logging
import subprocess
import sys

import pytest

from pipeline import flags
from tests.helpers import REPOSITORY
from utils import logs
from utils.errors import in_callers_words


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "use the same ones, or --overwrite to redo this stage, or --run NAME to keep both",
            "use the same ones, or OVERWRITE=1 to redo this stage, or RUN=NAME to keep both",
        ),
        (
            "x exceeds --max_allowed_network_width_multiplier 2.0: raise it",
            "x exceeds MAX_WIDTH=2.0: raise it",
        ),
        ("correct --arch or the folder", "correct ARCH or the folder"),
        ("run `spg_main.py --seq a --overwrite`", "run `spg_main.py --seq a --overwrite`"),
        ("give --jsonfile, --overwritten or a--run", "give --jsonfile, --overwritten or a--run"),
    ],
)
def test_a_stage_names_its_variables_and_python_its_flags(
    message: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INSIDE_A_STAGE", raising=False)
    assert in_callers_words(message) == message
    monkeypatch.setenv("INSIDE_A_STAGE", "1")
    assert in_callers_words(message) == shown


def test_log_lines_and_wrong_values_name_variables_in_a_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INSIDE_A_STAGE", "1")
    logs.to_terminal()
    logging.info("skipped (--overwrite redoes it)")
    parser = flags.parser("")
    flags.add_stage_values(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--lr", "-1"])
    shown = capsys.readouterr().err
    assert "skipped (OVERWRITE=1 redoes it)" in shown
    assert "error: argument LR: must be " in shown


def test_output_that_nobody_reads_any_more_ends_without_a_traceback() -> None:
    code = "from utils.errors import run; run(lambda argv: [print('line' * 100) for _ in range(10_000)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 1)
