"""Exported tasks give the same logits as the shared network, without the rest of the project."""

import importlib.util
import io
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import models
from data.loading import Batches, load_task
from data.tables import load_table
from methods.ownership import SharedNetwork
from models.layers import PLAIN
from models.lenet5 import lenet5
from tests.helpers import Fleet, load, refusal
from tools import export_task
from tools.export_task import as_onnx, read_exported
from utils.errors import UserError


def images(fleet: Fleet, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """The task's test images, normalised, and its mean and standard deviation."""
    table = load_table("digits", data_root=fleet.data)
    data = load_task(
        table, table.task(task), data_root=fleet.data, protocol="published", seed=1, device="cpu"
    )
    return next(iter(Batches(data, batch_size=32).test()))[0], data.mean, data.std


def shared_logits(path: Path, task: str, inputs: Tensor) -> Tensor:
    shared = SharedNetwork.from_payload(load(path), build=models.ARCHITECTURES["lenet5"], source=path)
    with torch.no_grad():
        return shared.as_task(task)(inputs)


def export(fleet: Fleet, task: str, to: Path, *more: object) -> None:
    argv = [str(fleet.target_folder()), task, "--to", str(to), "--data_root", str(fleet.data)]
    export_task.main([*argv, *map(str, more)])


@pytest.mark.parametrize(("task", "width"), [("four_five", 2.0**0.5), ("1", 1.0)])
def test_logits_of_a_state_dict_are_bit_identical_to_the_shared_network(
    task: str, width: float, trained_fleet: Fleet, tmp_path: Path
) -> None:
    export(trained_fleet, task, tmp_path / "task.pt")
    network, card = read_exported(tmp_path / "task.pt")
    name = "zero_one" if task == "1" else task
    inputs, mean, std = images(trained_fleet, name)
    expected = shared_logits(trained_fleet.target_folder() / "checkpoint-4.pth.tar", name, inputs)
    with torch.no_grad():
        assert torch.equal(network(inputs), expected)
    assert (card["task"], card["width"], len(card["classes"])) == (name, width, 2)
    assert (card["mean"], card["std"]) == (mean.tolist(), std.tolist())

    # PyTorch's own layers give the same logits.
    plain = lenet5(layers=PLAIN, batch_norm=True, width=width, in_channels=card["in_channels"], size=32)
    plain.add_head(2, in_features=head_features(tmp_path / "task.pt"))
    plain.load_state_dict(load(tmp_path / "task.pt")["state_dict"])
    with torch.no_grad():
        assert torch.equal(plain.eval()(inputs), expected)


def head_features(path: Path) -> int:
    return load(path)["state_dict"]["classifiers.0.weight"].shape[1]


def test_a_program_gives_the_logits_for_any_number_of_images(trained_fleet: Fleet, tmp_path: Path) -> None:
    export(trained_fleet, "four_five", tmp_path / "task.pt2")
    content = {"card.json": ""}
    network = torch.export.load(tmp_path / "task.pt2", extra_files=content).module()
    card = json.loads(content["card.json"])
    inputs, mean, _ = images(trained_fleet, "four_five")
    expected = shared_logits(trained_fleet.target_folder() / "checkpoint-4.pth.tar", "four_five", inputs)
    for count in (1, len(inputs)):
        torch.testing.assert_close(network(inputs[:count]), expected[:count], rtol=1e-4, atol=1e-5)
    assert (card["classes"], card["mean"]) == (["4", "5"], mean.tolist())


def test_a_damaged_export_is_reported_in_one_line(trained_fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "task.pt"
    export_task.main([str(trained_fleet.baseline_checkpoint("two_three")), "two_three", "--to", str(path)])
    content, written = load(path), path.read_bytes()
    card, state = content["card"], content["state_dict"]
    number = state | {"features.7.bias": 1}
    without_bias = {name: value for name, value in state.items() if name != "features.7.bias"}
    wrong = {
        "its content does not match its checksum": written.replace(b"two_three", b"two_thred"),
        "card['width'] is 'wide'": saved({"state_dict": state, "card": card | {"width": "wide"}}),
        "card['architecture'] is None": saved({"state_dict": state, "card": card | {"architecture": None}}),
        "does not fit the head": saved({"state_dict": state, "card": card | {"classes": ["1"]}}),
        "lenet5 reads no texts": saved({"state_dict": state, "card": card | {"modality": "text"}}),
        "fit its architecture: features.7.bias": saved({"state_dict": without_bias, "card": card}),
        "state_dict['features.7.bias'] is 1": saved({"state_dict": number, "card": card}),
    }
    for message, damaged in wrong.items():
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            read_exported(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_scratch_checkpoint_can_be_exported(trained_fleet: Fleet, tmp_path: Path) -> None:
    path = trained_fleet.baseline_checkpoint("two_three")
    export_task.main([str(path), "two_three", "--to", str(tmp_path / "x.pt")])
    network, card = read_exported(tmp_path / "x.pt")
    assert card["architecture"] == {"name": "lenet5", "layers": "plain"}
    assert set(network.state_dict()) == set(load(path)["model_state_dict"])


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `onnx` is not installed",
)
class TestOnnx:
    def test_onnxruntime_gives_the_logits_of_the_shared_network(
        self, trained_fleet: Fleet, tmp_path: Path
    ) -> None:
        import onnxruntime

        path = tmp_path / "task.onnx"
        export(trained_fleet, "four_five", path)
        session = onnxruntime.InferenceSession(path)
        inputs, mean, _ = images(trained_fleet, "four_five")
        expected = shared_logits(trained_fleet.target_folder() / "checkpoint-4.pth.tar", "four_five", inputs)
        for count in (1, len(inputs)):
            (logits,) = session.run(None, {"inputs": inputs[:count].numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected[:count], rtol=1e-4, atol=1e-5)
        card = session.get_modelmeta().custom_metadata_map
        assert json.loads(card["mean"]) == mean.tolist()
        assert json.loads(card["classes"]) == ["4", "5"]

    @pytest.mark.parametrize("arch", ["alexnet", "spherenet20", "resnet18"])
    def test_other_architectures_give_the_same_logits(self, arch: str) -> None:
        import onnxruntime

        torch.manual_seed(1)
        network = models.ARCHITECTURES[arch](width=0.25, in_channels=3, size=16)
        network.add_head(3)
        network.eval().requires_grad_(False)
        content = as_onnx(network, {"modality": "image", "in_channels": 3, "size": 16})
        inputs = torch.randn(5, 3, 16, 16)
        (logits,) = onnxruntime.InferenceSession(content).run(None, {"inputs": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(inputs), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("modality", ["image", "text"])
    def test_a_perceiver_accepts_any_number_of_samples(self, modality: str) -> None:
        import onnxruntime

        torch.manual_seed(1)
        sizes = {"num_latents": 4, "latent_dim": 16, "depth": 1, "latent_heads": 2, "latent_dim_head": 8}
        network = models.ARCHITECTURES["perceiver_io"](width=1.0, in_channels=3, size=8, **sizes)
        network.add_head(3)
        network.eval().requires_grad_(False).modality = modality
        content = as_onnx(network, {"modality": modality, "in_channels": 3, "size": 8})
        inputs = torch.randn(5, 3, 8, 8) if modality == "image" else torch.randn(5, 17, 768)
        if modality == "text":
            inputs[1, 9:] = 0.0  # padding
        (logits,) = onnxruntime.InferenceSession(content).run(None, {"inputs": inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(inputs), rtol=1e-4, atol=1e-5)


def test_a_task_that_cannot_be_exported_is_reported_in_one_line(
    trained_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(checkpoint: Path, task: str, to: str, *more: str) -> str:
        flags = ["--to", str(tmp_path / to), "--data_root", str(trained_fleet.data), *more]
        return refusal(export_task.main, [str(checkpoint), task, *flags])

    folder = trained_fleet.target_folder()
    assert "ends in .pt, .pt2 or .onnx" in message(folder, "1", "x.bin")
    assert "holds no task two_three: it holds zero_one, four_five" in message(folder, "two_three", "x.pt")
    assert "has no task 'fish'" in message(folder, "fish", "x.pt")
    assert "checkpoint-<epoch>.pth.tar not found" in message(tmp_path, "1", "x.pt")
    assert "not found" in message(tmp_path / "absent.pth.tar", "1", "x.pt")

    published = load(folder / "checkpoint-4.pth.tar")
    sequence = {"past": [], "epochs": 1, "seconds": 1.0}
    torch.save(published | {"sequence": sequence}, tmp_path / "spg.pth.tar")
    assert "was written by spg_main.py: give a checkpoint of" in message(
        tmp_path / "spg.pth.tar", "1", "x.pt"
    )
    own = published["task_table"] | {"config": "mine"}
    torch.save(published | {"task_table": own}, tmp_path / "own.pth.tar")
    assert "belongs to a table of your own, mine: give its file with --dataset_config" in message(
        tmp_path / "own.pth.tar", "1", "x.pt"
    )
    del published["task_table"], published["architecture"]
    torch.save(published, tmp_path / "published.pth.tar")
    assert "give it with --dataset_config" in message(tmp_path / "published.pth.tar", "1", "x.pt")
    export_task.main(
        [
            *(str(tmp_path / "published.pth.tar"), "1", "--to", str(tmp_path / "x.pt")),
            *("--dataset_config", "digits", "--data_root", str(trained_fleet.data)),
        ]
    )

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package onnx and onnxscript: install" in message(folder, "1", "x.onnx")
    for content in (b"nonsense", saved({"state": 1}), saved([1])):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(UserError, match="not a network exported by tools"):
            read_exported(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"absent\.pt not found: give the \.pt file"):
        read_exported(tmp_path / "absent.pt")


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
