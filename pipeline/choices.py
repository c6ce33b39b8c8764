"""The CSV files of the search: chosen backbones, by rule and the last choice, and the candidates' scores."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.rules import DISTANCES, RULES, SCORES
from pipeline.fleet import CHOSEN, read_arguments, read_choices
from training.outputs import Unfinished, require_same
from utils.files import read_csv, update_csv, update_json
from utils.paths import Paths, arguments_file

RESULT_COLUMNS = ("target_id", "task_id")
TABLE_COLUMNS = ("target_id", "task_id", *DISTANCES)
# The rule of a backbone that --backbone names.
GIVEN = "given"
_REMEDY = "delete it to start a new one"
# Longer lists are recorded by their hash: otherwise the arguments of N targets that choose among N candidates
# would fill N² lines.
_LONGEST = 100


@dataclass(frozen=True)
class ChoiceFile:
    """A CSV of chosen backbones, with the arguments that made each choice beside it."""

    path: Path

    def chosen(self, target: int) -> str | None:
        """The id of the target's backbone; None if none is chosen."""
        if not self.path.exists():
            return None
        return read_choices(self.path, remedy=_REMEDY).get(str(target))

    def arguments(self, target: int) -> dict:
        """The arguments that made the target's choice, as recorded; {} if they are not."""
        found = read_arguments(arguments_file(self.path), str(target))
        return recorded({name: value for name, value in found.items() if name != CHOSEN})

    def write(self, target: int, chosen: str, stamp: Mapping) -> None:
        """Write the target's choice, unless the file holds it.

        Args:
            stamp: as recorded.
        """
        if self.chosen(target) == chosen and self.arguments(target) == stamp:
            return
        where = {"columns": RESULT_COLUMNS, "replace": {"target_id": str(target)}}
        # Remove the earlier row first: a kill in between must not leave it with the new recipe.
        update_csv(self.path, [], **where)
        update_json(arguments_file(self.path), {str(target): {**stamp, CHOSEN: int(chosen)}})
        update_csv(self.path, [{"target_id": target, "task_id": chosen}], **where)


class Choices:
    """The choices of one rule, beside those of other rules, and the published file, of the last choices.

    Stamps are given whole, and written and compared as `recorded`.

    Args:
        path: the only file, if the choices are not kept by rule; None: from the layout.
    """

    def __init__(self, *, paths: Paths, config: str, among: str, rule: str, path: Path | None) -> None:
        self.rule = rule
        self.by_rule = path is None
        self.last = ChoiceFile(path or paths.result_csv(config, among=among))
        self._of = lambda name: ChoiceFile(path or paths.result_csv(config, among=among, rule=name))

    @property
    def own(self) -> ChoiceFile:
        """The file of the rule's choices."""
        return self._of(self.rule)

    def finished(self, target: int, stamp: Mapping) -> str | None:
        """The target's backbone if the rule has chosen it already with these arguments.

        Another rule's last choice counts for nothing, nor does another task given by name.

        Raises:
            UserError: if the rule chose it with other arguments.
        """
        stamp = recorded(stamp)
        for file in dict.fromkeys((self.own, self.last)):
            chosen, made_with = file.chosen(target), file.arguments(target)
            if chosen is None or (self.by_rule and self._is_another(made_with, stamp)):
                continue
            require_same(made_with, stamp, where=file.path)
            return chosen
        return None

    def _is_another(self, made_with: Mapping, stamp: Mapping) -> bool:
        rule = rule_of(made_with)
        return rule not in (self.rule, None) or (rule == GIVEN and made_with["select"] != stamp["select"])

    def keep(self, target: int, chosen: str, stamp: Mapping, *, listing: bool = False) -> None:
        """Make a finished choice the last one.

        Raises:
            Unfinished: if it is not yet, and work is only being listed.
        """
        stamp = recorded(stamp)
        if self.last.chosen(target) == chosen and self.last.arguments(target) == stamp:
            return
        if listing:
            raise Unfinished
        self.write(target, chosen, stamp)
        logging.info("The last choice of target %d is now that by %s: %s", target, self.rule, self.last.path)

    def write(self, target: int, chosen: str, stamp: Mapping) -> None:
        """Write the target's choice to the rule's file and as the last one."""
        stamp = recorded(stamp)
        before, made_with = self.last.chosen(target), self.last.arguments(target)
        rule = rule_of(made_with)
        # Earlier versions wrote only the last choice.
        if before is not None and rule not in (self.rule, None) and self._of(rule).chosen(target) is None:
            self._of(rule).write(target, before, made_with)
        self.own.write(target, chosen, stamp)
        self.last.write(target, chosen, stamp)


def recorded(stamp: Mapping) -> dict[str, Any]:
    """A stamp as the files of arguments hold it, with a long list replaced by its length and hash."""
    return {name: _shortened(value) if _is_long(value) else value for name, value in stamp.items()}


def _is_long(value: object) -> bool:
    return isinstance(value, list) and len(value) > _LONGEST


def _shortened(value: list) -> str:
    digest = hashlib.sha256("\n".join(map(str, value)).encode()).hexdigest()
    return f"{len(value)} of them, sha256:{digest[:32]}"


def rule_of(stamp: Mapping) -> str | None:
    """The rule that a choice was made by; None if no known one is recorded."""
    select = stamp.get("select")
    if not isinstance(select, str):
        return None
    if select.startswith("backbone "):
        return GIVEN
    return select if select in RULES else None


def write_scores(
    path: Path, target: int, scores: Mapping[int, Mapping[str, float]], *, stamp: Mapping
) -> None:
    """Replace the target's rows in the CSV of scores.

    Scores that were computed for no candidate keep their values if the same networks and samples gave them,
    or stay empty.

    Args:
        scores: candidate's id → score's name → value.
        stamp: what the scores were computed from.
    """
    replaced = {"target_id": str(target)}
    kept: dict[str, Mapping[str, str]] = {}
    stamp = recorded(stamp)
    if path.exists() and recorded(read_arguments(arguments_file(path), str(target))) == stamp:
        rows = read_csv(path, columns=TABLE_COLUMNS, remedy=_REMEDY)
        kept = {row["task_id"]: row for row in rows if row["target_id"] == str(target)}
    computed = {name for values in scores.values() for name in values}
    rows = [
        {
            name: "" if name in computed else kept.get(str(candidate), {}).get(name, "")
            for name in (*DISTANCES, *SCORES)
        }
        | {"target_id": target, "task_id": candidate}
        | {name: f"{value:.6f}" for name, value in values.items()}
        for candidate, values in scores.items()
    ]
    update_csv(path, [], columns=TABLE_COLUMNS, added=SCORES, replace=replaced)
    update_json(arguments_file(path), {str(target): stamp})
    update_csv(path, rows, columns=TABLE_COLUMNS, added=SCORES, replace=replaced)
