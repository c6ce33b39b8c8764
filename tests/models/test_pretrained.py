"""Initialisation with torchvision's weights: every architecture that has them, any width, and bad files."""

import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

import CPG_cifar100_main_normal as cpg_script
import models
import packnet_cifar100_main_normal as packnet_script
import packnet_models
from models.pretrained import PRETRAINED, start_from
from tests.helpers import load, refusal
from utils.paths import checkpoint_in


def torchvision(name: str) -> nn.Module:
    """torchvision's model with random batch norm statistics."""
    torch.manual_seed(3)
    model = get_model(name, weights=None)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="session")
def mobilenet() -> nn.Module:
    return torchvision("mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 32) for name in PRETRAINED), ("resnet18", 64), ("efficientnetb0", 64)]
)
def test_torchvisions_names_and_shapes_match_every_architecture(name, size):
    def build(*, width: float):
        return models.ARCHITECTURES[name](width=width, size=size)

    with torch.device("meta"):
        weights = get_model(PRETRAINED[name].name, weights=None).state_dict()
        network = build(width=1.5**0.5)
    own = start_from(network, weights, pretrained=PRETRAINED[name], build=build)
    if name.startswith("resnet") and size == 32:
        assert own == ["conv1.weight"], "the 3×3 kernel of small images"
    elif name == "vgg16_bn_cifar100":
        assert own == ["45.weight", "45.bias", "47.weight", "47.bias"]
    else:
        assert own == []


@torch.no_grad()
def test_a_network_of_width_1_computes_the_same_as_torchvisions(mobilenet):
    def build(*, width: float):
        return packnet_models.ARCHITECTURES["mobilenetv2"](width=width, size=64)

    network = build(width=1.0)
    start_from(network, mobilenet.state_dict(), pretrained=PRETRAINED["mobilenetv2"], build=build)
    inputs = torch.randn(2, 3, 64, 64)
    features = network.eval().features(inputs)
    assert torch.allclose(mobilenet.classifier(features), mobilenet(inputs), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_wider_network_has_the_weights_in_its_leading_region_and_random_ones_beyond():
    def build(*, width: float):
        return models.ARCHITECTURES["resnet18"](width=width, size=32)

    weights = torchvision("resnet18").state_dict()
    network = build(width=1.5)
    start_from(network, weights, pretrained=PRETRAINED["resnet18"], build=build)
    state = network.features.state_dict()
    for name in ("layer1.0.conv1.weight", "layer4.1.bn2.running_var", "layer2.0.downsample.0.weight"):
        region = tuple(slice(0, size) for size in weights[name].shape)
        assert torch.equal(state[name][region], weights[name])
    assert state["layer1.0.conv1.weight"][64:].std() > 0
    assert (state["layer4.1.bn2.running_var"][512:] == 1).all()
    with pytest.raises(ValueError, match="narrower"):
        start_from(build(width=0.9), weights, pretrained=PRETRAINED["resnet18"], build=build)


@pytest.fixture
def flags(make_tree, make_table, tmp_path) -> list[str]:
    """One task with a few images and a learning rate too small to change the weights."""
    data = make_tree({"pets": ("cat", "dog")}, root="pictures", size=32)
    table = make_table('[pictures]\nroot = "pictures"\n')
    return [
        *(
            "--dataset_config",
            str(table),
            "--data_root",
            str(data),
            "--device",
            "cpu",
            "--arch",
            "mobilenetv2",
        ),
        *("--checkpoints_root", str(tmp_path / "c"), "--logs_root", str(tmp_path / "l")),
        *("--epochs", "1", "--lr", "1e-20", "--threads", "1"),
    ]


@pytest.fixture
def file(mobilenet, tmp_path) -> Path:
    torch.save(mobilenet.state_dict(), tmp_path / "mobilenet.pth")
    return tmp_path / "mobilenet.pth"


def trained_state(tmp_path: Path, stage: str) -> dict[str, Tensor]:
    folder = tmp_path / "c" / "mobilenetv2" / "seed1" / stage / "pictures" / "pets"
    return load(checkpoint_in(folder / "scratch" if stage.startswith("CPG") else folder, remedy=""))[
        "model_state_dict"
    ]


def test_stage_1_starts_from_a_file_and_records_which(flags, file, mobilenet, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    packnet_script.main([*flags, "--pretrained_file", str(file)])
    state = trained_state(tmp_path, "baseline_scratch")
    name = "features.5.conv.1.0.weight"
    assert torch.equal(state[f"features.{name}"], mobilenet.state_dict()[name])
    assert f"Started from {file}" in caplog.text
    line = refusal(packnet_script.main, flags)
    assert "made with other arguments: pretrained (sha256:" in line


def test_the_cpg_version_starts_from_a_download_at_a_larger_width(flags, mobilenet, tmp_path, monkeypatch):
    requested = []

    def fetch(weights: WeightsEnum, **_: object) -> dict[str, Tensor]:
        requested.append(weights.url)
        return mobilenet.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetch)
    cpg_script.main([*flags, "--use_imagenet_pretrained", "--network_width_multiplier", "1.5"])
    assert requested == ["https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"]
    checkpoints = list((tmp_path / "c").rglob("checkpoint-1.pth.tar"))
    state = load(checkpoints[0])["model_state_dict"]["features.features.5.conv.1.0.weight"]
    expected = mobilenet.state_dict()["features.5.conv.1.0.weight"]
    assert len(state) > len(expected)
    assert torch.equal(state[: len(expected)], expected)


def test_an_unfinished_sequence_is_not_resumed_with_another_initialisation(flags, file, tmp_path):
    baselines = tmp_path / "baselines.json"
    baselines.write_text('{"pets": "0.0"}')
    quick = ("--prune_epochs", "1", "--target_sparsity", "0.5", "--max_allowed_network_width_multiplier", "1")
    argv = [*flags, "--mode", "finetune", "prune", "--total_num_tasks", "1", "--jsonfile", str(baselines)]
    cpg_script.main([*argv, *quick, "--keep_checkpoints"])
    for path in tmp_path.glob("c/**/gradual_prune/checkpoint-*"):
        path.unlink()
    line = refusal(cpg_script.main, [*argv, *quick, "--pretrained_file", str(file)])
    assert "width-1.0" in line and "made with other arguments: pretrained (none recorded, sha256:" in line


def test_unusable_weights_are_refused_in_one_line(flags, file, mobilenet, tmp_path, monkeypatch):
    def line(*more: object) -> str:
        return refusal(packnet_script.main, [*flags, *map(str, more)])

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    shown = line("--use_imagenet_pretrained")
    assert "mobilenet_v2-b0353104.pth cannot be downloaded" in shown and "--pretrained_file" in shown
    assert "no ImageNet weights for it: choose one of vgg16_bn, " in line(
        "--arch", "lenet5", "--use_imagenet_pretrained"
    )
    assert "not found" in line("--pretrained_file", tmp_path / "nothing.pth")

    bad = tmp_path / "bad.pth"
    bad.write_bytes(file.read_bytes()[:1000])
    assert "is truncated or not a state dict" in line("--pretrained_file", bad)
    torch.save(mobilenet, bad)
    assert "holds more than tensors, numbers and strings, and is not opened" in line("--pretrained_file", bad)
    torch.save({"model": mobilenet.state_dict()}, bad)
    assert "is not a state dict" in line("--pretrained_file", bad)

    state = mobilenet.state_dict()
    name = "features.5.conv.1.0.weight"
    for change, expected in (
        ({name: torch.zeros(3, 1, 3, 3)}, f"{name} has shape (3, 1, 3, 3), expected (192, 1, 3, 3)"),
        ({"surplus": torch.zeros(1)}, "the weights have unknown names: surplus"),
    ):
        torch.save(state | change, bad)
        shown = line("--pretrained_file", bad)
        assert "do not fit --arch mobilenetv2" in shown and expected in shown
    torch.save({key: value for key, value in state.items() if key != name}, bad)
    assert f"the weights lack {name}" in line("--pretrained_file", bad)
