"""The server's rounds, with devices that answer from a script: every target ends, and the table says how."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data.tables import load_table
from federation import rounds
from federation.flags import parse_server
from federation.parts import ALONE, ANSWER, HELLO, LEARN, NETWORK, RANK, Parts, text_of, values_of
from federation.rounds import Failure, Reply, Server
from federation.state import State
from federation.table import main as table_main
from tests.helpers import refusal

NAMES = {1: "zero_one", 2: "two_three", 3: "four_five"}


def arrived(reply: Reply) -> Reply:
    """What the server reads of a reply, which may hold what no device here writes."""
    if isinstance(reply, Failure):
        return reply
    try:
        return {
            name: part if isinstance(part, bytes) else values_of(json.dumps(part))
            for name, part in reply.items()
        }
    except ValueError as error:
        return Failure(str(error))


class Devices:
    """Three devices that behave, except where `odd` says otherwise.

    Args:
        odd: (task's id, kind of message) → what it answers instead, or a function of the request.
        needs_networks: whether targets score networks at home.
    """

    def __init__(self, odd: Mapping = {}, *, needs_networks: bool = False) -> None:
        self.odd = dict(odd)
        self.needs_networks = needs_networks
        self.asked: list[tuple[int, str]] = []

    def nodes(self) -> list[int]:
        return [10, 20, 30]

    def ask(self, requests: Mapping[int, Parts], kind: str, *, deadline: float | None) -> dict[int, Reply]:
        replies = {}
        for node, request in requests.items():
            task = node // 10
            self.asked.append((task, kind))
            reply = self.odd.get((task, kind), self.usual)
            for part in request.values():
                assert isinstance(part, bytes) or text_of(part)
            replies[node] = arrived(reply(task, kind, request) if callable(reply) else reply)
        return replies

    def usual(self, task: int, kind: str, request: Parts) -> Reply:
        name = NAMES[task]
        if kind == HELLO:
            said = {"task": name, "id": task, "config": "digits", "needs_networks": self.needs_networks}
            return {"announcement": said}
        if kind == ANSWER:
            targets = [part.split(".")[1] for part in request if part.startswith("target.")]
            return {"answer": {"pruned": f"stamp{task}"}} | {f"evidence.{number}": {} for number in targets}
        if kind == NETWORK:
            return {"network": b"packed"}
        if kind == RANK:
            order = sorted(int(part.split(".")[1]) for part in request if part.startswith("answer."))
            return {"ranking": {"order": order, "stamp": {"select": "farthest"}, "refused": []}}
        backbone = NAMES[request["backbone"]["id"]] if kind == LEARN else None
        widths = {"1.0": 0.5} if kind == LEARN else {}
        return {"row": {"id": task, "task": name, "widths": widths, "own": 0.5, "backbone": backbone}}


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., State]:
    """Serve targets with such devices; returns the state."""
    monkeypatch.setattr(rounds, "POLL_SECONDS", 0.01)

    def run(devices: Devices, *flags: str) -> State:
        roots = ("--dataset_config", "digits", "--logs_root", str(tmp_path), "--data_root", str(tmp_path))
        args: argparse.Namespace = parse_server([*roots, "--devices", "1-3", "--wait", "0.1", *flags])
        table = load_table("digits", data_root=tmp_path)
        state = State.read(tmp_path / "lenet5/seed1/federation_digits.json", overwrite=args.overwrite)
        Server(devices, table=table, args=args, state=state).run()
        return State.read(state.path)

    return run


def backbones(state: State) -> dict[str, str | None]:
    return {name: entry["backbone"] for name, entry in state.targets.items()}


def test_every_target_learns_on_its_first_choice(serve: Callable) -> None:
    devices = Devices()
    state = serve(devices, "--dataset", "1-3")
    assert backbones(state) == {"zero_one": "two_three", "two_three": "zero_one", "four_five": "zero_one"}
    # Candidates answer all targets at once, and send their network once, whoever learns on it.
    assert sorted(devices.asked).count((1, ANSWER)) == 1
    assert devices.asked.count((1, NETWORK)) == 1 and (3, NETWORK) not in devices.asked


GONE = Failure("no answer within 2 s")


@pytest.mark.parametrize(
    ("odd", "backbone", "said"),
    [
        ({(1, HELLO): GONE}, "two_three", ""),
        ({(1, ANSWER): GONE}, "two_three", ""),
        ({(1, ANSWER): {}}, "two_three", ""),
        ({(1, ANSWER): {"answer": b"garbage"}}, "two_three", ""),
        (
            {(1, ANSWER): {"answer": {"pruned": "s"}, "declined.3": {"reason": "its seed is 2"}}},
            "two_three",
            "seed",
        ),
        (
            {
                (1, ANSWER): {
                    "answer": {"pruned": "s", "recorded": {"room": float("nan")}},
                    "evidence.3": {},
                }
            },
            "two_three",
            "",
        ),
        ({(1, NETWORK): GONE}, "two_three", "no answer within 2 s"),
        ({(1, NETWORK): {"network": {"not": "bytes"}}}, "two_three", "sent no network"),
        ({(1, NETWORK): GONE, (2, NETWORK): GONE}, None, "no answer within 2 s"),
        ({(1, HELLO): GONE, (2, HELLO): GONE}, None, ""),
        ({(3, RANK): GONE}, None, "made no choice"),
        ({(3, RANK): {"ranking": {"order": "1", "stamp": {}, "refused": []}}}, None, "no list as order"),
        ({(3, RANK): {"ranking": {"order": [[], 9, 2], "stamp": {}, "refused": []}}}, "two_three", ""),
    ],
)
def test_a_target_goes_on_with_who_is_left(
    serve: Callable, odd: Mapping, backbone: str | None, said: str
) -> None:
    state = serve(Devices(odd), "--dataset", "3")
    entry = state.targets["four_five"]
    assert entry["backbone"] == backbone
    assert said in " ".join(entry["refused"])
    assert "row" in entry


def test_a_declined_network_gives_way_to_the_next(serve: Callable) -> None:
    def declines(task: int, kind: str, request: Parts) -> Reply:
        if request["backbone"]["id"] == 1:
            return {"declined": {"reason": "device zero_one is refused: garbage"}}
        assert request["backbone"]["refused"] == ["device zero_one is refused: garbage"]
        return Devices().usual(task, kind, request)

    state = serve(Devices({(3, LEARN): declines}), "--dataset", "3")
    assert backbones(state) == {"four_five": "two_three"}


@pytest.mark.parametrize(
    "reply",
    [
        GONE,
        {},
        {"row": {"id": 3, "task": "four_five", "widths": {"x": 1.0}}},
        {"row": {"id": 2, "task": "two_three", "widths": {}}},
        {"row": {"id": 3, "task": "four_five", "widths": {}, "own": ["a list"]}},
        {"row": {"id": 3, "task": "four_five", "widths": {"²": 0.5}}},
        {"row": {"id": 3, "task": "four_five", "widths": {"1.0": "abc"}}},
        {"row": {"id": 3, "task": "four_five", "widths": {"1.0": None}}},
        {"row": {"id": 3, "task": "four_five", "widths": {}, "own": 1.5}},
        {"row": {"id": 3, "task": "four_five", "widths": {}, "backbone": "\x1b[2J"}},
        {"row": {"id": 3, "task": "four_five", "widths": {}, "backbone": "\ud800"}},
        {"row": {"id": 3, "task": "four_five", "widths": {}, "unknown\n": 0.5}},
    ],
)
def test_a_target_that_gives_no_row_does_not_stop_the_others(
    serve: Callable, reply: Reply, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = serve(Devices({(3, LEARN): reply}), "--dataset", "1-3")
    assert "failed" in state.targets["four_five"] and "row" in state.targets["zero_one"]
    flags = ["--dataset_config", "digits", "--dataset", "1-3", "--logs_root", str(tmp_path)]
    assert (
        refusal(table_main, flags)
        == "error: 1 targets are not trained: four_five: run the same command again"
    )
    printed = capsys.readouterr().out
    assert "zero_one learned on the network of two_three" in printed and "four_five is not trained" in printed


def test_a_round_that_fails_does_not_stop_the_others(serve: Callable) -> None:
    def fails(task: int, kind: str, request: Parts) -> Reply:
        raise ValueError("out of range")

    state = serve(Devices({(1, LEARN): fails}), "--dataset", "1-3")
    assert state.targets["zero_one"] == {"failed": "the server failed: ValueError: out of range"}
    assert "row" in state.targets["two_three"] and "row" in state.targets["four_five"]


def test_what_a_target_says_of_others_is_kept_as_printable_lines(serve: Callable) -> None:
    ranking = {"order": [1], "stamp": {}, "refused": ["two\nlines", "\x1b[2J", "x" * 5000] * 100}
    lines = serve(Devices({(3, RANK): {"ranking": ranking}}), "--dataset", "3").targets["four_five"][
        "refused"
    ]
    assert lines[:3] == ["two\\nlines", "\\x1b[2J", "x" * 500]
    assert len(lines) == 100


def test_two_devices_that_say_the_same_task_count_once(serve: Callable) -> None:
    twin = {"announcement": {"task": "zero_one", "id": 1, "config": "digits", "needs_networks": False}}
    devices = Devices({(2, HELLO): twin})
    assert backbones(serve(devices, "--dataset", "3")) == {"four_five": "zero_one"}
    assert (2, ANSWER) not in devices.asked


def test_a_server_that_starts_again_keeps_what_is_finished(serve: Callable) -> None:
    serve(Devices({(3, LEARN): GONE}), "--dataset", "1-3")
    again = Devices()
    state = serve(again, "--dataset", "1-3")
    assert [task for task, kind in again.asked if kind == LEARN] == [3]
    assert backbones(state) == {"zero_one": "two_three", "two_three": "zero_one", "four_five": "zero_one"}
    redone = Devices()
    serve(redone, "--dataset", "3", "--overwrite")
    assert (3, LEARN) in redone.asked


def test_a_finished_target_keeps_its_row_while_its_device_is_away(
    serve: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    finished = serve(Devices(), "--dataset", "3").targets["four_five"]
    away = serve(Devices({(3, HELLO): GONE}), "--dataset", "3").targets["four_five"]
    assert away == finished | {"failed": "its device is not there"}
    flags = ["--dataset_config", "digits", "--dataset", "3", "--logs_root", str(tmp_path)]
    assert "1 targets are not trained: four_five" in refusal(table_main, flags)
    assert "four_five keeps an earlier run's row: its device is not there" in capsys.readouterr().out
    assert serve(Devices(), "--dataset", "3").targets["four_five"] == finished


def test_bytes_are_counted_for_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for rule, counted in (("farthest", 10), ("farthest", 20), ("room", 10)):
        state = State.read(path)
        state.count(HELLO, sent=10)
        state.count_for({"fish": {"rules": rule}})
        state.fail("fish", "gone")
        assert State.read(path).messages[HELLO]["sent"] == counted


def test_networks_travel_before_the_choice_if_the_rule_needs_them(serve: Callable) -> None:
    seen = []

    def rank(task: int, kind: str, request: Parts) -> Reply:
        seen.append(sorted(name for name in request if name.startswith("network.")))
        return Devices().usual(task, kind, request)

    devices = Devices({(3, RANK): rank, (1, NETWORK): GONE}, needs_networks=True)
    assert backbones(serve(devices, "--dataset", "3")) == {"four_five": "two_three"}
    assert seen == [["network.2"]]
    assert (3, ALONE) not in devices.asked
