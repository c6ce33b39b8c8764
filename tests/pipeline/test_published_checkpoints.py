"""The published checkpoints, unmodified, on the real images (skipped if absent)."""

import json
import re
from pathlib import Path

import pytest

import CPG_cifar100_main_normal
import packnet_cifar100_main_normal
import pickaback_perceiverIO
from data import prepare

SHARED = Path(__file__).resolve().parents[3] / "shared"
CHECKPOINTS = SHARED / "reference" / "pickaback" / "checkpoints_lenet5"
LINE = re.compile(
    r"loss: (?P<loss>[\d.]+), accuracy: (?P<accuracy>[\d.]+), sparsity: (?P<sparsity>[\d.]+), "
    r"task(?P<task>\d) ratio: (?P<ratio>[\d.]+), zero ratio: [\d.]+, mpl: (?P<mpl>[\d.]+), "
    r"shared_ratio: (?P<shared>[\d.]+)"
)


@pytest.fixture(scope="module")
def facts():
    if not CHECKPOINTS.is_dir():
        pytest.skip(f"{CHECKPOINTS} not found")
    return json.loads((SHARED / "reference" / "facts.json").read_text())


@pytest.fixture(scope="module")
def roots(tmp_path_factory, facts):
    source = SHARED / "data" / "cifar100_org.zip"
    if not source.is_file():
        pytest.skip(f"{source} not found")
    folder = tmp_path_factory.mktemp("cifar100")
    prepare.main(["cifar100", "--source", str(source), "--data_root", str(folder / "data")])
    flags = ["--dataset_config", "cifar100", "--device", "cpu", "--data_root", str(folder / "data")]
    return [*flags, "--checkpoints_root", str(folder / "c"), "--logs_root", str(folder / "l")]


def inference(script, roots, folder, task, caplog):
    with caplog.at_level("INFO"):
        script.main([*roots, "--mode", "inference", "--load_folder", str(folder), "--dataset", task])
    return LINE.search(caplog.messages[-1]).groupdict()


@pytest.mark.parametrize(
    "task", ["aquatic_mammals", "fish", "food_containers", "non-insect_invertebrates", "people"]
)
def test_scratch_networks_reach_the_reference_accuracy(task, facts, roots, caplog):
    folder = CHECKPOINTS / "baseline_scratch" / "lenet5" / task
    line = inference(packnet_cifar100_main_normal, roots, folder, task, caplog)
    expected = facts["published_checkpoint_accuracy"]["baseline_scratch"][task]
    assert float(line["accuracy"]) / 100 == pytest.approx(expected, abs=1 / 500 + 1e-9)


@pytest.mark.parametrize("stage", ["scratch", "gradual_prune/0.5", "gradual_prune/0.8"])
def test_pruned_networks_reach_the_reference_metrics(stage, facts, roots, caplog):
    name = f"CPG_single_scratch_woexp/food_containers/{stage}"
    expected = facts["published_checkpoint_accuracy"][name]
    folder = CHECKPOINTS / "CPG_single_scratch_woexp" / "lenet5" / "food_containers" / stage
    line = inference(CPG_cifar100_main_normal, roots, folder, "food_containers", caplog)
    assert float(line["accuracy"]) / 100 == pytest.approx(expected["accuracy"], abs=1 / 500 + 1e-9)
    assert float(line["loss"]) == pytest.approx(expected["loss"], abs=2e-3)
    assert float(line["sparsity"]) == pytest.approx(expected["sparsity"], abs=5e-4)
    assert float(line["ratio"]) == pytest.approx(expected["task1_ratio"], abs=5e-4)


@pytest.mark.parametrize(("task", "index"), [("non-insect_invertebrates", 2), ("food_containers", 1)])
def test_a_target_on_its_backbone_reaches_the_reference_metrics_as_either_task(
    task, index, facts, roots, caplog
):
    pair = "CPG_fromsingle_scratch_woexp_target/food_containers/non-insect_invertebrates"
    expected = facts["published_checkpoint_accuracy"][f"{pair} as task {index}"]
    folder = CHECKPOINTS / "CPG_fromsingle_scratch_woexp_target" / "lenet5"
    folder = folder / "food_containers" / "non-insect_invertebrates" / "scratch"
    line = inference(CPG_cifar100_main_normal, roots, folder, task, caplog)
    assert float(line["accuracy"]) / 100 == pytest.approx(expected["accuracy"], abs=1 / 500 + 1e-9)
    assert line["task"] == str(index)
    assert float(line["ratio"]) == pytest.approx(expected[f"task{index}_ratio"], abs=5e-4)
    if index == 2:
        assert float(line["shared"]) == pytest.approx(expected["shared_ratio"], abs=5e-4)
        assert float(line["mpl"]) == expected["mpl"]


def test_distances_between_published_networks_match_the_reference(facts, roots, caplog):
    folder = CHECKPOINTS / "baseline_scratch" / "lenet5"
    flags = ["--target_id", "14", "--candidates", "1,2,4,15", "--max_iterations", "0"]
    with caplog.at_level("INFO"):
        pickaback_perceiverIO.main([*roots, *flags, "--baseline_folder", str(folder)])
    for kind, distances in facts["ddv_distance_to_target_14_without_mutation"].items():
        if kind == "probes":
            continue
        for candidate, expected in distances.items():
            pattern = re.compile(rf"DDV {kind} \[{candidate} => 14\] ([\d.]+)")
            found = [match.group(1) for match in map(pattern.match, caplog.messages) if match]
            assert float(found[0]) == pytest.approx(expected, abs=1e-4)
    assert (
        caplog.messages[-1]
        == "Selected backbone for target 14 = (euc) 4 (non-insect_invertebrates on food_containers)"
    )
