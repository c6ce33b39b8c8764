"""Sequences on backbones other than SPG's own: running statistics, importance, the command line."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import packnet_models
import spg_main
from methods.approaches import APPROACHES
from methods.approaches.base import Settings, TaskPasses, train_on_learned_statistics
from methods.approaches.spg import SPG, normalised_importance, task_importance
from tests.helpers import load, refusal
from training.loop import train_step
from utils.runtime import autocast

BUILD = partial(packnet_models.ARCHITECTURES["resnet18"], size=16)
CPU = autocast(torch.device("cpu"), "fp32")


def setup() -> dict:
    """The arguments of an approach's constructor."""
    return {"build": lambda width: BUILD(width=width / 8), "total": 3, "settings": Settings()}


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 3, 16, 16, generator=generator) + seed, torch.arange(12) % 3


def learn(learned, seed: int) -> None:
    passes = TaskPasses(batches=lambda size: iter([batch(seed)]), autocast=CPU)
    made = learned.learner("train", passes, epochs=1)
    optimizer = made.optimizers["weights"]
    optimizer.param_groups[0]["lr"] = 0.05
    made.method.before_task()
    learned.network.train()
    for _ in range(3):
        inputs, labels = batch(seed)
        train_step(
            network=learned.network,
            method=made.method,
            optimizers=[optimizer],
            inputs=inputs,
            labels=labels,
            autocast=CPU,
        )
    made.method.after_task()


@pytest.mark.parametrize("approach", ["spg", "ncl", "ewc"])
def test_every_task_keeps_its_running_statistics_also_in_payloads(approach):
    torch.manual_seed(0)
    learned = APPROACHES[approach](**setup())
    learned.begin_task("first", 3)
    learn(learned, 1)
    learned.network.eval()
    state = learned.network.features.state_dict()
    statistics = {name: value.clone() for name, value in state.items() if "running" in name}
    assert not torch.equal(statistics["bn1.running_mean"], torch.zeros(8))
    learned.begin_task("second", 3)
    learn(learned, 5)
    again = APPROACHES[approach].from_payload(learned.payload(), Path("x"), **setup())
    inputs, _ = batch(1)
    with torch.no_grad():
        for name in ("first", "second"):
            expected = learned.as_task(name).eval()(inputs)
            assert torch.equal(again.as_task(name).eval()(inputs), expected)
    first = again.as_task("first").features.state_dict()
    newest = again.as_task("second").features.state_dict()
    for name, value in statistics.items():
        assert torch.equal(first[name], value)
        assert not torch.equal(newest[name], value)
    assert torch.equal(first["conv1.weight"], newest["conv1.weight"]), "parameters are shared"


def test_importance_without_a_named_last_layer_equals_one_pass_per_head():
    torch.manual_seed(0)
    learned = SPG(**setup())
    for name in ("first", "second", "third"):
        learned.begin_task(name, 3)
        learn(learned, 2)
    network = learned.network
    train_on_learned_statistics(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = task_importance(network=network, batches=lambda: iter([batch(2), batch(3)]), autocast=CPU)
    parameters = dict(network.features.named_parameters())
    assert found.keys() == parameters.keys()
    for name in ("conv1.weight", "bn1.weight", "layer3.0.downsample.0.weight", "layer4.1.bn2.bias"):
        parameter = parameters[name]
        largest = torch.zeros_like(parameter)
        for head in network.classifiers:
            total = torch.zeros_like(parameter)
            for inputs, labels in (batch(2), batch(3)):
                logits = head(network.features(inputs))
                newest = head is network.classifiers[-1]
                loss = cross_entropy(logits, labels, reduction="sum") if newest else logits.sum()
                total += torch.autograd.grad(loss, parameter)[0]
            largest = torch.maximum(largest, normalised_importance(total))
        assert torch.allclose(found[name], largest, atol=1e-4), name
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dropout_is_on_and_batch_norms_use_running_statistics():
    network = packnet_models.ARCHITECTURES["mobilenetv2"](width=0.25, size=32)
    train_on_learned_statistics(network)
    modes = {type(layer): layer.training for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert modes == {nn.BatchNorm2d: False}
    assert all(layer.training for layer in network.modules() if isinstance(layer, nn.Dropout))


@pytest.fixture
def flags(tmp_path, digits_root) -> list[str]:
    return [
        *("--checkpoints_root", str(tmp_path / "c"), "--logs_root", str(tmp_path / "l")),
        *("--data_root", str(digits_root), "--device", "cpu", "--threads", "1"),
        *("--seq", "digits_5", "--epochs", "1", "--batch_size", "256"),
    ]


def test_a_sequence_is_learned_by_a_resnet_and_then_skipped(flags, tmp_path):
    argv = [*flags, "--appr", "spg", "--backbone", "resnet18"]
    spg_main.main(argv)
    folder = tmp_path / "l" / "spg" / "digits_5" / "spg-resnet18" / "seed1"
    first = json.loads((folder / "metrics.json").read_text())
    assert len(first["accuracy_matrix"]) == 5
    assert first["arguments"]["arch"] == "resnet18"
    spg_main.main(argv)
    assert json.loads((folder / "metrics.json").read_text())["accuracy_matrix"] == first["accuracy_matrix"]


@pytest.mark.parametrize("approach", ["spg", "mtl"])
def test_heads_of_a_sequence_are_linear_on_any_backbone(flags, tmp_path, approach):
    spg_main.main(
        [*flags, "--appr", approach, "--backbone", "spherenet20", "--lr", "0.01", "--keep_checkpoints"]
    )
    (path, *_) = (tmp_path / "c").rglob("checkpoint-*")
    names = load(path)["model_state_dict"]
    heads = {name for name in names if name.startswith("classifiers.0.")}
    assert heads == {"classifiers.0.weight", "classifiers.0.bias"}
    assert "features.0.bias" in names and "features.1.weight" in names


def test_backbones_that_cannot_learn_a_sequence_end_in_one_line(flags):
    def line(*more: str) -> str:
        return refusal(spg_main.main, [*flags, *more])

    assert "unknown --arch 'resnet19': choose from lenet5, alexnet, " in line("--backbone", "resnet19")
    assert "perceiver" not in line("--backbone", "perceiver").partition("choose")[2]
    assert "--dropout requires --arch alexnet" in line("--backbone", "resnet18", "--dropout", "0.1", "0.1")
    shown = line("--backbone", "mobilenetv2")
    assert "--arch mobilenetv2 cannot learn digits_5: images of 16 pixels are too small" in shown
