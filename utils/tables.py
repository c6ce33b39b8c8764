"""Tables as aligned text, and values with their spread."""

import math
from collections.abc import Collection, Mapping, Sequence

from utils.metrics import mean_and_error


def aligned(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: Sequence[str] | None = None,
    left: Collection[int] = (0,),
    ruled: bool = True,
) -> str:
    """Align the cells of a table in columns that are two spaces apart.

    Args:
        header, footer: the first row and the last, such as the means; None leaves out the last.
        left: indices of the columns that are aligned to the left, as names are; the others, to the right.
        ruled: draw a rule below the header and another above the footer.
    """
    cells = [header, *rows, *([] if footer is None else [footer])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    if ruled:
        rule = "-" * max(map(len, lines))
        lines.insert(1, rule)
        if footer is not None:
            lines.insert(-1, rule)
    return "\n".join(lines)


def plus_minus(mean: float, spread: float, *, spec: str = ".3f") -> str:
    """Format `mean±spread`; the mean alone where the spread is NaN.

    Args:
        spec: format of both; a sign that it demands is shown on the mean alone.
    """
    shown = format(mean, spec)
    return shown if math.isnan(spread) else f"{shown}±{format(spread, spec.lstrip('+'))}"


def as_text(rows: Sequence[Mapping], columns: Sequence[str]) -> str:
    """One row per task as aligned text; the last line holds the means over tasks.

    Columns whose name begins with "gain" are shown with their sign.
    """
    means = {name: mean_of([row[name] for row in rows], signed=name.startswith("gain")) for name in columns}
    means |= {"id": "", "task": "mean"}
    names = [index for index, name in enumerate(columns) if any(isinstance(row[name], str) for row in rows)]
    return aligned(
        columns,
        [[shown(name, row[name]) for name in columns] for row in rows],
        footer=[means[name] for name in columns],
        left=names,
    )


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
    if not isinstance(value, float) or name == "ratio":
        return str(value)
    return f"{value:+.3f}" if name.startswith("gain") else f"{value:.3f}"
