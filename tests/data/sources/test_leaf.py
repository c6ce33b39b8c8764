import json

import numpy
import pytest
import torch

from data.prepare import main as prepare
from data.sequences import load_sequence, load_task
from data.tables import load_table
from utils.errors import UserError


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
def celeba(tmp_path, images_at):
    root = tmp_path / "fceleba"
    names = images_at(root / "raw" / "img_align_celeba", 24, size=(22, 18))
    train = {f"u{user}": (names[8 * user : 8 * user + 6], [0, 1, 0, 1, 0, 1]) for user in range(3)}
    test = {f"u{user}": (names[8 * user + 6 : 8 * user + 8], [1, 0]) for user in range(3)}
    for split, users in (("train", train), ("test", test)):
        leaf_json(root / "iid" / split / f"all_data_iid_01_0_keep_5_{split}_9.json", users)
    return tmp_path


def test_fceleba(celeba, change_sequence):
    prepare(["fceleba", "--data_root", str(celeba)])
    table = load_table("fceleba", data_root=celeba)
    assert [task.name for task in table.tasks] == ["user_01", "user_02", "user_03"]
    assert table.tasks[0].classes == ("0", "1")
    change_sequence("fceleba_10", tasks=3, train=2, val=1, test=1)
    orders = set()
    for seed in range(6):
        sequence = load_sequence("fceleba_10", data_root=celeba, seed=seed)
        orders.add(tuple(task.name for task in sequence.table.tasks))
        data = load_task(sequence, 1, data_root=celeba, device="cpu")
        assert data.train.inputs.shape == (4, 3, 32, 32) and len(data.test) == 2
    assert len(orders) > 1


def test_fceleba_refused(celeba):
    root = celeba / "fceleba"
    with pytest.raises(UserError, match=r"fceleba_10|holds 3 of 10 tasks|not found"):
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


def test_femnist(femnist):
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
    with pytest.raises(
        UserError, match=r"task user_\d\d has 20 training images .*, too few for val = 5 and train = 50 times"
    ):
        load_task(load_sequence("femnist_10", data_root=femnist, seed=1), 1, data_root=femnist, device="cpu")
    with pytest.raises(UserError, match="holds 12 of 20 tasks"):
        load_sequence("femnist_20", data_root=femnist, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda user: user["x"].pop(), "not a label for each"),
        (lambda user: user["x"][0].pop(), "samples that are not numbers|not 28×28"),
        (lambda user: user["y"].__setitem__(0, 62), "a label outside 0 to 61"),
        (lambda user: user["y"].__setitem__(0, "cat"), "a label that is not a whole number"),
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
