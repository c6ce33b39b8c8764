"""A quick campaign with a fixed seed; bash tests/robustness/campaign.sh runs for hours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.robustness.campaign import damage, inputs, kills
from tests.robustness.campaign.lines import Line, Results, table

# Part → how often, and which stages.
PARTS = {
    kills.PART: (4, ("stage 1", "stage 2-1", "stage 2-2", "stage 3-1")),
    inputs.PART: (30, ("stage 1", "stage 2-1", "stage 2-2", "stage 3-1")),
    damage.PART: (6, ("stage 2-2",)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks, and reads the clocks of processes")
def test_a_quick_campaign_finds_nothing(tmp_path: Path) -> None:
    # In a process of its own: a fork copies one thread only, and PyTorch may have started others here.
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.robustness.campaign.__main__ import PARTS, Campaign\n"
        "from tests.robustness.campaign.stages import BY_NAME\n"
        f"for part, (count, names) in {PARTS!r}.items():\n"
        "    stages = [BY_NAME[name] for name in names]\n"
        f"    campaign = Campaign(Path({str(tmp_path)!r}), stages=stages, seed=1, count=count)\n"
        "    campaign.until = float('inf')\n"
        "    PARTS[part][0](campaign)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = Results(tmp_path)
    for part, (count, _) in PARTS.items():
        assert results.tried(part) >= count
    assert all(line.is_clean for line in results.lines), run.stderr[-3000:]


def test_the_table_sums_up_the_attempts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(Line("kills", "stage 1", 0, tried=3, notes={"late": 2}))
    results.add(Line("kills", "stage 1", 1, tried=2, differing=["a", "b"]))
    results.add(Line("inputs", "tables", 0, tried=1, tracebacks=["x"]))
    again = Results(tmp_path)
    assert (again.tried("kills"), again.attempts("kills", "stage 1")) == (5, 2)
    rows = table(again).splitlines()[2:]
    assert rows[0] == "| kills | stage 1; late: 2 | 5 | 0 | 2 | 0 | 0 |"
    assert rows[-1] == "| inputs | **all** | 1 | 0 | 0 | 1 | 0 |"
