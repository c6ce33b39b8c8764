"""Flower's side: records to and from parts, deadlines, second answers, limits; without any process."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation import server
from federation.messages import from_content, size_of, to_content
from federation.parts import ANSWER
from federation.rounds import Failure
from federation.server import FlowerPost
from federation.state import State
from tests.helpers import same
from utils.errors import UserError

PARTS = {
    "values": {"name": "fish", "numbers": [1, 2.5, None], "empty": {}},
    "nothing": {},
    "bytes": bytes(range(256)),
    "tensors": {"ddv": torch.randn(50), "gram": torch.randn(3, 3, dtype=torch.float64)},
}


def test_parts_survive_the_journey() -> None:
    assert same(from_content(to_content(PARTS)), PARTS)
    assert size_of(to_content({"bytes": bytes(10_000)})) > 10_000


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"json": "[1, 2]"}),
        ConfigRecord({"json": "{" * 100_000}),
        ConfigRecord({"json": 5}),
        ConfigRecord({"json": '{"recorded": {"room": NaN}}'}),
        ConfigRecord({"json": '{"room": 1e999}'}),
        ConfigRecord({"json": '{"task": "\\ud800"}'}),
        ConfigRecord({"json": '"' + "x" * (2 << 20) + '"'}),
        MetricRecord({"loss": 0.5}),
        ArrayRecord({"x": Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"no array")}),
        ArrayRecord({"x": Array(dtype="float32", shape=(3,), stype="pickle", data=b"no array")}),
    ],
)
def test_records_that_nobody_here_writes_are_refused(record: object) -> None:
    content = RecordDict()
    content["part"] = record
    with pytest.raises(UserError, match="its message holds no valid 'part'"):
        from_content(content)


class Grid:
    """A grid on which the answers are given in advance, by round of `pull_messages`."""

    def __init__(self, *rounds: Sequence[tuple[int, object]]) -> None:
        self.rounds = list(rounds)

    def push_messages(self, messages: Sequence) -> list[str]:
        return [f"m{message.metadata.dst_node_id}" for message in messages]

    def pull_messages(self, _: Sequence[str]) -> list:
        found = self.rounds.pop(0) if self.rounds else []
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=f"m{node}"),
                content=content,
                error=SimpleNamespace(code=5, reason="SuperNode unavailable") if content is None else None,
                has_error=lambda content=content: content is None,
            )
            for node, content in found
        ]


def message(content: RecordDict, *, dst_node_id: int, **_: object) -> SimpleNamespace:
    return SimpleNamespace(content=content, metadata=SimpleNamespace(dst_node_id=dst_node_id))


def ask(*rounds: Sequence[tuple[int, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(server, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(server, "Message", message)  # Flower's belongs to a run
    post = FlowerPost(Grid(*rounds), max_bytes=5000, state=State.read(tmp_path / "state.json"))
    return post.ask({1: {}, 2: {}}, ANSWER, deadline=0.1)


def test_the_first_answer_counts_and_a_late_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (to_content({"answer": {"number": number}}) for number in (1, 2))
    replies = ask([(1, first), (1, second)], [(1, second)], tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert replies == {1: {"answer": {"number": 1}}, 2: Failure("no answer in time")}


def test_a_bomb_an_error_and_garbage_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = to_content({"network": bytes(10_000)})
    replies = ask([(1, bomb), (2, None)], tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert "more than the limit of 5,000" in replies[1].reason
    assert replies[2] == Failure("it has gone")
    said = to_content({"error": {"reason": "its disk is full"}})
    garbage = RecordDict({"answer": ConfigRecord({"json": "garbage"})})
    replies = ask([(1, said), (2, garbage)], tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert replies[1] == Failure("its disk is full")
    assert "no valid 'answer'" in replies[2].reason
