"""Sequences, and the preparation of the raw layouts that they are made of."""

import json
import pickle

import numpy
import pytest
import torch
from PIL import Image

from data import sequences
from data.prepare import main as prepare
from data.sequences import joint_task, known_sequences, load_sequence, load_task, stratified
from data.tables import load_table
from utils.errors import UserError

EXPECTED = {
    # tasks, classes, train/val/test of a class, channels, size, dropouts
    "cifar100_10": (10, 10, (450, 50, 100), (0.3135, 0.4093)),
    "cifar100_20": (20, 5, (450, 50, 100), (0.4956, 0.4850)),
    "tinyimagenet_10": (10, 20, (450, 50, 50), (0.1249, 0.4344)),
    "tinyimagenet_20": (20, 10, (450, 50, 50), (0.3874, 0.4423)),
    "imagenet_100": (100, 10, (1000, 100, 50), (0.2085, 0.3602)),
    "fceleba_10": (10, 2, (200, 20, 40), (0.3257, 0.4147)),
    "fceleba_20": (20, 2, (200, 20, 40), (0.1984, 0.2694)),
    "femnist_10": (10, 62, (50, 5, 10), (0.4922, 0.4847)),
    "femnist_20": (20, 62, (50, 5, 10), (0.2975, 0.3887)),
}


def test_the_papers_sequences():
    assert set(known_sequences()) == {*EXPECTED, "digits_5"}
    for name, (tasks, classes, counts, dropout) in EXPECTED.items():
        entry = sequences._entry(name)
        assert (entry["tasks"], entry["classes"]) == (tasks, classes)
        assert (entry["train"], entry["val"], entry["test"]) == counts
        assert tuple(entry["dropout"]) == dropout


def test_stratified_keeps_total_and_shares():
    labels = torch.tensor([0] * 732 + [1] * 1300 + [2] * 1300)
    rows = stratified(labels, 1100, generator=torch.Generator().manual_seed(0))
    assert len(rows) == 1100 == len(rows.unique())
    assert labels[rows].bincount().tolist() == [242, 429, 429]
    assert not labels[rows].equal(labels[rows].sort().values)


@pytest.fixture(scope="module")
def digits_root(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


def test_digits_are_split_by_seed(digits_root):
    first, again, other = (load_sequence("digits_5", data_root=digits_root, seed=seed) for seed in (1, 1, 2))
    classes = [task.classes for task in first.table.tasks]
    assert sorted(name for group in classes for name in group) == sorted("0123456789")
    assert classes == [task.classes for task in again.table.tasks]
    assert classes != [task.classes for task in other.table.tasks]
    data, same = (load_task(one, 2, data_root=digits_root, device="cpu") for one in (first, again))
    assert data.fingerprint == same.fingerprint
    assert data.train.inputs.equal(same.train.inputs)
    assert data.train.labels.bincount().float().std() < 4
    assert [len(getattr(data, split)) for split in ("train", "validation", "test")] == [240, 40, 68]
    assert data.train.inputs.shape[1:] == (3, 16, 16)
    # No training image is a validation image.
    known = {image.numpy().tobytes() for image in data.train.inputs}
    assert not any(image.numpy().tobytes() in known for image in data.validation.inputs)


def test_joint_task_counts_all_classes(digits_root):
    sequence = load_sequence("digits_5", data_root=digits_root, seed=1)
    parts = [load_task(sequence, number, data_root=digits_root, device="cpu") for number in range(1, 6)]
    joint = joint_task(sequence, parts, name="all")
    assert joint.train.labels.bincount().float().std() < 4
    assert joint.task.num_classes == 10
    one = (joint.train.labels == 3).nonzero()[0].item()
    image = joint.train.inputs[one]
    assert any(image.equal(other) for other in parts[1].train.inputs[parts[1].train.labels == 1])


def test_missing_raw_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cache/cifar100|cifar100_org"):
        load_sequence("cifar100_10", data_root=tmp_path, seed=1) and load_task(
            load_sequence("cifar100_10", data_root=tmp_path, seed=1), 1, data_root=tmp_path, device="cpu"
        )
    for name, folder in (
        ("tinyimagenet", "tiny-imagenet-200"),
        ("imagenet32", "imagenet32"),
        ("fceleba", "fceleba"),
        ("femnist", "femnist"),
    ):
        used = next(one for one in EXPECTED if sequences._entry(one)["table"] == name)
        with pytest.raises(UserError, match=f"run `python -m data.prepare {name}`") as refused:
            load_sequence(used, data_root=tmp_path, seed=1)
        assert folder in str(refused.value)
        with pytest.raises(UserError, match=r"not found: put there what comes from .*http"):
            prepare([name, "--data_root", str(tmp_path)])


def images_at(folder, count, *, size=(8, 8), prefix="image", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(start)
    names = []
    for number in range(start, start + count):
        pixels = generator.integers(0, 256, (*size, 3), dtype=numpy.uint8)
        names.append(f"{prefix}_{number}.JPEG")
        Image.fromarray(pixels).save(folder / names[-1], format="JPEG")
    return names


def entry_for(monkeypatch, name, **changes):
    """A sequence with the layout of a published one and smaller numbers."""
    entry = sequences._entry(name) | changes
    monkeypatch.setattr(sequences, "_entries", lambda: {name: entry})


# Tiny ImageNet


@pytest.fixture
def tiny(tmp_path):
    """The archive's layout: four classes, of six training and three validation images."""
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


def test_tiny_imagenet(tiny, monkeypatch):
    prepare(["tinyimagenet", "--data_root", str(tiny)])
    table = load_table("tinyimagenet", data_root=tiny)
    assert [task.name for task in table.tasks] == [f"n0000000{number}" for number in range(4)]
    entry_for(monkeypatch, "tinyimagenet_10", tasks=2, classes=2, train=4, val=1, test=2)
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


# ImageNet-32


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


def test_imagenet32(imagenet, monkeypatch):
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
    entry_for(monkeypatch, "imagenet_100", tasks=2, classes=2, train=7, val=2, test=1)
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


# LEAF


def leaf_json(path, users):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def celeba(tmp_path):
    root = tmp_path / "fceleba"
    names = images_at(root / "raw" / "img_align_celeba", 24, size=(22, 18))
    train = {f"u{user}": (names[8 * user : 8 * user + 6], [0, 1, 0, 1, 0, 1]) for user in range(3)}
    test = {f"u{user}": (names[8 * user + 6 : 8 * user + 8], [1, 0]) for user in range(3)}
    for split, users in (("train", train), ("test", test)):
        leaf_json(root / "iid" / split / f"all_data_iid_01_0_keep_5_{split}_9.json", users)
    return tmp_path


def test_fceleba(celeba, monkeypatch):
    prepare(["fceleba", "--data_root", str(celeba)])
    table = load_table("fceleba", data_root=celeba)
    assert [task.name for task in table.tasks] == ["user_01", "user_02", "user_03"]
    assert table.tasks[0].classes == ("0", "1")
    entry_for(monkeypatch, "fceleba_10", tasks=3, train=2, val=1, test=1)
    orders = set()
    for seed in range(6):
        sequence = load_sequence("fceleba_10", data_root=celeba, seed=seed)
        orders.add(tuple(task.name for task in sequence.table.tasks))
        data = load_task(sequence, 1, data_root=celeba, device="cpu")
        assert data.train.inputs.shape == (4, 3, 32, 32) and len(data.test) == 2
    assert len(orders) > 1


def test_fceleba_refused(celeba):
    root = celeba / "fceleba"
    with pytest.raises(UserError, match=r"fceleba_10|holds 3 of 10 users|not found"):
        prepare(["fceleba", "--data_root", str(celeba)])
        load_sequence("fceleba_10", data_root=celeba, seed=1)
    image = root / "raw" / "img_align_celeba" / "image_3.JPEG"
    image.unlink()
    with pytest.raises(UserError, match=r"image_3.JPEG not found"):
        prepare(["fceleba", "--data_root", str(celeba)])
    listing = root / "iid" / "train" / "all_data_iid_01_0_keep_5_train_9.json"
    listing.write_text(listing.read_text()[:40])
    with pytest.raises(UserError, match=r"train_9.json is not valid JSON"):
        prepare(["fceleba", "--data_root", str(celeba)])
    listing.unlink()
    with pytest.raises(UserError, match=r"train_9.json not found"):
        prepare(["fceleba", "--data_root", str(celeba)])


@pytest.fixture
def femnist(tmp_path):
    root = tmp_path / "femnist" / "raw"
    generator = numpy.random.default_rng(0)
    for number in range(12):
        for split, count in (("train", 20), ("test", 8)):
            x = generator.random((count, 784)).round(4)
            x[0] = number / 20
            y = [(number + index) % 62 for index in range(count)]
            path = root / split / f"all_data_{number}_iid_01_0_keep_0_{split}_9.json"
            leaf_json(path, {f"f{number}": (x.tolist(), y)})
    return tmp_path


def test_femnist(femnist, monkeypatch):
    """Task i comes from file i, in the files' numerical order."""
    prepare(["femnist", "--data_root", str(femnist)])
    table = load_table("femnist", data_root=femnist)
    assert [task.name for task in table.tasks] == [f"user_{number:02}" for number in range(12)]
    for number in (2, 10):
        record = torch.load(
            femnist / "cache" / "femnist" / f"user_{number:02}" / "train.pt", weights_only=True
        )
        assert record["images"].shape == (20, 1, 28, 28)
        assert record["images"][0].eq(round(number / 20 * 255)).all()
        assert record["labels"].tolist() == [(number + index) % 62 for index in range(20)]
    with pytest.raises(UserError, match=r"task user_\d\d has 20 train images .*, 3410 are needed"):
        load_task(load_sequence("femnist_10", data_root=femnist, seed=1), 1, data_root=femnist, device="cpu")
    with pytest.raises(UserError, match="holds 12 of 20 users"):
        load_sequence("femnist_20", data_root=femnist, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda user: user["x"].pop(), "not a label for each"),
        (lambda user: user["x"][0].pop(), "samples that are no numbers|not 28×28"),
        (lambda user: user["y"].__setitem__(0, 62), "a label outside 0 to 61"),
        (lambda user: user["y"].__setitem__(0, "cat"), "a label that is no number"),
        (lambda user: user["x"][0].__setitem__(0, 2.5), "pixels outside 0 to 1"),
        (lambda user: user.clear(), "has no samples"),
    ],
)
def test_femnist_refused(femnist, change, message):
    path = femnist / "femnist" / "raw" / "train" / "all_data_3_iid_01_0_keep_0_train_9.json"
    content = json.loads(path.read_text())
    change(content["user_data"]["f3"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as refused:
        prepare(["femnist", "--data_root", str(femnist)])
    assert path.name in str(refused.value) and "\n" not in str(refused.value)


def test_femnist_without_its_test_file(femnist):
    (femnist / "femnist" / "raw" / "test" / "all_data_5_iid_01_0_keep_0_test_9.json").unlink()
    with pytest.raises(UserError, match=r"all_data_5_iid_01_0_keep_0_test_9.json not found"):
        prepare(["femnist", "--data_root", str(femnist)])
