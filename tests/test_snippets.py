"""The Python snippets of docs/usage.md do what the page says, as printed."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import CPG_cifar100_main_normal as cpg_script
import packnet_cifar100_main_normal as packnet_script
import spg_main
from data.images import decode_image
from methods.ownership import SharedNetwork
from pipeline.architectures import SHARABLE, architecture
from pipeline.spg import ContinualRun
from tests.helpers import REPOSITORY, Fleet, load, refusal
from tools import export_task, list_tasks
from tools.export_task import read_exported
from utils.architecture_names import architecture_name
from utils.errors import UserError


def snippet(containing: str) -> str:
    """The Python block of docs/usage.md that contains a text."""
    page = (REPOSITORY / "docs" / "usage.md").read_text(encoding="utf-8")
    (found,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if containing in block
    )
    return found


def test_an_image_file_is_classified_with_an_exported_network(
    trained_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fish.pt2", "fish.pt"):
        export_task.main([str(trained_fleet.target_folder()), "four_five", "--to", name])
    pixels = numpy.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save("photo.png")
    code = snippet("torch.export.load")
    assert not re.search(r"from (data|tools|models)", code)
    exec(compile(code, "usage.md", "exec"), {})

    network, card = read_exported(Path("fish.pt"))
    content = Path("photo.png").read_bytes()
    decoded = decode_image(content, name="", size=card["size"], channels=card["in_channels"])
    mean, std = (torch.tensor(card[name]).view(-1, 1, 1) for name in ("mean", "std"))
    image = torch.tensor(decoded).permute(2, 0, 1)
    with torch.no_grad():
        expected = network(((image / 255 - mean) / std)[None]).softmax(dim=1)[0]
    printed = re.findall(r"^(\w+): ([\d.]+)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [name for name, _ in printed] == card["classes"]
    assert [float(value) for _, value in printed] == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_pruning_curve_is_plotted(
    trained_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_fleet.root)
    code = snippet("record.txt")
    can_plot = importlib.util.find_spec("matplotlib") is not None
    if can_plot:
        code = code.replace('"pruning.png"', repr(str(tmp_path / "pruning.png")))
        monkeypatch.setenv("MPLBACKEND", "agg")
    else:
        code = re.sub(r"^( *)(?:import matplotlib|plt).*", r"\1pass", code, flags=re.MULTILINE)
    found: dict = {}
    exec(compile(code, "usage.md", "exec"), found)
    assert list(found["curves"]) == ["four_five", "two_three", "zero_one"]
    for task, curve in found["curves"].items():
        accuracy = load(trained_fleet.pruned_checkpoint(task, 0.8))["metrics"]["validation_accuracy"]
        assert list(curve) == ["0.0", "0.5", "0.8"] and curve["0.8"] == accuracy
    assert not can_plot or (tmp_path / "pruning.png").stat().st_size > 1000


# An architecture of the user's own


@pytest.fixture
def my_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the snippet, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_net.py"
    path.write_text(snippet("def my_net"))
    return path


@pytest.fixture
def run_flags(
    tmp_path: Path, make_tree: Callable[..., Path], make_table: Callable[[str], Path]
) -> Callable[..., list[str]]:
    """The flags of a tiny run with the architecture."""
    data = make_tree({"cats": ["lynx", "puma"]}, train=4, size=8)
    table = make_table('[pictures]\nroot = "pictures"\nsize = 8\n')
    roots = {"data": data, "checkpoints": tmp_path / "checkpoints", "logs": tmp_path / "logs"}
    common = [word for name, root in roots.items() for word in (f"--{name}_root", str(root))]

    def make(*more: str, arch: str = "my_net.py:my_net") -> list[str]:
        return [*common, "--arch", arch, "--dataset_config", str(table), "--device", "cpu", *more]

    return make


def test_an_own_architecture_is_trained_pruned_grown_and_exported(
    my_net: Path, run_flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    packnet_script.main(run_flags("--epochs", "1"))
    mode = ("--mode", "finetune", "prune", "--target_sparsity", "0.5", "--prune_epochs", "1")
    cpg_script.main(run_flags("--epochs", "1", *mode))
    folder = tmp_path / "checkpoints" / "my_net" / "seed1"
    own = folder / "CPG_single_scratch_woexp" / "pictures" / "cats"
    scratch = folder / "baseline_scratch" / "pictures" / "cats"
    pruned = own / "gradual_prune" / "0.5"
    for made, layers in ((scratch, "plain"), (pruned, "sharable")):
        payload = load(made / "checkpoint-1.pth.tar")
        digest = payload["arguments"]["arch_file"]
        assert re.fullmatch("sha256:[0-9a-f]{16}", digest)
        assert payload["architecture"] == {"name": "my_net", "layers": layers, "file": digest}
        assert payload["arguments"]["arch"] == "my_net"
    assert json.loads((scratch / "config.json").read_text())["flags"]["arch"] == "my_net"

    # A second task on the first, at a greater width, leaves the first one's logits as they were.
    build = architecture(architecture_name("my_net.py:my_net"), layers=SHARABLE, in_channels=3, size=8)
    path = pruned / "checkpoint-1.pth.tar"
    shared = SharedNetwork.from_payload(load(path), build=build, source=path)
    images = torch.rand(2, 3, 8, 8)
    before = shared.as_task("cats")(images)
    shared.begin_task("dogs", num_classes=3, width=2.0**0.5)
    assert torch.equal(shared.as_task("cats")(images), before)
    assert shared.as_task("dogs")(images).shape == (2, 3)
    assert shared.network.feature_width == 181

    arch = ("--arch", str(my_net) + ":my_net")
    tables = ("--dataset_config", str(tmp_path / "table.toml"), "--data_root", str(tmp_path / "data"))
    export_task.main([str(pruned), "cats", "--to", "cats.pt", *arch, *tables])
    network, _ = read_exported(Path("cats.pt"), arch="my_net.py:my_net")
    assert torch.equal(network(images), before)
    with pytest.raises(
        UserError, match=r"cats\.pt holds the architecture my_net of a file .*: give that file"
    ):
        read_exported(Path("cats.pt"))
    assert "give that file, unchanged" in refusal(
        export_task.main, [str(pruned), "cats", "--to", "cats.pt", *tables]
    )

    my_net.write_text(my_net.read_text().replace("128", "64"))
    message = refusal(packnet_script.main, run_flags("--epochs", "1"))
    assert re.search(
        r"made with other arguments: arch_file \(sha256:\w+ recorded, sha256:\w+ requested\)", message
    )
    message = refusal(packnet_script.main, run_flags("--mode", "inference", "--load_folder", str(scratch)))
    assert f"made with another version of {my_net} (sha256:" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "layers.conv2d(first",
            "nn.Conv2d(first",
            r"my_net: 4 is a torch.nn.Conv2d: build convolutions with",
        ),
        ("nn.Flatten(),", "", r"my_net\.py: RuntimeError: .* \(run on an image of 3×8×8\): correct it"),
        (", width, in", ", in", r"line \d+: NameError: |my_net\.py: TypeError: "),
        (
            "int(64 * width)",
            "round(64 / width)",
            r"my_net: 4\.\w+ at width 1\.414 does not contain the one at",
        ),
        ("return nn.Sequential", "nn.Sequential", "my_net returned NoneType: return a torch.nn.Module"),
        ("def my_net", "def other", "the file has no function my_net"),
        ("from torch", "from porch", r"my_net\.py, line 1: ModuleNotFoundError: No module named 'porch'"),
        ("def my_net(", "def my_net((", r"my_net\.py, line \d+: SyntaxError: "),
        ("first, second, third", 'raise ValueError("too small")\n    first', "my_net: too small"),
    ],
)
def test_a_wrong_architecture_is_refused_before_any_training(
    old: str, new: str, message: str, my_net: Path, run_flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    text = my_net.read_text()
    assert old in text
    my_net.write_text(text.replace(old, new, 1))
    assert re.search(message, refusal(packnet_script.main, run_flags()))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("absent.py:my_net", r"/absent\.py not found: correct the path"),
        ("my_net.py", r"add the function that builds the network, for example my_net\.py:my_net"),
        ("my_net.py:lenet5", "this project has its own lenet5: rename the function"),
    ],
)
def test_a_wrong_name_of_an_architecture_is_refused(
    arch: str, message: str, my_net: Path, run_flags: Callable[..., list[str]]
) -> None:
    listing = [word for word in run_flags(arch=arch) if word not in ("--device", "cpu")]
    assert re.search(message, refusal(list_tasks.main, listing))


def test_an_own_architecture_learns_a_sequence(my_net: Path, digits_root: Path) -> None:
    argv = ["--arch", "my_net.py:my_net", "--data_root", str(digits_root), "--device", "cpu"]
    run = ContinualRun(spg_main.parse(argv), seed=1)
    assert run.run_name("spg") == "spg/digits_5/spg-my_net/seed1"
    assert run.recipe.stamp()["arch_file"] == run.output(run.stage_recipe(1, "train")).architecture["file"]
    assert run.build(width=1.0).feature_width == 32  # the sequence's networks have a quarter of the channels
