"""Colours meet WCAG AA in both colour schemes: 4.5:1 for text, 3:1 for marks."""

import re

import pytest

from tests.helpers import REPOSITORY

charts = pytest.importorskip("reports.charts", exc_type=ImportError)
STYLE = (REPOSITORY / "reports" / "page.css").read_text(encoding="utf-8")
SCHEMES = [
    dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
]
LIGHT, DARK = SCHEMES[:2]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_and_marks_stand_out(scheme: dict[str, str]) -> None:
    for background in ("page", "panel"):
        for text in ("ink", "muted", "accent", "warning"):
            assert contrast(scheme[text], scheme[background]) >= 4.5, (text, background)
    for colour in charts.PALETTE:
        assert contrast(colour, scheme["page"]) >= 3, colour
