"""Targets on every backbone, on the backbones of another run, and the controls `copy` and `probe`."""

import csv
import json
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import pickaback_perceiverIO as search_script
from data.loading import load_task
from data.tables import load_table
from methods.ownership import SharedNetwork
from models import ARCHITECTURES
from tests.helpers import TRAINING, Fleet, load, refusal, same
from utils.paths import checkpoint_in, control_file

POOR = "lenet5/seed1-n5"


def on_backbones(fleet: Fleet, target: str, *more: object) -> list[str]:
    """The command that trains a target of five images a class on the fleet's networks."""
    baseline = fleet.paths.baseline_file("digits")
    return fleet.flags(
        *("--dataset", target, *TRAINING, "--fleet", fleet.run, "--train_per_class", 5),
        *(
            "--jsonfile",
            baseline,
            "--max_allowed_network_width_multiplier",
            1.0,
            "--candidates",
            "1-3",
            *more,
        ),
    )


def poor(fleet: Fleet) -> Fleet:
    return Fleet(root=fleet.root, data=fleet.data, run=POOR)


def test_a_target_trains_on_every_backbone_of_another_run(fleet: Fleet) -> None:
    untouched = {path: path.read_bytes() for path in (fleet.checkpoints / fleet.run).rglob("*.tar")}
    cpg_script.main(on_backbones(fleet, "zero_one", "--backbone", "all"))
    target = poor(fleet)
    folders = [target.target_folder(name, "zero_one") for name in ("two_three", "four_five")]
    found = [load(checkpoint_in(folder, remedy="")) for folder in folders]
    assert [payload["dataset_history"] for payload in found] == [
        ["two_three", "zero_one"],
        ["four_five", "zero_one"],
    ]
    assert all(payload["arguments"]["train_per_class"] == 5 for payload in found)
    assert untouched == {path: path.read_bytes() for path in untouched}

    alone = ("--backbone", "two_three", "--run", "alone")
    cpg_script.main(on_backbones(fleet, "zero_one", *alone))
    given = Fleet(root=fleet.root, data=fleet.data, run="alone").target_folder("two_three", "zero_one")
    assert same(load(checkpoint_in(given, remedy="")), found[0])


def test_a_search_compares_with_the_networks_of_another_run(fleet: Fleet) -> None:
    cpg_like = ("--dataset", "zero_one", "--train_per_class", 5)
    packnet_script.main(fleet.flags(*cpg_like, *TRAINING))
    asked = ("--train_per_class", 5, "--fleet", fleet.run, "--candidates", "1-3", "--max_iterations", 2)
    search_script.main(fleet.flags("--dataset", "zero_one", *asked))
    rows = list(csv.DictReader(poor(fleet).paths.table_csv("digits").open()))
    assert [row["task_id"] for row in rows] == ["2", "3"]
    assert all(float(row["leep"]) <= 0 and float(row["ddv_euc"]) >= 0 for row in rows)
    missing = refusal(search_script.main, fleet.flags("--dataset", "zero_one", *asked, "--candidates", "4"))
    assert "six_seven" in missing and "run run_pickaback/baseline.sh" in missing


def test_a_fleet_that_cannot_serve_is_refused(fleet: Fleet) -> None:
    def refused(*more: object) -> str:
        return refusal(cpg_script.main, on_backbones(fleet, "zero_one", "--backbone", "two_three", *more))

    assert "lenet5/none not found: train that run first" in refused("--fleet", "lenet5/none")
    assert "was trained with seed 1, not 2: give a --fleet of the same seed" in refused("--seed", 2)
    assert "is a lenet5 with sharable layers, not a vgg16_bn" in refused("--arch", "vgg16_bn")
    missing = refusal(cpg_script.main, on_backbones(fleet, "zero_one", "--backbone", "six_seven"))
    assert "six_seven" in missing and "for the backbone first" in missing


def test_freed_weights_may_start_at_random_and_the_backbone_keeps_its_outputs(fleet: Fleet) -> None:
    usual = on_backbones(fleet, "zero_one", "--backbone", "two_three")
    results = {}
    for freed in ("zero", "random", "dead"):
        cpg_script.main([*usual, "--freed", freed, "--run", freed])
        folder = Fleet(root=fleet.root, data=fleet.data, run=freed).target_folder("two_three", "zero_one")
        results[freed] = load(checkpoint_in(folder, remedy=""))
    assert "freed" not in results["zero"]["arguments"]
    assert results["dead"]["arguments"]["freed"] == "dead"
    inputs = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = seen_as(load(fleet.chosen_checkpoint("two_three")), "two_three")(inputs)
    for payload in results.values():
        assert torch.equal(seen_as(payload, "two_three")(inputs), before)
    assert not same(results["random"]["model_state_dict"], results["zero"]["model_state_dict"])
    refused = refusal(cpg_script.main, [*usual, "--freed", "dead", "--run", "zero"])
    assert "freed (none recorded, dead requested)" in refused


def test_a_fine_tuned_copy_reports_what_it_keeps_of_the_backbones_task(fleet: Fleet) -> None:
    cpg_script.main(on_backbones(fleet, "zero_one", "--backbone", "two_three", "--reuse", "copy"))
    folder = poor(fleet).paths.reused("digits", "two_three", "zero_one", how="copy")
    metrics = json.loads(control_file(folder).read_text())["metrics"]
    dense = load(fleet.scratch_checkpoint("two_three"))
    assert metrics["backbone_accuracy_before"] == dense["metrics"]["test_accuracy"]
    payload = load(checkpoint_in(folder, remedy=""))
    assert payload["dataset_history"] == ["zero_one"]
    assert metrics["test_accuracy"] == payload["metrics"]["test_accuracy"]

    mixed = seen_as(dense, "two_three")
    mixed.features.load_state_dict(seen_as(payload, "zero_one").features.state_dict())
    data = digits(fleet, "two_three")
    with torch.no_grad():
        hits = mixed(data.to_inputs(data.test.inputs)).argmax(1) == data.test.labels
    assert metrics["backbone_accuracy_after"] == pytest.approx(hits.double().mean().item())


def test_a_copy_that_was_killed_before_its_control_file_is_unfinished(fleet: Fleet, capsys) -> None:
    argv = on_backbones(fleet, "zero_one", "--backbone", "two_three", "--reuse", "copy")
    cpg_script.main(argv)
    control = control_file(poor(fleet).paths.reused("digits", "two_three", "zero_one", how="copy"))
    written = control.read_bytes()

    cpg_script.main([*argv, "--list_unfinished"])
    assert capsys.readouterr().out == ""
    control.unlink()
    cpg_script.main([*argv, "--list_unfinished"])
    assert capsys.readouterr().out == "zero_one\n"
    cpg_script.main(argv)
    assert control.read_bytes() == written


def test_a_copy_starts_from_the_backbones_weights(fleet: Fleet) -> None:
    still = ("--epochs", 1, "--lr", 1e-30, "--weight_decay", 0)
    cpg_script.main(on_backbones(fleet, "zero_one", "--backbone", "two_three", "--reuse", "copy", *still))
    folder = poor(fleet).paths.reused("digits", "two_three", "zero_one", how="copy")
    state = load(checkpoint_in(folder, remedy=""))["model_state_dict"]
    dense = load(fleet.scratch_checkpoint("two_three"))["model_state_dict"]
    weights = [name for name in dense if name.startswith("features") and name.endswith("weight")]
    assert weights
    for name in weights:
        assert torch.allclose(state[name], dense[name], atol=1e-12)


def test_a_probe_equals_logistic_regression_on_frozen_features(fleet: Fleet) -> None:
    argv = on_backbones(fleet, "zero_one", "--backbone", "two_three", "--reuse", "probe")
    cpg_script.main(argv)
    folder = poor(fleet).paths.reused("digits", "two_three", "zero_one", how="probe")
    text = control_file(folder).read_text()
    metrics = json.loads(text)["metrics"]

    network = seen_as(load(fleet.scratch_checkpoint("two_three")), "two_three")
    data = digits(fleet, "zero_one", train_per_class=5)
    with torch.no_grad():
        train, test = (
            network.encode(data.to_inputs(samples.inputs)).double().numpy()
            for samples in (data.train, data.test)
        )
    assert len(train) == 10
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=metrics["strength"], max_iter=1000)
    model.fit(scaler.transform(train), data.train.labels)
    assert metrics["test_accuracy"] == model.score(scaler.transform(test), data.test.labels)

    cpg_script.main(argv)
    assert control_file(folder).read_text() == text
    refused = refusal(cpg_script.main, [*argv, "--train_per_class", "6", "--run", POOR])
    assert "train_per_class (5 recorded, 6 requested)" in refused


def test_a_control_needs_a_backbone() -> None:
    with pytest.raises(SystemExit) as ended:
        cpg_script.main(["--reuse", "copy"])
    assert ended.value.code == 2


def digits(fleet: Fleet, task: str, **how: object):
    table = load_table("digits", data_root=fleet.data)
    usual = {"data_root": fleet.data, "protocol": "published", "seed": 1, "device": "cpu"}
    return load_task(table, table.task(task), **usual, **how)


def seen_as(payload: dict, task: str):
    shared = SharedNetwork.from_payload(payload, build=ARCHITECTURES["lenet5"], source=Path("checkpoint"))
    return shared.as_task(task)
