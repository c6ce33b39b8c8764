import csv
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image

from data.fill import fill_cache
from data.loading import load_task
from data.tables import Table, load_table
from data.text_encoders import HashEncoder
from utils.errors import UserError


def part_of(name: str, *tasks: str, root: Path, size: int = 8) -> Table:
    """A known table with only these tasks and small images."""
    table = load_table(name, data_root=root)
    return replace(table, size=size, tasks=tuple(table.task(task) for task in tasks))


def fill(table: Table, source: Path | None, root: Path) -> None:
    fill_cache(table, source=source, data_root=root)


def load(table: Table, task: str, root: Path):
    return load_task(table, table.task(task), data_root=root, protocol="published", seed=1, device="cpu")


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_listing(root: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    with (root / "image_caption.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "label"), *rows])


def words(tokens) -> list[tuple[int, ...]]:
    return [tuple(row[row != 0].tolist()) for row in tokens]


def test_the_tables_are_the_published_ones(tmp_path):
    tables = {name: load_table(name, data_root=tmp_path) for name in ("oxford", "cub", "n24news", "mscoco")}
    assert [len(table.tasks) for table in tables.values()] == [12, 54, 12, 30]
    assert [table.size for table in tables.values()] == [64, 224, 224, 64]
    for table in tables.values():
        half = len(table.tasks) // 2
        assert [task.modality for task in table.tasks] == ["image"] * half + ["text"] * half
        for picture, caption in zip(table.tasks[:half], table.tasks[half:], strict=True):
            assert (caption.classes, caption.folder) == (picture.classes, picture.name)
            assert caption.mean is None
    assert tables["oxford"].augment.flip and tables["oxford"].tasks[0].mean == (0.485, 0.456, 0.406)
    assert tables["cub"].task("group28").classes[0] == "001.Black_footed_Albatross"
    assert tables["mscoco"].task("Indoor").classes == ("book", "clock", "teddy bear", "vase")


@pytest.fixture
def oxford(tmp_path):
    """(The first group of Oxford Flowers, its raw files): ten images per class, two captions each."""
    table = part_of("oxford", "group1", "group7", root=tmp_path)
    rows = []
    for label, name in enumerate(table.tasks[0].classes):
        for number in range(10):
            image = f"image_{10 * label + number:05}.jpg"
            save(tmp_path / "raw/images" / image, (20 * number, 60 * label, 0))
            rows += [(image, f"{word} flower {number} of {name}", name) for word in ("a", "another")]
    write_listing(tmp_path / "raw", rows)
    return table, tmp_path / "raw"


def test_oxfords_images_and_captions_have_the_same_split(oxford, tmp_path, caplog):
    table, raw = oxford
    with caplog.at_level("INFO"):
        fill(table, raw, tmp_path)
    assert "oxford: 2 tasks, 32 training and 8 test images and 64 training and 16 test texts" in caplog.text
    images, texts = load(table, "group1", tmp_path), load(table, "group7", tmp_path)
    assert images.test.labels.bincount().tolist() == [2] * 4
    numbers = (images.test.inputs[:, 0].float().mean(dim=(1, 2)) / 20).round().int().tolist()
    expected = [
        tuple(HashEncoder().tokenise(f"{word} flower {number} of {table.tasks[0].classes[label]}")[0])
        for number, label in zip(numbers, images.test.labels.tolist(), strict=True)
        for word in ("a", "another")
    ]
    assert words(texts.test.inputs) == expected
    fill(table, raw, tmp_path)
    assert load(table, "group7", tmp_path).fingerprint == texts.fingerprint


def test_captions_in_another_encoding_are_decoded_with_replacement_and_counted(oxford, tmp_path, caplog):
    table, raw = oxford
    listing = raw / "image_caption.csv"
    text = listing.read_text().replace("another flower 0", "fleur \u00e9trange")
    listing.write_bytes(text.encode("latin-1"))
    with caplog.at_level("INFO"):
        fill(table, raw, tmp_path)
    assert "texts: 0 empty and left out, 4 not in UTF-8, decoded with replacement, 0 cut" in caplog.text
    assert len(load(table, "group7", tmp_path).train) == 64


def test_cub_has_one_folder_per_class(tmp_path):
    table = part_of("cub", "group1", "group28", root=tmp_path)
    rows = []
    for name in table.tasks[0].classes:
        for number in range(5):
            save(tmp_path / f"cub/images/{name}/bird_{number}.jpg", (40 * number, 0, 0))
            # With or without its folder and its suffix.
            rows.append((f"{name}/bird_{number}.jpg" if number % 2 else f"bird_{number}", "a bird", name))
    write_listing(tmp_path / "cub", rows)
    fill(table, None, tmp_path)
    data = load(table, "group1", tmp_path)
    assert (len(data.train), len(data.test), len(load(table, "group28", tmp_path).train)) == (20, 5, 20)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda raw: (raw / "image_caption.csv").unlink(),
            r"image_caption\.csv not found: put the raw files",
        ),
        (lambda raw: (raw / "image_caption.csv").write_text("image,label\n"), "has no column caption"),
        (
            lambda raw: (raw / "images/image_00004.jpg").unlink(),
            r"image_00004\.jpg not found, but .* lists it",
        ),
        (
            lambda raw: write_listing(raw, [("image_00004.jpg", "a", "class_00051")]),
            "lists 1 images of class_00051, at least 2",
        ),
    ],
)
def test_incomplete_raw_files_are_named(oxford, tmp_path, spoil, message):
    table, raw = oxford
    spoil(raw)
    with pytest.raises(UserError, match=message):
        fill(table, raw, tmp_path)


def test_n24news_is_read_from_its_two_trees(tmp_path):
    table = part_of("n24news", "group2", "group8", root=tmp_path)
    source = tmp_path / "N24News"
    for split, count in (("train", 3), ("test", 1)):
        for section in ("Music", "Travel", "Real_Estate"):
            for number in range(count):
                save(source / f"image/{split}/group2/{section}/{number}.jpg", (9, 9, 9))
                path = source / f"text/{split}/group2/{section}/{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{section} {number}")
    (source / "text").rename(source / "texts")
    with pytest.raises(
        UserError, match=r"N24News/text not found, but \S+N24News/image is there: put the texts"
    ):
        fill(table, source, tmp_path)
    (source / "texts").rename(source / "text")
    fill(table, source, tmp_path)
    # Later runs look below the data folder.
    shutil.copytree(source, tmp_path / "n24news")
    data = load(table, "group8", tmp_path)
    assert data.task.classes == ("Music", "Real_Estate", "Travel")
    assert words(data.test.inputs)[1] == tuple(HashEncoder().tokenise("Real_Estate 0")[0])
    assert len(load(table, "group2", tmp_path).train) == 9
    shutil.rmtree(tmp_path / "n24news/text/test/group2")
    with pytest.raises(UserError, match="text/test/group2 not found, but its images are there"):
        load(table, "group8", tmp_path)


@pytest.fixture
def coco(tmp_path):
    """(One group of MS-COCO, its raw files): two images per class and split, and a distractor class."""
    table = part_of("mscoco", "Indoor", "Indoor_captions", root=tmp_path)
    names = ["person", "book", "clock", "vase", "teddy bear"]
    raw = tmp_path / "raw"
    (raw / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        images, boxes, captions = [], [], []
        for number in range(10):
            category = number % 5
            images.append({"id": number, "file_name": f"{number:012}.jpg"})
            # Wide: the left half is white, the right half black.
            pixels = numpy.zeros((20, 40, 3), dtype=numpy.uint8)
            pixels[:, :20] = 255
            (raw / split).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(raw / split / f"{number:012}.jpg", quality=95)
            # Smaller boxes of other classes come before and after the largest.
            for size, of in ((2, 0), (15, category), (3, (category + 1) % 5)):
                boxes.append({"image_id": number, "category_id": 10 + of, "bbox": [0, 0, size, size]})
            for order in (1, 0):
                caption = f"caption {order} of {names[category]}"
                captions.append({"image_id": number, "id": 2 * number + order, "caption": caption})
        categories = [{"id": 10 + number, "name": name} for number, name in enumerate(names)]
        instances = {"images": images, "annotations": boxes, "categories": categories}
        (raw / f"annotations/instances_{split}.json").write_text(json.dumps(instances))
        (raw / f"annotations/captions_{split}.json").write_text(json.dumps({"annotations": captions}))
    return table, raw


def test_a_coco_images_class_is_its_largest_box_and_its_text_the_first_caption(coco, tmp_path):
    table, raw = coco
    fill(table, raw, tmp_path)
    images, texts = load(table, "Indoor", tmp_path), load(table, "Indoor_captions", tmp_path)
    assert images.train.labels.tolist() == texts.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = [HashEncoder().tokenise(f"caption 0 of {name}")[0] for name in table.tasks[0].classes]
    assert words(texts.test.inputs) == [tuple(ids) for ids in expected for _ in range(2)]
    # Padded above and below with black, not stretched.
    picture = images.train.inputs[0, 0]
    assert picture.shape == (8, 8)
    assert picture[0].max() < 60 and picture[7].max() < 60
    assert picture[3, 1] > 200 and picture[3, 6] < 60


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("annotations/captions_val2017.json", r"captions_val2017\.json not found: extract MS-COCO 2017"),
        ("val2017/000000000003.jpg", r"val2017/000000000003\.jpg not found: extract the images of mscoco"),
    ],
)
def test_incomplete_coco_is_named(coco, tmp_path, spoil, message):
    table, raw = coco
    (raw / spoil).unlink()
    with pytest.raises(UserError, match=message):
        fill(table, raw, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [
        ("instances_train2017", "annotations", "bbox"),
        ("instances_train2017", "images", "file_name"),
        ("captions_val2017", "annotations", "caption"),
    ],
)
def test_an_incomplete_entry_of_coco_is_reported_with_its_file(coco, tmp_path, name, kind, key):
    table, raw = coco
    path = raw / f"annotations/{name}.json"
    content = json.loads(path.read_text())
    del content[kind][0][key]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name}\.json has an entry that is incomplete .*{key}.*: extract"):
        fill(table, raw, tmp_path)
