"""Tables as aligned text, and values with their spread."""

import math
from collections.abc import Collection, Sequence


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
