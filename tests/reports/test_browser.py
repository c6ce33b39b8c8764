"""The HTML report in Chromium, where there is one: what it draws, logs and loads, and who can read it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import Fleet
from tools import report_html

for package in ("altair", "jinja2", "vl_convert"):
    pytest.importorskip(package)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NPM = shutil.which("npm")
WIDTHS = (390, 1440)
SCHEMES = ("light", "dark")

# Runs in the report, once it is drawn, and sends what it finds to the page around it.
CHECK = """
const drawn = (then) => (document.body.dataset.drawn ? then() : setTimeout(() => drawn(then), 50));
drawn(async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const outside = (svg) => {
    const { left, right } = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent);
    return texts.filter((text) => {
      const box = text.getBoundingClientRect();
      return box.width && (box.left < left - 2 || box.right > right + 2);
    });
  };
  const charts = [...document.querySelectorAll(".chart")];
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
  const { violations } = await axe.run(document, { runOnly: tags, iframes: false });
  parent.postMessage({
    frame: window.name,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    width: innerWidth,
    page_width: document.documentElement.scrollWidth,
    drawn: charts.filter((chart) => chart.querySelector("svg.marks")).length,
    too_wide: charts.filter((chart) => chart.scrollWidth > chart.clientWidth + 1).map((chart) => chart.id),
    cut_off: charts.flatMap((chart) => [...chart.querySelectorAll("svg")].flatMap(outside))
      .map((text) => `${text.closest(".chart").dataset.chart}: ${text.textContent}`),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    violations: violations.map((found) => `${found.id}: ${found.help}: ${found.nodes[0].html}`),
  }, "*");
});
"""

AROUND = """<!doctype html><title>Reports</title>
<style>iframe { display: block; height: 900px; border: 0; }</style>
FRAMES
<pre id="found"></pre>
<script>
const found = [];
addEventListener("message", ({ data }) => {
  found.push(data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, the accessibility checker."""
    if NPM is None:
        pytest.skip("no npm to install axe-core with")
    folder = tmp_path_factory.mktemp("axe")
    command = [NPM, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
    try:
        installed = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install axe-core within a minute")
    if installed.returncode:
        pytest.skip("npm could not install axe-core")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def inspect(report: Path, *, axe: str, folder: Path) -> tuple[dict[str, dict], list[str]]:
    """Open a report at every width in both colour schemes.

    Returns:
        What `CHECK` found, by width and scheme, and the lines of the browser's console.
    """
    before, end, after = report.read_text(encoding="utf-8").rpartition("</body>")
    checked = folder / "checked.html"
    checked.write_text(f"{before}<script>{axe}</script>\n<script>{CHECK}</script>{end}{after}")
    frames = [
        f'<iframe name="{width} {scheme}" src="{checked.name}" '
        f'style="width: {width}px; color-scheme: {scheme}"></iframe>'
        for width in WIDTHS
        for scheme in SCHEMES
    ]
    around = folder / "around.html"
    around.write_text(AROUND.replace("FRAMES", "\n".join(frames)))
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
        *("--disable-background-networking", "--no-first-run", "--enable-logging=stderr"),
        *("--virtual-time-budget=60000", "--window-size=1500,1200", "--dump-dom", around.as_uri()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', run.stdout, re.S)
    console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    return {entry["frame"]: entry for entry in json.loads(html.unescape(found or "[]"))}, console


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_report_can_be_read_at_any_width_in_both_colour_schemes(
    trained_fleet: Fleet, tmp_path: Path, axe: str
) -> None:
    report = tmp_path / "report.html"
    report_html.main(trained_fleet.files("--run", trained_fleet.run, "--to", str(report)))
    charts = len(re.findall(r"data-chart=", report.read_text(encoding="utf-8")))
    found, console = inspect(report, axe=axe, folder=tmp_path)
    assert console == [], "the page's policy forbids every request, and a browser logs what it blocks"
    assert set(found) == {f"{width} {scheme}" for width in WIDTHS for scheme in SCHEMES}
    for name, page in found.items():
        assert f"{page['width']} {'dark' if page['dark'] else 'light'}" == name
        assert page["drawn"] == charts > 5
        assert page["page_width"] <= page["width"], name
        assert (page["too_wide"], page["cut_off"], page["loaded"]) == ([], [], []), name
        assert page["violations"] == [], name
