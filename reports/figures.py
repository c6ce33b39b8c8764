"""The parts of a report: sections of figures, each with its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Numbers:
    """A table.

    Args:
        columns: their headings, which are also the keys of the rows.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A chart and the numbers behind it.

    Attributes:
        id: unique in the report; also the name of its files.
        text: what it shows, in a sentence or two.
        chart: Vega-Lite specification; None for a table alone.
        table: the numbers to read.
        data: the numbers to download, where they are more than `table`.
    """

    id: str
    title: str
    text: str
    table: Numbers
    chart: Mapping[str, Any] | None = None
    data: Numbers | None = None

    @property
    def numbers(self) -> Numbers:
        """The numbers to download."""
        return self.data or self.table


@dataclass(frozen=True)
class Fact:
    """A number at the top of a section."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        text: an introduction.
        facts: the main results.
    """

    id: str
    title: str
    text: str = ""
    facts: Sequence[Fact] = ()
    figures: Sequence[Figure] = field(default_factory=tuple)
