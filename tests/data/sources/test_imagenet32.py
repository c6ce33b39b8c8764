import pickle

import numpy
import pytest
import torch

from data.prepare import main as prepare
from data.sequences import load_sequence, load_task
from utils.errors import UserError


def imagenet_batch(path, labels, *, seed, width=3072):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = numpy.random.default_rng(seed).integers(0, 256, (len(labels), width), dtype=numpy.uint8)
    with path.open("wb") as file:
        pickle.dump({"data": data, "labels": list(labels), "mean": data.sum(0) / max(len(data), 1)}, file)
    return data


@pytest.fixture
def imagenet(tmp_path):
    """(data folder, training batches, validation batch), where the authors place them."""
    root = tmp_path / "imagenet"
    batches = [
        imagenet_batch(root / "train" / f"train_data_batch_{number}", [1, 2, 3, 4, 2], seed=number)
        for number in range(1, 11)
    ]
    held = imagenet_batch(root / "test" / "val_data", [4, 3, 2, 1], seed=99)
    return tmp_path, batches, held


def first_pixels(root):
    record = torch.load(root / "cache" / "imagenet32" / "class_0001" / "train.pt", weights_only=True)
    return record["images"][0].numpy().tobytes()


def test_imagenet32(imagenet, monkeypatch, change_sequence):
    root, batches, held = imagenet
    prepare(["imagenet32", "--data_root", str(root)])
    record = torch.load(root / "cache" / "imagenet32" / "class_0002" / "train.pt", weights_only=True)
    expected = numpy.concatenate([batch[[1, 4]] for batch in batches]).reshape(-1, 3, 32, 32)
    assert record["images"].numpy().tobytes() == expected.tobytes()
    test = torch.load(root / "cache" / "imagenet32" / "class_0004" / "test.pt", weights_only=True)
    assert test["images"][0].numpy().tobytes() == held[0].tobytes()
    # No temporary files remain, and a second run reads no batch.
    assert not list((root / "cache" / "imagenet32").glob(".building*"))
    monkeypatch.setattr("data.safe_pickle.load", None)
    prepare(["imagenet32", "--data_root", str(root)])
    change_sequence("imagenet_100", tasks=2, classes=2, train=7, val=2, test=1)
    sequence = load_sequence("imagenet_100", data_root=root, seed=1)
    assert len(load_task(sequence, 1, data_root=root, device="cpu").train) == 14


def test_imagenet32_interrupted(imagenet, monkeypatch):
    """Nothing remains that would pass for a finished preparation, and the next run succeeds."""
    root, batches, _ = imagenet

    def write(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr("data.cache.write", write)
        prepare(["imagenet32", "--data_root", str(root)])
    folder = root / "cache" / "imagenet32"
    assert not list(folder.glob(".building*")) and not (folder / "prepared.json").exists()
    prepare(["imagenet32", "--data_root", str(root)])
    assert first_pixels(root) == batches[0][0].tobytes()


def test_imagenet32_refused(imagenet):
    root, _, _ = imagenet
    folder = root / "imagenet"
    imagenet_batch(folder / "train" / "train_data_batch_3", [1, 2], seed=0, width=3000)
    with pytest.raises(
        UserError, match=r"train_data_batch_3: data is uint8 \(2, 3000\), not uint8 \(N, 3072\)"
    ):
        prepare(["imagenet32", "--data_root", str(root)])
    imagenet_batch(folder / "train" / "train_data_batch_3", [], seed=0)
    with pytest.raises(UserError, match="train_data_batch_3 holds no images: download it again"):
        prepare(["imagenet32", "--data_root", str(root)])
    imagenet_batch(folder / "train" / "train_data_batch_3", [0, 2], seed=0)
    with pytest.raises(UserError, match="not 2 whole numbers from 1 to 1000"):
        prepare(["imagenet32", "--data_root", str(root)])

    class Harmful:
        def __reduce__(self):
            return (print, ("opened",))

    (folder / "train" / "train_data_batch_3").write_bytes(pickle.dumps({"data": Harmful()}))
    with pytest.raises(UserError, match=r"names builtins.print, which is refused"):
        prepare(["imagenet32", "--data_root", str(root)])
    (folder / "train" / "train_data_batch_3").unlink()
    with pytest.raises(UserError, match="train_data_batch_3 not found"):
        prepare(["imagenet32", "--data_root", str(root)])


def test_imagenet32_elsewhere(imagenet, caplog):
    """The folder imagenet32 is read as well, even beside a folder imagenet without batches."""
    root, batches, _ = imagenet
    (root / "imagenet").rename(root / "imagenet32")
    (root / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    with caplog.at_level("INFO"):
        prepare(["imagenet32", "--data_root", str(root)])
    assert f"reading {root}/imagenet32/train/train_data_batch_1" in caplog.text
    assert first_pixels(root) == batches[0][0].tobytes()


def test_imagenet32_in_both_places(imagenet):
    root, batches, _ = imagenet
    imagenet_batch(root / "imagenet32" / "train" / "train_data_batch_1", [1, 2, 3, 4], seed=50)
    prepare(["imagenet32", "--data_root", str(root)])
    assert first_pixels(root) == batches[0][0].tobytes()


@pytest.mark.parametrize("place", ["imagenet", "imagenet32"])
def test_imagenet32_missing(imagenet, place):
    root, _, _ = imagenet
    (root / "imagenet" / "test" / "val_data").unlink()
    (root / "imagenet").rename(root / place)
    with pytest.raises(
        UserError, match=rf"{root}/{place}/test/val_data not found: put .* at {root}/{place},"
    ):
        prepare(["imagenet32", "--data_root", str(root)])


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_imagenet32_prepares_again_what_is_damaged(imagenet, monkeypatch, damage):
    root, batches, _ = imagenet
    prepare(["imagenet32", "--data_root", str(root)])
    path = root / "cache" / "imagenet32" / "class_0001" / "train.pt"
    whole = path.read_bytes()
    pixels = batches[0][0].tobytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(whole.replace(pixels, bytes([pixels[0] ^ 1]) + pixels[1:]))
        monkeypatch.setattr("data.cache._verified", set())
    prepare(["imagenet32", "--data_root", str(root)])
    assert first_pixels(root) == pixels
