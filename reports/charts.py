"""The kinds of charts in a report, as Vega-Lite specifications made by Altair.

Rows are dictionaries. Colours and fonts of axes, legends and titles belong to the page (`reports/page.css`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import altair as alt

Rows = Sequence[Mapping[str, Any]]
Channel = TypeVar("Channel", alt.Color, alt.Shape)

# After Okabe and Ito (2008), darkened until each contrasts 3:1 with the page in both colour schemes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#B5649A", "#A87900", "#7A7A7A", "#3C8FC4", "#8C6BB1")
SHAPES = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)
NEUTRAL = "#7A7A7A"
FREE = "free"  # the series of weights that no task owns
SEQUENTIAL = "cividis"
DIVERGING = ("#B35806", "#F7F7F7", "#0072B2")

# Width of one of several small charts; the page changes it with the number of columns that fit.
SMALL = {"width": 200, "height": 120}
_COLUMNS = 4
_SPACING = {"row": 40, "column": 24}  # rows have room for a heading
_LONG = 24  # characters of a name that needs more room on a phone
_MANY = 10  # cells per side of a heat map that leave room for numbers


def dots(
    rows: Rows,
    *,
    x: str,
    series: Sequence[str],
    tasks: Sequence[str],
    zero_line: bool = False,
    format: str = ".3f",
) -> dict:
    """Mean and interval of every series, task by task.

    Args:
        rows: task, series, mean, low, high, seeds.
        x: title of the axis.
        series: names in the order of the legend.
        zero_line: draw a line at 0, for differences.
    """
    base = alt.Chart(_data()).encode(
        y=alt.Y("task:N", sort=list(tasks), title=None, axis=alt.Axis(grid=True)),
        yOffset=alt.YOffset("series:N", sort=list(series)),
        color=_colour(series),
    )
    scale = alt.Scale(domain=_domain(rows, zero=zero_line), nice=True)
    intervals = base.mark_rule(strokeWidth=2, clip=True).encode(
        x=alt.X("low:Q", title=x, scale=scale, axis=alt.Axis(tickCount=6)), x2=alt.X2("high:Q")
    )
    means = base.mark_point(filled=True, size=45, opacity=1).encode(
        x=alt.X("mean:Q", title=x, scale=scale, axis=alt.Axis(tickCount=6)),
        shape=_shape(series),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("series:N", title="network"),
            alt.Tooltip("mean:Q", format=format),
            alt.Tooltip("low:Q", format=format),
            alt.Tooltip("high:Q", format=format),
            alt.Tooltip("seeds:Q", title="values"),
        ],
    )
    layers = [intervals, means]
    if zero_line:
        layers.insert(0, _line_at_zero())
    chart = alt.layer(*layers).properties(
        width="container", height=max(len(tasks) * (len(series) * 7 + 11), 60)
    )
    return _spec(chart, rows)


def lines(
    rows: Rows,
    *,
    x: str,
    y: str,
    series: Sequence[str],
    facets: Sequence[str] = (),
    marked: bool = False,
    steps: bool = False,
    x_format: str,
) -> dict:
    """Lines with bands from three seeds on, optionally one small chart per facet.

    Args:
        rows: x, series, mean, low, high, seeds, and facet where there are `facets`; a row with `rule` draws a
            horizontal line there, one with `point` a mark at (x, point).
        x, y: titles of the axes; x_format: of the numbers along the first.
        marked: draw a mark at every value.
        steps: draw steps instead of straight lines.
    """
    # The interval of two values is many times as wide as they are apart: a band would cover the chart.
    rows = [dict(row, low=None, high=None) if row.get("seeds", 3) < 3 else row for row in rows]
    base = alt.Chart().encode(
        x=alt.X(
            "x:Q",
            title=x,
            scale=alt.Scale(zero=False),
            axis=alt.Axis(grid=False, format=x_format, **_ticks(rows, whole=x_format == "d")),
        ),
        color=_colour(series),
    )
    vertical = alt.Scale(domain=_domain(rows), nice=True)
    band = base.mark_area(opacity=0.15, clip=True).encode(
        y=alt.Y("low:Q", title=y, scale=vertical), y2=alt.Y2("high:Q")
    )
    shape = "step-after" if steps else "linear"
    line = base.mark_line(strokeWidth=2, interpolate=shape, point=marked).encode(
        y=alt.Y("mean:Q", title=y, scale=vertical), tooltip=_tooltip(x, y)
    )
    layers = [band, line]
    if any(row.get("rule") is not None for row in rows):
        rule = alt.Chart().mark_rule(strokeDash=[4, 3], strokeWidth=1.5, color=NEUTRAL)
        layers.append(rule.encode(y=alt.Y("rule:Q")))
    if any(row.get("point") is not None for row in rows):
        point = base.mark_point(size=90, strokeWidth=2.5, filled=False).encode(y=alt.Y("point:Q"))
        layers.append(point)
    chart = alt.layer(*layers)
    if not facets:
        return _spec(chart.properties(data=_data(), width="container", height=260), rows)
    return _spec(_small(chart, facets), rows)


def heat_map(
    rows: Rows,
    *,
    columns: Sequence[str],
    tasks: Sequence[str],
    x: str,
    y: str,
    value: str,
    diverging: bool = False,
    choices: Sequence[str] = (),
    choice: str = "",
    format: str = ".3f",
) -> dict:
    """A matrix of values.

    Args:
        rows: row, column, value, shown (the number to show); also `picks`, the number of seeds in which the
            cell was picked, and `best`, true for the best of a row.
        columns, tasks: names of the columns and rows, in order.
        x, y, value: titles.
        diverging: colours for values around 0.
        choices: values of the field `choice` among which the reader selects one; none if empty.
        choice: label of this selection.
    """
    values = [row["value"] for row in rows if row["value"] is not None] or [0.0]
    extent = max(map(abs, values)) or 1.0
    # The same for all choices, so that they can be compared.
    scale = (
        alt.Scale(range=list(DIVERGING), domain=[-extent, 0, extent])
        if diverging
        else alt.Scale(scheme=SEQUENTIAL, domain=[min(values), max(values)])
    )
    base = alt.Chart(_data()).encode(
        x=alt.X(
            "column:N",
            sort=list(columns),
            title=x,
            axis=alt.Axis(
                labelAngle=0,
                labelOverlap="greedy",
                labelSeparation=4,
                orient="top",
                ticks=False,
            ),
        ),
        # The title stands above the labels, whose width it cannot know.
        y=alt.Y(
            "row:N",
            sort=list(tasks),
            title=y or None,
            axis=alt.Axis(ticks=False, titleAngle=0, titleAlign="right", titleX=-6, titleY=-8),
        ),
    )
    parameter = None
    if len(choices) > 1:
        parameter = alt.param(
            name="choice",
            value=choices[0],
            bind=alt.binding_select(options=list(choices), name=f"{choice}: "),
        )
        base = base.transform_filter("datum.choice == choice")
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title=value,
            scale=scale,
            legend=alt.Legend(orient="bottom", direction="horizontal"),
        ),
        tooltip=[
            alt.Tooltip("row:N", title=y),
            alt.Tooltip("name:N", title=x),
            alt.Tooltip("shown:Q", title=value, format=format),
            alt.Tooltip("picks:Q", title="picked in seeds"),
        ],
    )
    layers = [cells]
    numbers = max(len(columns), len(tasks)) <= _MANY
    if numbers:
        dark_text = f"abs(datum.value) < {0.6 * extent}" if diverging else "datum.bright"
        layers.append(
            base.mark_text(fontSize=11, dy=8 if any(row.get("picks") for row in rows) else 0).encode(
                text=alt.Text("shown:Q", format=format),
                color=alt.condition(dark_text, alt.value("#000000"), alt.value("#FFFFFF")),
            )
        )
    dy = -8 if numbers else 0
    for size, colour, width in ((70, "#FFFFFF", 4), (70, "#000000", 1.8)):
        picked = base.transform_filter("datum.picks > 0")
        layers.append(
            picked.mark_point(filled=False, size=size, stroke=colour, strokeWidth=width, yOffset=dy)
        )
    best = base.transform_filter("datum.best == true")
    layers.append(
        best.mark_point(
            filled=True,
            shape="diamond",
            size=40,
            fill="#FFFFFF",
            stroke="#000000",
            strokeWidth=1.2,
            opacity=1,
            yOffset=dy,
        )
    )
    step = 40 if numbers else 20
    chart = alt.layer(*layers).properties(width="container", height=len(tasks) * step)
    few = len(columns) <= _MANY
    return _spec(
        chart.add_params(parameter) if parameter else chart,
        rows,
        long_names=few and not numbers and _long(tasks),
        numbers_in=len(columns) if numbers else 0,
    )


def _ticks(rows: Rows, *, whole: bool) -> dict:
    """About five ticks; a short range of whole numbers gets all of them, which small charts would halve."""
    found = [row["x"] for row in rows if "x" in row]
    if whole and found and max(found) - min(found) < 6:
        return {"values": list(range(int(min(found)), int(max(found)) + 1))}
    return {"tickCount": 5, "tickMinStep": 1 if whole else 0.1}


def stacked(
    rows: Rows, *, series: Sequence[str], facets: Sequence[str], x: str, layers: Sequence[str]
) -> dict:
    """Stacked bars that fill up to 1, one small chart per facet.

    Args:
        rows: facet, layer, series, value.
        layers: names of the bars, in order.
    """
    bars = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X(
                "value:Q", title=x, stack="zero", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=3)
            ),
            y=alt.Y("layer:N", sort=list(layers), title=None, axis=alt.Axis(grid=False)),
            color=_colour(series),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("facet:N", title="task"),
                alt.Tooltip("layer:N"),
                alt.Tooltip("series:N", title="weights"),
                alt.Tooltip("value:Q", format=".1%", title="share"),
            ],
        )
    )
    size = {"height": max(len(layers) * 18, 40)}
    return _spec(_small(alt.layer(bars), facets, **size), rows, long_names=_long(layers))


def bars(rows: Rows, *, x: str, names: Sequence[str], series: Sequence[str], format: str) -> dict:
    """Horizontal bars, grouped by series.

    Args:
        rows: name, series, value.
    """
    several = len(series) > 1
    base = alt.Chart(_data()).encode(
        y=alt.Y("name:N", sort=list(names), title=None, axis=alt.Axis(grid=False)),
        x=alt.X("value:Q", title=x, axis=alt.Axis(format=format, tickCount=4)),
        color=_colour(series) if several else alt.value(PALETTE[0]),
        tooltip=[
            alt.Tooltip("name:N"),
            alt.Tooltip("series:N"),
            alt.Tooltip("value:Q", format=format, title=x),
        ],
    )
    if several:
        base = base.encode(yOffset=alt.YOffset("series:N", sort=list(series)))
    height = len(names) * (16 * len(series) + 8)
    chart = alt.layer(base.mark_bar()).properties(width="container", height=height)
    return _spec(chart, rows, long_names=True)


def time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    """The unit that suits the largest of these times, and its seconds."""
    return _unit(seconds, (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)))


def byte_unit(counts: Iterable[float]) -> tuple[str, float]:
    """The unit that suits the largest of these numbers of bytes, and its bytes."""
    return _unit(counts, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)))


def _unit(values: Iterable[float], units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    largest = max(values)
    return next((unit for unit in units if largest >= 2 * unit[1]), units[-1])


def config() -> dict:
    """Vega-Lite's configuration of all charts."""
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": "transparent"},
        "axis": {
            **{"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelSeparation": 5},
            **{"gridColor": "#8884", "domainColor": "#888", "tickColor": "#888"},
        },
        "axisY": {"labelLimit": 260},
        "legend": {
            "layout": {"top": {"anchor": "start", "bounds": "full", "direction": "vertical", "margin": 12}},
            **{"orient": "top", "title": None, "labelFontSize": 12, "titleFontSize": 12},
            **{
                "labelLimit": 260,
                "gradientLength": 160,
                "titleFontWeight": "normal",
                "symbolSize": 90,
                "symbolStrokeWidth": 2,
            },
        },
        "header": {"labelFontSize": 12, "labelLimit": 200, "title": None},
        "range": {"category": list(PALETTE)},
    }


def _domain(rows: Rows, *, zero: bool = False) -> list[float]:
    """The values that an axis covers: all means, and intervals as far as they leave the means readable.

    With two seeds, an interval can be many times as wide as all differences between the means.

    Args:
        zero: cover 0, too.
    """
    names = ("mean", "rule", "point")
    shown = [row[name] for row in rows for name in names if row.get(name) is not None]
    shown += [0.0] * zero
    low, high = min(shown), max(shown)
    room = max((high - low) / 2, 1e-3)
    ends = [row[name] for row in rows for name in ("low", "high") if row.get(name) is not None]
    return [max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)]


def _data() -> alt.NamedData:
    return alt.NamedData("rows")


def _long(names: Sequence[str]) -> bool:
    return max(map(len, names), default=0) >= _LONG


def _spec(chart: alt.TopLevelMixin, rows: Rows, *, long_names: bool = False, numbers_in: int = 0) -> dict:
    """A specification with its rows.

    Args:
        long_names: give the labels of the y axis more room.
        numbers_in: columns whose cells hold numbers, which the page leaves out where cells are too narrow.
    """
    # The data join afterwards: Altair would validate every row.
    spec = chart.to_dict()
    for name in ("$schema", "config"):
        spec.pop(name, None)
    longest = max((len(str(row["series"])) for row in rows if "series" in row), default=0)
    # What the page's script needs to place legends and labels.
    spec["usermeta"] = {"longest": longest, "long_names": long_names, "numbers_in": numbers_in}
    return spec | {"datasets": {"rows": [dict(row) for row in rows]}}


def _small(chart: alt.LayerChart, facets: Sequence[str], **properties: float) -> alt.FacetChart:
    facet = alt.Facet("facet:N", sort=list(facets), title=None)
    small = chart.properties(**(SMALL | properties))
    columns = min(_COLUMNS, max(len(facets), 1))
    # Marks at the edge of a chart must not move its heading.
    return small.facet(facet, columns=columns, data=_data(), bounds="flush", spacing=_SPACING)


def _colour(series: Sequence[str]) -> alt.Color:
    colours = [
        NEUTRAL if name == FREE else PALETTE[index % len(PALETTE)] for index, name in enumerate(series)
    ]
    return _by_series(alt.Color, series, colours, symbolOpacity=1)


def _shape(series: Sequence[str]) -> alt.Shape:
    return _by_series(alt.Shape, series, [SHAPES[index % len(SHAPES)] for index in range(len(series))])


def _by_series(
    channel: type[Channel], series: Sequence[str], values: Sequence[str], **legend: int
) -> Channel:
    return channel(
        "series:N",
        sort=list(series),
        scale=alt.Scale(domain=list(series), range=values),
        legend=alt.Legend(**legend) if len(series) > 1 else None,
        title=None,
    )


def _tooltip(x: str, y: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="of"),
        alt.Tooltip("x:Q", title=x),
        alt.Tooltip("mean:Q", title=y, format=".4~g"),
    ]


def _line_at_zero() -> alt.Chart:
    at_zero = alt.Chart(alt.Data(values=[{"zero": 0}]))
    return at_zero.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(x=alt.X("zero:Q"))
