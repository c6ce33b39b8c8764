"""Tables as aligned text, and values with their spread."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from utils.metrics import mean_and_error

WIDEST_LINE = 100
LONGEST_NAME = 16
_GAP = 2


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its standard deviation, NaN for a single seed."""

    mean: float
    deviation: float


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: Sequence[str] | None = None,
    more: Sequence[Sequence[str]] = (),
    left: Collection[int] = (0,),
    ruled: bool = True,
) -> str:
    """Align the cells of a table in columns that are two spaces apart.

    Args:
        header, footer: the first row and the last, such as the means; None leaves out the last.
        more: further rows below the footer.
        left: indices of the columns that are aligned to the left, as names are; the others, to the right.
        ruled: draw a rule below the header and another above the footer.
    """
    cells = [header, *rows, *([] if footer is None else [footer, *more])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        (" " * _GAP)
        .join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in cells
    ]
    if ruled:
        rule = "-" * max(map(len, lines))
        lines.insert(1, rule)
        if footer is not None:
            lines.insert(2 + len(rows), rule)
    return "\n".join(lines)


def plus_minus(mean: float, spread: float, *, spec: str = ".3f") -> str:
    """Format `mean±spread`; the mean alone where the spread is NaN.

    Args:
        spec: format of both; a sign that it demands is shown on the mean alone.
    """
    shown = format(mean, spec)
    return shown if math.isnan(spread) else f"{shown}±{format(spread, spec.lstrip('+'))}"


def as_text(
    rows: Sequence[Mapping],
    columns: Sequence[str],
    *,
    means: Mapping[str, str] | None = None,
    heads: int = 2,
) -> str:
    """One row per task as aligned text, in blocks of at most `WIDEST_LINE` characters per line.

    The last lines hold the means over tasks and, unless `means` is given, their standard errors. Columns
    whose name begins with "gain" are shown with their sign. Long names are cut.

    Args:
        means: the last line's cells by column.
        heads: number of columns, from the left, that every block repeats.
    """
    names = {name for name in columns if any(isinstance(row[name], str) for row in rows)}
    if means is None:
        footers = [{"task": "mean"}, {"task": "±"}]
        for name in set(columns) - {"id"} - names:
            mean, _, error = mean_of([row[name] for row in rows], signed=is_signed(name)).partition("±")
            footers[0][name], footers[1][name] = mean, error
        if not any(footers[1][name] for name in footers[1] if name != "task"):
            del footers[1]
    else:
        footers = [{"task": "mean", **means}]
    cells = {
        name: [name, *(_cut(shown(name, row[name])) for row in rows)]
        + [footer.get(name, "") for footer in footers]
        for name in columns
    }
    texts = []
    for block in _blocks(columns, cells, heads=heads):
        lines = list(zip(*(cells[name] for name in block), strict=True))
        texts.append(
            aligned(
                lines[0],
                lines[1 : 1 + len(rows)],
                footer=lines[1 + len(rows)],
                more=lines[2 + len(rows) :],
                left=[index for index, name in enumerate(block) if name in names],
            )
        )
    return "\n\n".join(texts)


def _blocks(
    columns: Sequence[str], cells: Mapping[str, Sequence[str]], *, heads: int
) -> Sequence[Sequence[str]]:
    """The columns in groups that fit a line, each group beginning with the first `heads` columns."""
    widths = {name: max(map(len, cells[name])) + _GAP for name in columns}
    first = list(columns[:heads])
    blocks = [first]
    for name in columns[heads:]:
        if sum(widths[other] for other in [*blocks[-1], name]) - _GAP > WIDEST_LINE:
            blocks.append(first)
        blocks[-1] = [*blocks[-1], name]
    return blocks


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def is_signed(name: str) -> bool:
    """Whether the values of the column `name` are shown with their sign."""
    return name.startswith("gain")


def mean_of(values: Sequence, *, signed: bool = False) -> str:
    """Mean ± standard error of the numbers among `values`; empty if any value is a name."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers or any(isinstance(value, str) for value in values):
        return ""
    return plus_minus(*mean_and_error(numbers), spec="+.3f" if signed else ".3f")


def shown(name: str, value: object) -> str:
    """Format one cell of the column `name`."""
    if value is None:
        return "-"
    spec = "+.3f" if is_signed(name) else ".3f"
    if isinstance(value, Spread):
        return plus_minus(value.mean, value.deviation, spec=spec)
    if not isinstance(value, float) or name == "ratio":
        return str(value)
    return format(value, spec)
