"""Mutated raw files of every kind: each is read or refused in one line."""

import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from data import cache
from data.images import decode_image
from data.prepare import main as prepare
from data.tables import load_table
from utils.errors import UserError

# Per kind of file, a few seconds in all. A campaign sets more.
CASES = int(os.environ.get("FUZZ_CASES", "20000")) // 100
SEED = int(os.environ.get("FUZZ_SEED", "0"))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four flipped, replaced, inserted, removed or repeated parts, or half of the file."""
    damaged = bytearray(content)
    if draw.random() < 0.05:
        return bytes(damaged[: draw.randrange(len(damaged))])
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(damaged))
        start = draw.randrange(len(damaged))
        match draw.randrange(4):
            case 0:
                damaged[place] ^= 1 << draw.randrange(8)
            case 1:
                damaged[place : place + 4] = draw.randbytes(draw.choice((1, 4)))
            case 2:
                del damaged[place : place + draw.randint(1, 8)]
            case 3:
                damaged[place:place] = damaged[start : start + draw.randint(1, 40)]
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


def fuzz(content: bytes, read: Callable[[bytes], object], *, cases: int = CASES) -> None:
    draw = random.Random(SEED)
    refusals = 0
    for _ in range(cases):
        damaged = mutated(content, draw)
        try:
            read(damaged)
        except UserError as error:
            message = str(error)
            assert message.isprintable() and len(message) < 2000 and " object at 0x" not in message, damaged
            refusals += 1
        except OSError as error:
            # The scripts report these in one line, too.
            assert error.filename is not None, damaged
        except Exception as error:
            error.add_note(repr(damaged))
            raise
    assert refusals


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


PIXELS = numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=numpy.uint8)
IMAGES = {
    "png": saved(Image.fromarray(PIXELS), "PNG"),
    "palette": saved(Image.fromarray(PIXELS).quantize(8), "PNG"),
    "deep": saved(Image.fromarray(PIXELS[..., 0].astype(numpy.uint16) * 257), "PNG"),
    "jpeg": saved(Image.fromarray(PIXELS), "JPEG"),
    "cmyk": saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.filterwarnings("ignore")
def test_images(kind):
    fuzz(IMAGES[kind], lambda damaged: decode_image(damaged, name="a", size=8, channels=3), cases=5 * CASES)


def test_leaf(tmp_path):
    users = {"users": ["u1"], "user_data": {"u1": {"x": [[0.5] * 784], "y": [3]}}, "num_samples": [1]}
    root = tmp_path / "femnist" / "raw"
    for split in cache.SPLITS:
        path = root / split / f"all_data_0_iid_01_0_keep_0_{split}_9.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(users))
    path = root / "train" / "all_data_0_iid_01_0_keep_0_train_9.json"

    def read(damaged: bytes) -> None:
        path.write_bytes(damaged)
        prepare(["femnist", "--data_root", str(tmp_path)])

    # Mutations hit more than pixels.
    users["user_data"]["u1"]["x"] = [[0.5] * 4]
    fuzz(json.dumps(users).encode(), read)


def test_mscoco(tmp_path):
    table = load_table("mscoco", data_root=tmp_path)
    names = sorted({name for task in table.tasks for name in task.classes})
    root = tmp_path / table.root
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(names))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": number,
                "bbox": [0, 0, 4, 4],
                "caption": "a b c",
            }
            for number in range(len(names))
        ],
    }
    whole = json.dumps(content).encode()
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for number in range(len(names)):
            (root / split / f"{number}.jpg").write_bytes(IMAGES["jpeg"])
        for kind in ("instances", "captions"):
            (root / "annotations" / f"{kind}_{split}.json").write_bytes(whole)
    draw = random.Random(SEED)

    def read(damaged: bytes) -> None:
        path = root / "annotations" / f"{draw.choice(('instances', 'captions'))}_train2017.json"
        path.write_bytes(damaged)
        try:
            prepare(["mscoco", "--data_root", str(tmp_path)])
        finally:
            path.write_bytes(whole)

    fuzz(whole, read, cases=CASES // 10)


TABLE = """[pictures]
root = "pictures"
size = 8
channels = 3
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
augment = { crop_padding = 4, flip = true }
tasks = [
    { name = "pets", classes = ["cat", "dog"] },
    { name = "cars", classes = ["van", "bus"], mean = [0, 0, 0], std = [1, 1, 1], folder = "autos" },
    { name = "captions", modality = "text", twin = "pets" },
    { name = "fish", table = "cifar100" },
]
text_root = "texts"
"""


def test_tables(tmp_path):
    path = tmp_path / "table.toml"

    def read(damaged: bytes) -> None:
        path.write_bytes(damaged)
        load_table(str(path), data_root=tmp_path).select("all")

    fuzz(TABLE.encode(), read)


def test_imagenet_batches(tmp_path):
    root = tmp_path / "imagenet"
    batch = {"data": numpy.zeros((2, 3072), dtype=numpy.uint8), "labels": [1, 2], "mean": numpy.zeros(4)}
    whole = pickle.dumps(batch, 2)
    for name in [f"train/train_data_batch_{number}" for number in range(1, 11)] + ["test/val_data"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(whole)
    draw = random.Random(SEED)
    frame = len(whole.split(b"\0" * 64)[0])

    def read(damaged: bytes) -> None:
        # Most of the file is pixels.
        content = mutated(whole[:frame], draw) + whole[frame:] if draw.random() < 0.7 else damaged
        (root / "train/train_data_batch_1").write_bytes(content)
        prepare(["imagenet32", "--data_root", str(tmp_path)])

    fuzz(whole, read)


@pytest.mark.parametrize("name", ["meta", "train"])
def test_cifar_batches(tmp_path, name):
    table = load_table("cifar100", data_root=Path("nowhere"))
    names = sorted(each for task in table.tasks for each in task.classes)
    batch = {
        b"filenames": [b"%d.png" % number for number in range(100)],
        b"fine_labels": list(range(100)),
        b"data": numpy.zeros((100, 3072), dtype=numpy.uint8),
    }
    contents = {
        "meta": {b"fine_label_names": [each.encode() for each in names]},
        "train": batch,
        "test": batch,
    }
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    wholes = {each: pickle.dumps(content, 2) for each, content in contents.items()}
    for each, whole in wholes.items():
        (folder / each).write_bytes(whole)
    frame = wholes[name][:4000]
    numbers = iter(range(10**9))

    def read(damaged: bytes) -> None:
        (folder / name).write_bytes(damaged + wholes[name][4000:])
        root = tmp_path / f"data{next(numbers)}"
        root.mkdir()
        # The task table is read in full once; preparing all tasks would take most of the time.
        prepare(["cifar100", "--source", str(folder), "--data_root", str(root)])

    fuzz(frame, read, cases=CASES // 4)
