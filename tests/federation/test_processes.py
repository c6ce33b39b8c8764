"""A federation of real processes: what goes wrong on one device, or on the server, stops no target."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from tests.federation.processes import DEADLINE, Federation
from tests.helpers import REPOSITORY, Fleet, assert_same_checkpoint

NOISE = ("--probes", "noise")
# Every fault takes minutes on a slow machine: the others run with FEDERATION_FAULTS=1.
FAULTS = [
    ("answer:vanish", "two_three", ""),
    ("network:vanish", "two_three", "device zero_one is passed over"),
    ("sending:vanish", "two_three", "device zero_one is passed over"),
    ("answer:late", "two_three", ""),
    ("answer:nan", "two_three", "not finite"),
    ("answer:garbage", "two_three", ""),
    ("network:garbage", "two_three", "device zero_one is refused"),
    ("network:bomb", "two_three", "more than the limit of 1,000,000"),
]
all_faults = pytest.mark.skipif(
    os.environ.get("FEDERATION_FAULTS") != "1", reason="FEDERATION_FAULTS=1 runs it"
)


@pytest.fixture
def federation(trained_fleet: Fleet, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(root=tmp_path, fleet=trained_fleet)
    yield made
    made.stop()


def test_a_federation_trains_what_the_pipeline_trains(federation: Federation, fleet: Fleet) -> None:
    federation.superlink()
    for task in ("zero_one", "two_three", "four_five"):
        federation.device(task, *NOISE)
    targets = federation.serve("--dataset", "2-3", "--devices", "1-3", deadline=4 * DEADLINE)
    assert targets["four_five"]["backbone"] == "zero_one"
    assert targets["two_three"]["backbone"] in ("zero_one", "four_five")
    own = Fleet(root=federation.root / "four_five", data=federation.root)
    for width in ("width-1.0", "width-1.5", "width-2.0"):
        name = f"{width}/checkpoint-4.pth.tar"
        assert_same_checkpoint(own.target_folder() / name, fleet.target_folder() / name)


@all_faults
@pytest.mark.parametrize(("odd", "backbone", "said"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_target_goes_on_without_an_odd_device(
    federation: Federation, odd: str, backbone: str, said: str
) -> None:
    federation.superlink()
    federation.device("zero_one", *NOISE, odd=odd)
    federation.device("two_three", *NOISE)
    federation.device("four_five", *NOISE)
    targets = federation.serve("--dataset", "3", "--devices", "1-3")
    entry = targets["four_five"]
    assert entry["backbone"] == backbone
    assert said in " ".join(entry["refused"])


@all_faults
def test_only_known_devices_connect_over_tls(trained_fleet: Fleet, tmp_path: Path) -> None:
    keys = tmp_path / "certificates"
    names = ("zero_one", "two_three", "four_five")
    script = REPOSITORY / "run_pickaback/federation_keys.sh"
    subprocess.run(["bash", script, keys, "127.0.0.1", *names], check=True)
    federation = Federation(root=tmp_path, fleet=trained_fleet, certificates=keys)
    try:
        federation.superlink()
        assert [federation.register(task) for task in ("zero_one", "four_five")] == [0, 0]
        log = federation.device("two_three", *NOISE)  # nobody registered its key
        for task in ("zero_one", "four_five"):
            federation.device(task, *NOISE)
        targets = federation.serve("--dataset", "3", "--devices", "1,3")
        assert targets["four_five"]["backbone"] == "zero_one"
        connected = "SuperNode ID"
        assert connected not in log.read_text() and connected in (tmp_path / "zero_one/log").read_text()
    finally:
        federation.stop()


@all_faults
def test_a_server_that_is_killed_and_started_again_goes_on(federation: Federation) -> None:
    federation.superlink()
    for task in ("zero_one", "two_three", "four_five"):
        federation.device(task, *NOISE)
    federation.begin("--dataset", "2-3", "--devices", "1-3")
    log = federation.root / "logs/lenet5/seed1/federated_digits.log"
    for _ in range(int(20 * DEADLINE)):
        if log.exists() and "learns on" in log.read_text():
            break
        time.sleep(0.5)
    federation.kill("server")
    federation.superlink()
    targets = federation.serve("--dataset", "2-3", "--devices", "1-3")
    assert all("row" in targets[task] for task in ("two_three", "four_five"))
