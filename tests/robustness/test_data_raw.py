"""Hostile and damaged raw files: each is refused in one line that names it, before it can do harm."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from data.images import MAX_PIXELS, decode_image
from data.loading import load_split
from data.prepare import main as prepare
from data.tables import load_table
from utils.errors import UserError

ENTRY = '[pictures]\nroot = "pictures"\nsize = 8\n'


def refused(action, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **keywords)
    return one_line(caught.value)


def one_line(error: UserError) -> str:
    message = str(error)
    assert "\n" not in message and " object at 0x" not in message and len(message) < 600
    assert message.isprintable()
    return message


def decode(content: bytes) -> numpy.ndarray:
    return decode_image(content, name="a.png", size=8, channels=3)


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "BMP", "PPM", "PCX", "ICO", "WEBP"])
def test_other_formats_are_refused_under_any_name(kind):
    content = saved(Image.new("RGB", (16, 16), (9, 9, 9)), kind)
    assert refused(decode, content) == "a.png is not a readable image (not PNG or JPEG): replace or delete it"


def test_an_eps_file_does_not_reach_ghostscript(monkeypatch):
    from PIL import EpsImagePlugin

    def ghostscript(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    refused(decode, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def test_a_float_tiff_does_not_become_black():
    refused(decode, saved(Image.fromarray(numpy.full((8, 8), 0.5, dtype=numpy.float32)), "TIFF"))


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (50_000, 50_000), (9_500, 9_500), (2**20, 1), (8193, 8193)]
)
def test_pixel_bombs_are_refused_before_decoding(width, height, recwarn, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    message = refused(decode, png(width, height))
    assert "a.png" in message and ("pixels" in message or "readable" in message)


def test_the_largest_image_is_not_refused_for_its_size():
    assert MAX_PIXELS == 8192 * 8192
    assert "truncated" in refused(decode, png(8192, 8192, b"\0"))


@pytest.fixture
def pictures(make_tree, make_table):
    """(table, task, data folder, folder of one class)."""
    root = make_tree({"pets": ["cat", "dog"]})
    table = load_table(str(make_table(ENTRY)), data_root=root)
    return table, table.task("pets"), root, root / "pictures/train/pets/cat"


def test_fifos_devices_and_folders_are_refused_unopened(pictures):
    table, task, root, folder = pictures
    makers = {
        "fifo.png": os.mkfifo,
        "zero.png": lambda path: path.symlink_to("/dev/zero"),
        "folder.png": Path.mkdir,
    }
    for name, make in makers.items():
        make(folder / name)
        message = refused(load_split, table, task, "train", data_root=root)
        assert message == f"{folder / name} is not a regular file: remove it"
        (folder / name).rmdir() if name == "folder.png" else (folder / name).unlink()


def test_links_to_images_are_followed(pictures, tmp_path):
    table, task, root, folder = pictures
    Image.new("RGB", (8, 8), (7, 8, 9)).save(tmp_path / "real.png")
    (folder / "0.png").symlink_to(tmp_path / "real.png")
    assert load_split(table, task, "train", data_root=root)["images"][0, :, 0, 0].tolist() == [7, 8, 9]


def test_a_huge_file_is_refused_unread(pictures):
    table, task, root, folder = pictures
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**40)
    assert "huge.png has 1099511627776 bytes" in refused(load_split, table, task, "train", data_root=root)


def test_names_that_are_not_utf8(pictures, caplog):
    table, task, root, folder = pictures
    name = "caf\udce9\n.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / name)
    first = load_split(table, task, "train", data_root=root)
    assert len(first["labels"]) == 21
    assert load_split(table, task, "train", data_root=root)["signature"] == first["signature"]
    (folder / name).write_bytes(b"no image")
    message = refused(load_split, table, task, "train", data_root=root)
    assert r"cat/caf\udce9\n.png is not a readable image" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_of_a_zip(make_tree, make_table, tmp_path, method):
    """An archive with any damaged bytes is read, or refused in one line."""
    root, toml = make_tree({"pets": ["cat"]}, train=2, test=1), make_table(ENTRY)
    names = sorted(path for path in (root / "pictures").rglob("*.png"))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        for path in names:
            archive.write(path, path.relative_to(root))
    toml.write_text(toml.read_text() + "tasks = [{ name = 'pets', classes = ['cat'] }]")
    source = tmp_path / "damaged.zip"
    draw = random.Random(method)
    refusals = 0
    for number in range(60):
        damaged = bytearray(whole.getvalue())
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        source.write_bytes(damaged)
        try:
            prepare([str(toml), "--source", str(source), "--data_root", str(tmp_path / str(number))])
        except UserError as error:
            assert str(source) in one_line(error)
            refusals += 1
    assert refusals > 30


def cifar_batches() -> dict[str, dict]:
    table = load_table("cifar100", data_root=Path("nowhere"))
    names = sorted(name for task in table.tasks for name in task.classes)
    data = numpy.zeros((100, 3072), dtype=numpy.uint8)
    files = [f"{name}.png".encode() for name in names]
    batch = {b"data": data, b"fine_labels": list(range(100)), b"filenames": files}
    return {
        "meta": {b"fine_label_names": [name.encode() for name in names]},
        "train": batch,
        "test": dict(batch),
    }


def cifar_folder(folder: Path, contents: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, 2))
    return folder


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("meta", b"fine_label_names", None, "meta has no list of names fine_label_names"),
        ("meta", b"fine_label_names", [1, 2], "meta has no list of names fine_label_names"),
        ("train", b"data", None, "train does not hold 100 images"),
        ("train", b"data", [[0] * 3072, [0]], "train does not hold 100 images"),
        ("train", b"data", numpy.zeros((99, 3072), "u1"), "train does not hold 100 images"),
        ("train", b"fine_labels", None, "train has no list of numbers fine_labels"),
        ("train", b"fine_labels", [[0], 1.5], "train has no list of numbers fine_labels"),
        ("train", b"fine_labels", [100] * 100, "train has a label outside 0 to 99"),
        ("test", b"filenames", None, "test has no list of names filenames"),
        ("test", b"filenames", [b"a", 3], "test has no list of names filenames"),
        ("test", b"filenames", [b"a"], "test does not hold 100 images"),
        ("test", None, [1], "test holds no dictionary"),
    ],
)
def test_cifar_batches_with_missing_or_ragged_fields(tmp_path, name, field, value, message):
    contents = cifar_batches()
    if field is None:
        contents[name] = value
    elif value is None:
        del contents[name][field]
    else:
        contents[name][field] = value
    source = cifar_folder(tmp_path / "cifar-100-python", contents)
    assert message in refused(prepare, ["cifar100", "--source", str(source), "--data_root", str(tmp_path)])


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_damaged_members_of_a_tar(tmp_path, mode):
    folder = cifar_folder(tmp_path / "cifar-100-python", cifar_batches())
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(folder, "cifar-100-python")
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[mode]
    whole = compress(plain.getvalue())
    source = tmp_path / "cifar-100-python.tar.gz"
    draw = random.Random(0)
    refusals = 0
    for number in range(25):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        source.write_bytes(damaged if number % 5 else whole[: draw.randrange(len(whole))])
        try:
            prepare(["cifar100", "--source", str(source), "--data_root", str(tmp_path / str(number))])
        except UserError as error:
            assert str(source) in one_line(error)
            refusals += 1
    assert refusals > 10


def test_a_tar_member_that_expands_without_end_is_refused(tmp_path):
    source = tmp_path / "cifar-100-python.tar"
    header = tarfile.TarInfo("cifar-100-python/meta")
    header.size = 2**40
    with source.open("wb") as file:
        file.write(header.tobuf())
        file.truncate(2**40 + 10240)
    message = refused(prepare, ["cifar100", "--source", str(source), "--data_root", str(tmp_path)])
    assert "cifar-100-python/meta has 1099511627776 bytes" in message


def femnist(root: Path, content: object) -> list[str]:
    """A data folder with one user, whose training file holds `content`; the arguments that prepare it."""
    good = {"users": ["u"], "user_data": {"u": {"x": [[0.5] * 784], "y": [1]}}}
    for split, value in (("train", content), ("test", good)):
        path = root / "femnist" / "raw" / split / f"all_data_0_iid_01_0_keep_0_{split}_9.json"
        path.parent.mkdir(parents=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return ["femnist", "--data_root", str(root)]


def user(x: object, y: object, name: object = "u") -> dict:
    return {"users": [name], "user_data": {"u": {"x": x, "y": y}}}


PIXELS = [[0.5] * 784]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (user(PIXELS, [1], ["a", "list"]), "user of type list has no samples"),
        (user(PIXELS, [1], {}), "user of type dict has no samples"),
        (user(PIXELS, [float("inf")]), "a label that is not a whole number"),
        (user(PIXELS, [float("nan")]), "a label that is not a whole number"),
        (user(PIXELS, [1.7]), "a label that is not a whole number"),
        (user(PIXELS, [[1]]), "a label that is not a whole number"),
        (user(PIXELS, [10**30]), "samples that are not numbers"),
        (user([[10**400] * 784], [1]), "samples that are not numbers"),
        (user([[float("nan")] * 784], [1]), "pixels outside 0 to 1"),
        (user([None], [1]), "not 28×28"),
        ('{"users": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
        ('{"users": ["u"], "user_data": {"u": {"x": [[0]], "y": [' + "9" * 5000 + "]}}}", "not valid JSON"),
        ("[]", "holds no JSON object"),
    ],
)
def test_leaf_files(tmp_path, content, message):
    arguments = femnist(tmp_path, content)
    refusal = refused(prepare, arguments)
    assert message in refusal and "all_data_0_iid_01_0_keep_0_train_9.json" in refusal


@pytest.mark.parametrize("name", [3, None, ["a"], "", "a" * 5000, "caf\ud800.jpg", "a\0b"])
def test_celeba_images_with_odd_names(tmp_path, name):
    root = tmp_path / "fceleba"
    (root / "raw" / "img_align_celeba").mkdir(parents=True)
    for split in ("train", "test"):
        path = root / "iid" / split / f"all_data_iid_01_0_keep_5_{split}_9.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"users": ["u"], "user_data": {"u": {"x": [name], "y": [1]}}}))
    message = refused(prepare, ["fceleba", "--data_root", str(tmp_path)])
    assert "other than file names" in message or "not found, but" in message


def test_leaf_users_with_odd_names(tmp_path):
    content = {"users": ["\ud800\n"], "user_data": {"\ud800\n": {"x": PIXELS, "y": [70]}}}
    assert r"user \ud800\n has a label" in refused(prepare, femnist(tmp_path, content))


@pytest.mark.parametrize(
    "labels",
    [
        [1.7, 2.0],
        [1, float("nan")],
        [1, float("inf")],
        [1, 2**70],
        [1, [2]],
        ["1", "2"],
        None,
        numpy.array([1.5, 2]),
        numpy.array([2**63, 1], dtype=numpy.uint64),
    ],
)
def test_imagenet_labels_that_are_not_whole_are_refused(tmp_path, labels):
    root = tmp_path / "imagenet"
    good = {"data": numpy.zeros((2, 3072), dtype=numpy.uint8), "labels": [1, 2]}
    names = [f"train/train_data_batch_{number}" for number in range(1, 11)] + ["test/val_data"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(pickle.dumps(good | ({"labels": labels} if name == names[2] else {})))
    message = refused(prepare, ["imagenet32", "--data_root", str(tmp_path)])
    assert "train_data_batch_3: labels are not 2 whole numbers from 1 to 1000" in message


def test_labels_out_of_range_in_a_cache_are_rebuilt(pictures, monkeypatch):
    from data import cache

    table, task, root, _ = pictures
    first = load_split(table, task, "train", data_root=root)["labels"].tolist()
    path = cache.path_of(root, "pictures", "pets", "train")
    record = torch.load(path, weights_only=True)
    labels = record["labels"].clone()
    labels[3] = 7
    shared = {"classes": ("cat", "dog"), "signature": record["signature"]}
    cache.write(path, images=record["images"].clone(), labels=labels, **shared)
    monkeypatch.setattr(cache, "_verified", set())
    assert load_split(table, task, "train", data_root=root)["labels"].tolist() == first
