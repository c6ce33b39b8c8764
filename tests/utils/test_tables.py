"""Tables as aligned text."""

import math

import pytest

from utils.tables import Spread, aligned, as_text, plus_minus

HEADER = ("id", "task", "gain")
ROWS = [("1", "fish", "+0.5"), ("12", "a", "-")]


def test_names_are_aligned_left_and_numbers_right_between_rules() -> None:
    text = aligned(HEADER, ROWS, footer=("", "mean", "+0.500±0.1"), left=(1,))
    assert text.splitlines() == [
        "id  task        gain",
        "--------------------",
        " 1  fish        +0.5",
        "12  a              -",
        "--------------------",
        "    mean  +0.500±0.1",
    ]


def test_a_table_without_rules_or_footer() -> None:
    assert aligned(HEADER[1:], [row[1:] for row in ROWS], ruled=False).splitlines() == [
        "task  gain",
        "fish  +0.5",
        "a        -",
    ]
    assert aligned(HEADER[1:], [], footer=None).splitlines() == ["task  gain", "----------"]


def test_lines_have_no_trailing_spaces() -> None:
    assert aligned(("a", "b"), [("x", "")], left=(0, 1), ruled=False) == "a  b\nx"


@pytest.mark.parametrize(
    ("mean", "spread", "spec", "text"),
    [
        (0.5, 0.25, ".3f", "0.500±0.250"),
        (0.5, 0.25, "+.1f", "+0.5±0.2"),
        (-0.5, math.nan, "+.3f", "-0.500"),
    ],
)
def test_only_the_mean_has_a_sign_and_a_spread_may_be_unknown(
    mean: float, spread: float, spec: str, text: str
) -> None:
    assert plus_minus(mean, spread, spec=spec) == text


def test_a_wide_table_is_split_into_blocks_that_repeat_the_task() -> None:
    names = [f"gain{number}" for number in range(12)]
    rows = [{"id": 1, "task": "a_name_that_is_too_long", **dict.fromkeys(names, Spread(0.5, 0.25))}]
    blocks = as_text(rows, list(rows[0]), means=dict.fromkeys(names, "+0.500±0.125")).split("\n\n")
    assert len(blocks) == 3
    for block in blocks:
        assert max(map(len, block.splitlines())) <= 100
        assert block.splitlines()[2].startswith(" 1  a_name_that_is_…  +0.500±0.250")
    assert " ".join(block.splitlines()[0] for block in blocks).split() == [
        *("id", "task", *names[:5], "id", "task", *names[5:10], "id", "task", *names[10:])
    ]
