"""The HTML report: numbers, what is missing or damaged, markup in names, and no network."""

import csv
import gzip
import io
import json
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.helpers import Fleet, load, refusal
from tools import report_html
from utils.paths import record_file, widths_file

pytest.importorskip("altair")
pytest.importorskip("jinja2")
vl_convert = pytest.importorskip("vl_convert")

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The parts of a page that the tests look at; fails on elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.attributes[-1][1].get("id", "")] = data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def ids(self, tag: str) -> list[str]:
        return [
            attributes["id"] for name, attributes in self.attributes if name == tag and "id" in attributes
        ]

    def charts(self) -> dict[str, dict]:
        return json.loads(self.scripts["charts"])

    def csv(self, figure: str) -> list[dict[str, str]]:
        """The numbers that the page offers to download."""
        names = (f"{figure}.csv", f"{figure}.csv.gz")
        (link,) = [found["href"] for _, found in self.attributes if found.get("download") in names]
        kind, _, content = link.partition(",")
        packed = kind == "data:application/gzip;base64"
        text = gzip.decompress(b64decode(content)).decode() if packed else unquote(content)
        return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out Vega, which takes seconds to bundle."""
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda: "window.vegaEmbed = () => {};")


def write(fleet: Fleet, to: Path, *more: str) -> tuple[Page, str]:
    report_html.main(fleet.files("--dataset_config", "digits", "--to", str(to), *more))
    text = to.read_text(encoding="utf-8")
    return Page(text), text


def test_every_accuracy_comes_from_its_checkpoint(trained_fleet: Fleet, tmp_path: Path) -> None:
    page, text = write(trained_fleet, tmp_path / "report.html", "--run", trained_fleet.run)
    rows = page.csv("run-1-accuracy")
    found = {(row["task"], row["network"]): float(row["accuracy"]) for row in rows}
    checkpoints = {
        "alone, PackNet's layers": trained_fleet.baseline_checkpoint("four_five"),
        "alone, CPG's layers": trained_fleet.scratch_checkpoint("four_five"),
        "alone, pruned": trained_fleet.chosen_checkpoint("four_five"),
    }
    for network, path in checkpoints.items():
        assert found["four_five", network] == pytest.approx(load(path)["metrics"]["test_accuracy"], abs=1e-6)
    widths = json.loads(widths_file(trained_fleet.target_folder()).read_text())
    assert found["four_five", "on its backbone, width 2"] == pytest.approx(
        widths["2.0"]["test_accuracy"], abs=1e-6
    )
    shown = "".join(page.text)
    assert f"{widths['2.0']['test_accuracy']:.3f}" in shown, "the table has it, too"
    assert "no target on a backbone of" in shown, "tasks that are not trained are listed"
    assert len(text.encode()) < 6e6


def test_ownership_and_bytes_agree_with_the_masks(trained_fleet: Fleet, tmp_path: Path) -> None:
    page, _ = write(trained_fleet, tmp_path / "report.html", "--run", trained_fleet.run)
    payload = load(trained_fleet.target_folder() / "checkpoint-4.pth.tar")
    shares = {
        (row["layer"], row["owner"]): float(row["share"])
        for row in page.csv("run-1-ownership")
        if row["task"] == "four_five"
    }
    assert shares
    for layer, owner in payload["masks"].items():
        assert shares[layer, "the target's"] == pytest.approx((owner == 2).float().mean().item(), abs=1e-5)
        backbone = shares[layer, "the backbone's, picked"] + shares[layer, "the backbone's, not picked"]
        assert backbone == pytest.approx((owner == 1).float().mean().item(), abs=1e-5)
    sizes = {(row["task"], row["network"]): int(row["bytes"]) for row in page.csv("run-1-bytes")}
    assert 0 < sizes["four_five", "the same, packed"] < sizes["four_five", "own network, chosen ratio"]


def test_the_page_loads_nothing_and_can_be_read_without_charts(trained_fleet: Fleet, tmp_path: Path) -> None:
    page, text = write(trained_fleet, tmp_path / "report.html", "--run", trained_fleet.run)
    for tag, attributes in page.attributes:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base"), tag
        assert "src" not in attributes
        for name in ("href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert re.search(r"content=\"default-src 'none'", text)
    assert "url(" not in text and "@import" not in text
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {found["href"][1:] for tag, found in page.attributes if tag == "a" and found["href"][0] == "#"}
    assert targets <= set(ids)
    charts = [found for _, found in page.attributes if "data-chart" in found]
    assert {found["data-chart"] for found in charts} == page.charts().keys()
    assert all(found["role"] == "img" and found["aria-label"] for found in charts)
    for figure in page.ids("figure"):
        if figure in page.charts():
            assert f"table-{figure}" in ids, "every chart has its numbers"
    assert all("scope" in found for tag, found in page.attributes if tag == "th")


def test_what_is_damaged_is_named_and_the_rest_is_shown(fleet: Fleet, tmp_path: Path) -> None:
    chosen = fleet.chosen_checkpoint("zero_one")
    chosen.write_bytes(chosen.read_bytes()[:1000])
    record = record_file(fleet.paths.pruned("digits", "two_three"))
    record.write_text("{")
    fleet.paths.table_csv("digits").write_text("target_id,task_id,ddv_euc\n99,1,0.5\n")
    page, _ = write(fleet, tmp_path / "report.html", "--run", fleet.run)
    shown = "".join(page.text)
    for path in (chosen, record, fleet.paths.table_csv("digits")):
        assert str(path) in shown
    networks = {(row["task"], row["network"]) for row in page.csv("run-1-accuracy")}
    assert ("zero_one", "alone, pruned") not in networks
    assert ("four_five", "alone, pruned") in networks


def test_markup_in_names_is_escaped(fleet: Fleet, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    table = fleet.paths.table_csv("digits")
    rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{rows[0]},{evil}", *(f"{row},0.5" for row in rows[1:])]) + "\n")
    page, text = write(fleet, tmp_path / "report.html", "--run", fleet.run)
    assert evil not in text
    assert any(row["rule"] == evil for row in page.csv("run-1-scores"))
    assert evil in json.dumps(page.charts()["run-1-scores"]), "the chart still has the name"


def test_a_run_that_does_not_exist_is_refused_with_those_that_do(fleet: Fleet, tmp_path: Path) -> None:
    message = refusal(report_html.main, fleet.files("--run", "nowhere", "--to", str(tmp_path / "r.html")))
    assert "nowhere" in message and "lenet5/seed1" in message


def test_without_the_extra_one_line_says_how_to_get_it(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_html, "find_spec", lambda name: None)
    message = refusal(report_html.main, fleet.files("--to", str(tmp_path / "r.html")))
    assert "altair" in message and ".[report]" in message


def test_runs_side_by_side_show_paired_differences(fleet: Fleet, tmp_path: Path) -> None:
    for folder in (fleet.checkpoints, fleet.paths.logs):
        shutil.copytree(folder / fleet.run, folder / "mine")
    widths = widths_file(replace(fleet, run="mine").target_folder())
    entries = json.loads(widths.read_text())
    entries["2.0"]["test_accuracy"] = 0.0
    before = json.loads(widths_file(fleet.target_folder()).read_text())["2.0"]["test_accuracy"]
    widths.write_text(json.dumps(entries))
    page, _ = write(fleet, tmp_path / "report.html", "--run", fleet.run, "--run", "mine")
    (row,) = [
        row
        for row in page.csv("comparison-differences")
        if row["network"] == "on its backbone, last width" and row["task"] == "four_five"
    ]
    assert float(row["difference"]) == pytest.approx(-before, abs=1e-6)


def test_seeds_are_means_with_intervals(fleet: Fleet, tmp_path: Path) -> None:
    for folder in (fleet.checkpoints, fleet.paths.logs):
        shutil.copytree(folder / fleet.run, folder / "lenet5" / "seed2")
    page, _ = write(fleet, tmp_path / "report.html", "--run", "lenet5/seed{seed}")
    assert {row["seed"] for row in page.csv("run-1-accuracy")} == {"1", "2"}
    chart = page.charts()["run-1-accuracy"]
    seeds = chart["columns_of_rows"].index("seeds")
    assert {row[seeds] for row in chart["rows"]} == {2}


def test_figures_are_written_as_svg_and_pdf(
    trained_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "figures"
    monkeypatch.setattr(
        vl_convert, "vegalite_to_svg", lambda spec: f"<svg>{len(spec['datasets']['rows'])}</svg>"
    )
    monkeypatch.setattr(vl_convert, "svg_to_pdf", lambda svg: b"%PDF")
    options = ("--run", trained_fleet.run, "--figures", str(folder))
    page, _ = write(trained_fleet, tmp_path / "report.html", *options)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{chart}.{kind}" for chart in page.charts() for kind in ("svg", "pdf")}


def test_a_fleets_targets_lack_no_pruned_networks(fleet: Fleet, tmp_path: Path) -> None:
    for folder in (fleet.checkpoints, fleet.paths.logs):
        shutil.copytree(folder / fleet.run, folder / "poor")
    poor = replace(fleet, run="poor")
    for task in ("zero_one", "two_three", "four_five"):
        shutil.rmtree(poor.paths.pruned("digits", task))
    shutil.rmtree(fleet.target_folder().parents[2])
    search = poor.paths.stage_log("digits", "find_backbone")
    text = search.read_text()
    search.write_text(text.replace("Configuration: ", f"Configuration: fleet={fleet.run} "))
    page, _ = write(fleet, tmp_path / "report.html", "--run", fleet.run, "--run", "poor")
    problems = "".join(page.text).split("Missing or damaged")[-1].split("Comparison")[0]
    assert "poor: no chosen pruned network" not in problems
    assert "poor: no scratch network of six_seven, eight_nine" in problems
    assert f"{fleet.run}: no target" not in problems, (
        "its networks are the backbones of the other run's targets"
    )


def test_targets_across_modalities_are_compared(fleet: Fleet, tmp_path: Path) -> None:
    for among, backbone, reached in (
        ("same", "zero_one", {True: 0.75}),
        ("other", "two_three", {True: 0.5, False: 0.25}),
    ):
        fleet.paths.result_csv("digits", among=among).write_text(
            f"target_id,task_id\n3,{1 if among == 'same' else 2}\n"
        )
        for kv_transfer, accuracy in reached.items():
            folder = fleet.paths.target("digits", backbone, "four_five", kv_transfer=kv_transfer)
            folder.mkdir(parents=True, exist_ok=True)
            metrics = dict.fromkeys(("train_accuracy", "validation_accuracy", "test_accuracy"), accuracy)
            widths_file(folder).write_text(
                json.dumps({"1.0": metrics | {"test_accuracy": 0.0}, "2.0": metrics})
            )
    page, _ = write(fleet, tmp_path / "report.html", "--run", fleet.run)
    reached = {row["candidates"]: float(row["accuracy"]) for row in page.csv("run-1-modalities")}
    assert reached == {"same modality": 0.75, "other modality": 0.5, "other, no K/V transfer": 0.25}
    changes = {
        row["difference of"]: float(row["difference"]) for row in page.csv("run-1-modality-differences")
    }
    assert changes == {"other modality − same": -0.25, "K/V transfer − none": 0.25}


def write_sequence(
    fleet: Fleet, approach: str, *, seed: int, matrix: list[list[float]], **arguments: object
) -> None:
    """The files of a run on a sequence of two tasks."""
    paths = replace(fleet.paths, run=f"spg/mine/{approach}/seed{seed}")
    paths.accuracy_matrix().parent.mkdir(parents=True)
    rows = [",".join([f"task_{number}", *map(str, row)]) for number, row in enumerate(matrix, 1)]
    paths.accuracy_matrix().write_text("\n".join(["after,task_1,task_2", *rows]) + "\n")
    costs = [
        {"task": f"task_{number}", "epochs": 2, "seconds": 1.0, "importance": {"fc1": number / 4}}
        for number in (1, 2)
    ]
    content = {"sequence": "mine", "approach": approach, "bytes": 100, "tasks": costs, "arguments": arguments}
    paths.metrics_file().write_text(json.dumps(content | {"average_accuracy": matrix[-1][0]}))


def test_approaches_are_compared_task_by_task(fresh: Fleet, tmp_path: Path) -> None:
    for seed in (1, 2):
        lr = 0.25 * seed  # a repetition has the same
        write_sequence(fresh, "spg", seed=seed, matrix=[[0.75], [0.5, 1.0]], lr=lr)
        write_sequence(fresh, "one", seed=seed, matrix=[[0.5], [0.5, 0.5]], lr=0.25)
    page, _ = write(fresh, tmp_path / "report.html", "--run", "spg/mine")
    change = {row["task"]: float(row["difference"]) for row in page.csv("sequence-1-differences")}
    assert change == {"1 task_1": 0.0, "2 task_2": -0.5}, "one minus spg, at the end"
    forward = [
        (row["task"], row["forward transfer"])
        for row in page.csv("sequence-1-forward-transfer")
        if row["approach"] == "spg"
    ]
    assert sorted(set(forward)) == [("1 task_1", "0.25"), ("2 task_2", "0.5")]
    lost = {
        row["task"]: float(row["forgetting"])
        for row in page.csv("sequence-1-forgetting")
        if row["approach"] == "spg"
    }
    assert lost == {"1 task_1": 0.25, "2 task_2": 0.0}
    importance = {row["after"]: float(row["importance"]) for row in page.csv("sequence-1-importance")}
    assert importance == {"1 task_1": 0.25, "2 task_2": 0.5}
    assert "counts as a repetition of spg/mine/spg/seed1, but" in "".join(page.text)
    assert "lr 0.5 instead of 0.25" in "".join(page.text)
