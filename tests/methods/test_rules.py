"""The rules that choose a backbone."""

import re
from pathlib import Path

import pytest

from data.tables import RESERVED
from methods.rules import RULES, SCORES, choose, ranking, score_of
from tests.helpers import REPOSITORY


def test_the_highest_score_wins_and_nearest_takes_the_lowest() -> None:
    scores = {3: 0.2, 1: 0.5, 2: 0.1}
    assert choose(scores, rule="farthest", seed=0) == 1
    assert choose(scores, rule="nearest", seed=0) == 2
    assert choose(scores, rule="leep", seed=0) == 1


def test_the_random_choice_depends_on_the_seed_alone() -> None:
    scores = {3: 0.2, 1: 0.5, 2: 0.1}
    assert {choose(scores, rule="random", seed=seed) for seed in range(30)} == {1, 2, 3}
    backwards = dict(reversed(scores.items()))
    assert choose(scores, rule="random", seed=5) == choose(backwards, rule="random", seed=5)


@pytest.mark.parametrize("rule", ["farthest", "nearest", "cka"])
def test_the_lowest_id_wins_a_tie(rule: str) -> None:
    assert choose({4: 0.5, 2: 0.5}, rule=rule, seed=0) == 2


def test_the_lower_loss_wins_a_tie_in_a_race_then_the_lowest_id() -> None:
    scores = {5: 0.5, 4: 0.5, 2: 0.5, 1: 0.4}
    assert choose(scores, rule="race", seed=0, losses={5: 0.2, 4: 0.2, 2: 0.3, 1: 0.1}) == 4


def test_candidates_are_ranked_as_they_would_be_chosen() -> None:
    scores = {3: 0.2, 1: 0.5, 2: 0.2, 4: 0.1}
    assert ranking(scores, rule="leep", seed=0) == [1, 2, 3, 4]
    assert ranking(scores, rule="nearest", seed=0) == [4, 2, 3, 1]
    drawn = [tuple(ranking(scores, rule="random", seed=seed)) for seed in range(20)]
    assert len(set(drawn)) > 1 and {tuple(sorted(order)) for order in drawn} == {(1, 2, 3, 4)}


def test_every_rule_goes_by_a_score_of_the_table() -> None:
    assert {score_of(rule) for rule in RULES} == {"ddv_euc", None, *SCORES}


def test_a_task_cannot_be_called_as_a_rule() -> None:
    assert {*RULES} <= {*RESERVED}


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("run_pickaback/lib.sh", r"RULES=\((.*?)\)"),
        ("docs/rules.md", r"^\| `(\w+)`"),
    ],
)
def test_the_stages_and_the_documentation_know_every_rule(file: str, pattern: str) -> None:
    text = Path(REPOSITORY / file).read_text(encoding="utf-8")
    found = " ".join(re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)).split()
    assert sorted(found) == sorted(RULES)
