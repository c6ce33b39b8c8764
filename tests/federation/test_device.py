"""A device alone: it chooses and trains as the local pipeline does, and refuses what is not in order."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from federation.device import Device
from federation.rounds import COLUMNS, checked_row
from tests.federation.conftest import answers_to, learning
from tests.helpers import Fleet, assert_same_checkpoint
from training.checkpoints import load_checkpoint
from utils.errors import UserError
from utils.files import read_csv, read_json
from utils.paths import arguments_file

Make = Callable[..., dict[int, Device]]
TARGET = 3
NOISE = ("--probes", "noise")


def choice(paths) -> tuple[dict, list[dict]]:
    """The recorded choice of the target with its recipe, and its rows in the CSV of scores."""
    result, table = paths.result_csv("digits"), paths.table_csv("digits")
    rows = read_csv(table, columns=("target_id",), remedy="")
    recorded = read_json(arguments_file(result), remedy="")[str(TARGET)]
    return recorded, [row for row in rows if row["target_id"] == str(TARGET)]


@pytest.mark.parametrize(
    "search",
    [
        ("--select", "farthest", *NOISE),
        ("--select", "nearest", "--probes", "own"),
        ("--select", "rsa", *NOISE),
        ("--select", "cka", "--probes", "own"),
        ("--select", "leep", *NOISE),
        ("--select", "room", *NOISE),
        ("--select", "random", *NOISE),
        ("--backbone", "two_three", *NOISE),
    ],
    ids=lambda search: "-".join(search).replace("--", ""),
)
def test_a_target_chooses_as_the_local_search_does(
    make_devices: Make, fleet: Fleet, search: tuple[str, ...]
) -> None:
    fleet.search(
        "3", "--candidates", "1-2", "--max_iterations", "0", "--scores", "chosen", "--overwrite", *search
    )
    devices = make_devices(*search, shares_images="own" in search)
    ranking = devices[TARGET].rank(answers_to(TARGET, devices))["ranking"]
    local, here = choice(fleet.paths), choice(devices[TARGET].search.paths)
    assert here == local
    assert ranking["refused"] == []
    assert ranking["order"][0] == local[0]["chosen"]


def test_a_target_learns_the_weights_that_it_learns_locally(make_devices: Make, fleet: Fleet) -> None:
    devices = make_devices(*NOISE)
    ranking = devices[TARGET].rank(answers_to(TARGET, devices))["ranking"]
    row = devices[TARGET].learn(learning(TARGET, devices, on=1, ranking=ranking))["row"]
    assert row["backbone"] == "zero_one"
    assert set(row["widths"]) == {"1.0", "1.5", "2.0"}
    assert list(row) == list(COLUMNS)
    assert checked_row({"row": row}, devices[TARGET].task) == row
    # The small fleet's target was trained on the same backbone by the local pipeline.
    here = devices[TARGET].search.paths.target("digits", "zero_one", "four_five")
    for width in ("width-1.0", "width-1.5", "width-2.0"):
        assert_same_checkpoint(
            here / width / "checkpoint-4.pth.tar", fleet.target_folder() / width / "checkpoint-4.pth.tar"
        )


def test_a_device_holds_nothing_of_the_others_until_it_learns(make_devices: Make, tmp_path: Path) -> None:
    devices = make_devices(*NOISE)
    devices[TARGET].rank(answers_to(TARGET, devices))
    others = [path for path in (tmp_path / "four_five").rglob("*") if path.name in ("zero_one", "two_three")]
    assert others == []


def refused(devices: dict[int, Device], change: Callable[[dict], object]) -> str:
    """Why the target refuses candidate 1 after its message was changed; candidate 2 is chosen."""
    request = answers_to(TARGET, devices)
    change(request)
    ranking = devices[TARGET].rank(request)["ranking"]
    assert ranking["order"] == [2]
    (line,) = ranking["refused"]
    assert line.startswith("device zero_one is refused: ") and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda request: request["evidence.1"]["ddv_cos"].fill_(torch.nan), "not finite"),
        (lambda request: request["evidence.1"].update(ddv_euc=torch.zeros(7)), "float32 7"),
        (lambda request: request["evidence.1"].update(ddv_euc=[1.0]), "no tensor as ddv_euc"),
        (lambda request: request.update({"evidence.1": b"garbage"}), "lacks evidence.1"),
        (lambda request: request["answer.1"].update(scratch=5), "no str as scratch"),
        (lambda request: request["answer.1"].update(recorded={"room": "much"}), "no float as room"),
        (lambda request: request["answer.1"].update(scratch="x" * 5000), "more than 1000 characters"),
    ],
)
def test_an_answer_that_is_not_in_order_is_refused(
    make_devices: Make, change: Callable[[dict], object], reason: str
) -> None:
    assert reason in refused(make_devices(*NOISE), change)


def test_networks_that_are_not_in_order_are_refused(make_devices: Make) -> None:
    devices = make_devices("--select", "leep", *NOISE)
    assert "packed network" in refused(devices, lambda request: request.update({"network.1": b"garbage"}))
    other = devices[2].network()["network"]
    assert "holds two_three" in refused(devices, lambda request: request.update({"network.1": other}))
    announced = {"pruned": "0123456789abcdef"}
    assert "not the one that was announced" in refused(
        devices, lambda request: request["answer.1"].update(announced)
    )
    small = make_devices("--select", "leep", *NOISE, max_bytes=10_000)
    ranking = small[TARGET].rank(answers_to(TARGET, small))["ranking"]
    assert ranking["order"] == []
    assert all("limit of 10,000" in line for line in ranking["refused"][:2])


def test_a_network_with_nan_or_of_another_architecture_is_declined(make_devices: Make) -> None:
    from federation.packed import pack

    devices = make_devices(*NOISE)
    ranking = devices[TARGET].rank(answers_to(TARGET, devices))["ranking"]
    request = learning(TARGET, devices, on=1, ranking=ranking)
    candidate = devices[1].search
    path = next(candidate.own.pruned(devices[1].task).glob("checkpoint-*"))
    payload = load_checkpoint(path, architecture="lenet5", layers="sharable")
    payload["architecture"] = {"name": "vgg16_bn", "layers": "sharable"}
    request["network"] = pack(payload)
    assert "vgg16_bn" in devices[TARGET].learn(request)["declined"]["reason"]


def test_targets_with_other_settings_get_no_answer(make_devices: Make) -> None:
    devices = make_devices(*NOISE)
    said = devices[TARGET].announcement()["announcement"]
    changed = {"architecture": {"name": "other"}, "seed": 7, "pool": "another", "config": "cifar100"}
    for entry, value in changed.items():
        reply = devices[1].answer({"target.3": {**said, entry: value}})
        assert f"its {entry} is" in reply["declined.3"]["reason"]
        assert "evidence.3" not in reply


def test_images_leave_a_device_only_if_its_owner_allows_it(make_devices: Make) -> None:
    devices = make_devices("--probes", "own")
    with pytest.raises(UserError, match="shares-images=true"):
        devices[TARGET].announcement()
    assert "probes" not in make_devices(*NOISE, shares_images=True)[TARGET].announcement()


@pytest.mark.parametrize("rule", ["room", "random", "logme"])
def test_a_rule_without_probes_sends_no_images_and_no_evidence(make_devices: Make, rule: str) -> None:
    devices = make_devices("--select", rule, "--probes", "own")
    said = devices[TARGET].announcement()
    reply = devices[1].answer({f"target.{TARGET}": said["announcement"]})
    assert "probes" not in said and "probes" not in reply
    assert reply[f"evidence.{TARGET}"] == {}
    assert devices[TARGET].rank(answers_to(TARGET, devices))["ranking"]["refused"] == []


def test_evidence_is_what_the_rule_needs(make_devices: Make) -> None:
    request = answers_to(TARGET, make_devices("--select", "rsa", *NOISE))
    assert set(request["evidence.1"]) == {"rsa"}


def test_what_needs_both_networks_on_one_device_is_refused(make_devices: Make) -> None:
    devices = make_devices(*NOISE, "--max_iterations", "5")
    with pytest.raises(UserError, match="mutations need both networks on one device: give 0"):
        devices[TARGET].announcement()
