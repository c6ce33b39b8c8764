import pytest
import torch

from data.prepare import main as prepare
from data.sequences import load_sequence, load_task
from data.tables import load_table
from utils.errors import UserError


@pytest.fixture
def tiny(tmp_path, images_at):
    """The archive's layout: four classes with six training and three validation images each."""
    root = tmp_path / "tiny-imagenet-200"
    names = [f"n0000000{number}" for number in range(4)]
    lines = []
    for number, name in enumerate(names):
        images_at(root / "train" / name / "images", 6, size=(64, 64), prefix=name, start=10 * number)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    for number in range(12):
        (file,) = images_at(root / "val" / "images", 1, size=(64, 64), prefix="val", start=number)
        lines.append(f"{file}\t{names[number % 4]}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_tiny_imagenet(tiny, change_sequence):
    prepare(["tinyimagenet", "--data_root", str(tiny)])
    table = load_table("tinyimagenet", data_root=tiny)
    assert [task.name for task in table.tasks] == [f"n0000000{number}" for number in range(4)]
    change_sequence("tinyimagenet_10", tasks=2, classes=2, train=4, val=1, test=2)
    sequence = load_sequence("tinyimagenet_10", data_root=tiny, seed=1)
    data = load_task(sequence, 1, data_root=tiny, device="cpu")
    assert data.train.inputs.shape == (8, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [4, 4]
    assert data.validation.labels.bincount().tolist() == [1, 1]
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_tiny_imagenet_reorganised(tiny):
    prepare(["tinyimagenet", "--data_root", str(tiny)])
    path = tiny / "cache" / "tinyimagenet" / "n00000001" / "test.pt"
    before = torch.load(path, weights_only=True)
    val = tiny / "tiny-imagenet-200" / "val"
    for line in (val / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = line.split("\t")
        (val / name).mkdir(exist_ok=True)
        (val / "images" / file).rename(val / name / file)
    (val / "images").rmdir()
    (val / "val_annotations.txt").unlink()
    path.unlink()
    prepare(["tinyimagenet", "--data_root", str(tiny)])
    assert torch.load(path, weights_only=True)["images"].equal(before["images"])


def test_tiny_imagenet_half_prepared(tiny):
    root = tiny / "tiny-imagenet-200"
    prepare(["tinyimagenet", "--data_root", str(tiny)])
    with pytest.raises(UserError, match="holds 4 of 200 classes"):
        load_sequence("tinyimagenet_10", data_root=tiny, seed=1)
    image = next((root / "val" / "images").iterdir())
    image.unlink()
    with pytest.raises(UserError, match=f"{image.name} not found, but val_annotations.txt lists it"):
        prepare(["tinyimagenet", "--data_root", str(tiny)])
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val_annotations.txt not found"):
        prepare(["tinyimagenet", "--data_root", str(tiny)])
