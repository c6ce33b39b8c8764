"""Cache files: a flipped bit is detected, unless what is read stays the same."""

import logging
import random
import shutil

import pytest
import torch

from data import cache
from data.loading import load_split
from data.prepare import main as prepare
from data.tables import load_table
from utils.errors import UserError

ENTRY = '[pictures]\nroot = "pictures"\nsize = 8\n'


def written(folder):
    """A small cache of images and one of texts: kind → path."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6) % 2
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, 99, (6, 8), dtype=torch.int32, generator=generator)
    shared = {"labels": labels, "classes": ("cat", "dog"), "signature": "raw"}
    cache.write(folder / "train.pt", images=images, **shared)
    cache.write_texts(
        folder / "train-hash.pt",
        tokens=tokens,
        encoder="hash 1",
        counts={"empty": 2},
        edition="first",
        **shared,
    )
    return {"image": folder / "train.pt", "text": folder / "train-hash.pt"}


def content(record):
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in record.items()
        if name != "checksum"
    }


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(cache, "_verified", set())


@pytest.mark.parametrize("kind", ["image", "text"])
def test_no_damaged_byte_changes_what_is_read(tmp_path, kind):
    path = written(tmp_path)[kind]
    whole = path.read_bytes()
    expected = content(cache.read(path, remedy="", kind=kind))
    draw = random.Random(0)
    detected = 0
    for place in draw.sample(range(len(whole)), 1500):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        cache._verified.clear()
        try:
            found = content(cache.read(path, remedy="run `this`", kind=kind))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            detected += 1
        else:
            assert found == expected, f"byte {place}"
    assert detected > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["images"][0, 0, 0, 0].add_(1), "fingerprint does not match"),
        (lambda record: record["labels"].copy_(record["labels"].flip(0)), "fingerprint does not match"),
        (lambda record: record["mean"].__setitem__(0, 0.5), "checksum does not match"),
        (lambda record: record.update(signature="other"), "checksum does not match"),
        (lambda record: record.update(classes=["cat", "emu"]), "checksum does not match"),
        (lambda record: record.update(classes="cat"), "classes are not names"),
        (lambda record: record.update(labels=record["labels"].float()), "other types or shapes"),
        (lambda record: record.update(labels=record["labels"][1:]), "6 images and 5 labels"),
        (lambda record: record.update(images=record["images"].transpose(2, 3)), "another layout"),
    ],
)
def test_a_changed_record_is_refused(tmp_path, change, message):
    path = written(tmp_path)["image"]
    record = torch.load(path, weights_only=True)
    change(record)
    torch.save(record, path)
    with pytest.raises(UserError, match=rf"train\.pt is damaged \(.*{message}\): delete it and run `this`$"):
        cache.read(path, remedy="run `this`")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 0, 1, -1])}, "label outside 0 to 1"),
        ({"std": [0.5, 0.0, 0.5]}, "mean or std is impossible"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean or std is impossible"),
        ({"mean": [0.5]}, "mean or std is impossible"),
    ],
)
def test_impossible_content_is_refused_even_with_its_hashes(tmp_path, change, message):
    path = written(tmp_path)["image"]
    record = torch.load(path, weights_only=True) | change
    record["fingerprint"] = cache._fingerprint(record["images"], record["labels"], tuple(record["classes"]))
    record["checksum"] = cache._checksum(record)
    torch.save(record, path)
    with pytest.raises(UserError, match=message):
        cache.read(path, remedy="run `this`")


def test_a_cache_of_an_earlier_version_is_read_and_its_samples_are_verified(tmp_path):
    path = written(tmp_path)["image"]
    record = torch.load(path, weights_only=True)
    del record["checksum"]
    torch.save(record, path)
    assert content(cache.read(path, remedy="")) == content(record)
    record["labels"][0] = 1
    torch.save(record, path)
    with pytest.raises(UserError, match="fingerprint does not match"):
        cache.read(path, remedy="")


def test_a_file_is_verified_once_per_process(tmp_path, monkeypatch):
    path = written(tmp_path)["image"]
    first = cache.read(path, remedy="")
    monkeypatch.setattr(cache, "_damage", None)
    assert content(cache.read(path, remedy="")) == content(first)


def flip_a_pixel(path):
    whole = bytearray(path.read_bytes())
    record = torch.load(path, weights_only=True)
    place = whole.index(record["images"].numpy().tobytes())
    whole[place + 7] ^= 1
    path.write_bytes(whole)
    cache._verified.clear()


def test_a_damaged_pixel_is_rebuilt_from_the_raw_files_or_refused(make_tree, make_table, caplog):
    root = make_tree({"pets": ["cat", "dog"]})
    table = load_table(str(make_table(ENTRY)), data_root=root)
    task = table.task("pets")
    path = cache.path_of(root, "pictures", "pets", "train")
    first = content(load_split(table, task, "train", data_root=root))
    flip_a_pixel(path)
    with caplog.at_level(logging.WARNING):
        assert content(load_split(table, task, "train", data_root=root)) == first
    assert f"{path} is damaged (its fingerprint does not match): rebuilding it" in caplog.text
    assert len(caplog.records) == 1
    shutil.rmtree(root / "pictures")
    flip_a_pixel(path)
    with pytest.raises(UserError, match=r"train\.pt is damaged .*: delete it and put the images there"):
        load_split(table, task, "train", data_root=root)


def test_prepare_rebuilds_a_damaged_cache(make_tree, make_table):
    root, toml = make_tree({"pets": ["cat", "dog"]}), make_table(ENTRY)
    prepare([str(toml), "--data_root", str(root)])
    path = cache.path_of(root, "pictures", "pets", "test")
    whole = path.read_bytes()
    flip_a_pixel(path)
    prepare([str(toml), "--data_root", str(root)])
    assert path.read_bytes() == whole
