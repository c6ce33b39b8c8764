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
    root = tmp_path / "imagenet32"
    batches = [
        imagenet_batch(root / "train" / f"train_data_batch_{number}", [1, 2, 3, 4, 2], seed=number)
        for number in range(1, 11)
    ]
    held = imagenet_batch(root / "test" / "val_data", [4, 3, 2, 1], seed=99)
    return tmp_path, batches, held


def test_imagenet32(imagenet, monkeypatch, change_sequence):
    root, batches, held = imagenet
    prepare(["imagenet32", "--data_root", str(root)])
    record = torch.load(root / "cache" / "imagenet32" / "class_0002" / "train.pt", weights_only=True)
    expected = numpy.concatenate([batch[[1, 4]] for batch in batches]).reshape(-1, 3, 32, 32)
    assert record["images"].numpy().tobytes() == expected.tobytes()
    test = torch.load(root / "cache" / "imagenet32" / "class_0004" / "test.pt", weights_only=True)
    assert test["images"][0].numpy().tobytes() == held[0].tobytes()
    # Nothing is left of the building, and a second time nothing is done.
    assert not list((root / "cache" / "imagenet32").glob(".building*"))
    monkeypatch.setattr("data.safe_pickle.load", None)
    prepare(["imagenet32", "--data_root", str(root)])
    change_sequence("imagenet_100", tasks=2, classes=2, train=7, val=2, test=1)
    sequence = load_sequence("imagenet_100", data_root=root, seed=1)
    assert len(load_task(sequence, 1, data_root=root, device="cpu").train) == 14


def test_imagenet32_refused(imagenet):
    root, _, _ = imagenet
    folder = root / "imagenet32"
    imagenet_batch(folder / "train" / "train_data_batch_3", [1, 2], seed=0, width=3000)
    with pytest.raises(
        UserError, match=r"train_data_batch_3: data is uint8 \(2, 3000\), not uint8 \(N, 3072\)"
    ):
        prepare(["imagenet32", "--data_root", str(root)])
    imagenet_batch(folder / "train" / "train_data_batch_3", [], seed=0)
    with pytest.raises(UserError, match="train_data_batch_3 holds no images: download it again"):
        prepare(["imagenet32", "--data_root", str(root)])
    imagenet_batch(folder / "train" / "train_data_batch_3", [0, 2], seed=0)
    with pytest.raises(UserError, match="not 2 numbers from 1 to 1000"):
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
