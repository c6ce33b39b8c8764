import multiprocessing
import os
import shutil

import numpy
import pytest
import torch
from PIL import Image

from data import cache
from data.loading import load_split
from data.tables import load_table
from utils.errors import UserError

ENTRY = '[pictures]\nroot = "pictures"\nsize = 8\n'


@pytest.fixture
def pictures(make_tree, make_table):
    """A table with one task and its tree: (table, task, data folder)."""
    root = make_tree({"pets": ["cat", "dog"]})
    table = load_table(str(make_table(ENTRY)), data_root=root)
    return table, table.task("pets"), root


def cache_file(root, split="train"):
    return cache.path_of(root, "pictures", "pets", split)


def test_images_come_by_sorted_class_and_file_name(pictures):
    table, task, root = pictures
    record = load_split(table, task, "train", data_root=root)
    files = sorted((root / "pictures/train/pets/cat").iterdir()) + sorted(
        (root / "pictures/train/pets/dog").iterdir()
    )
    expected = numpy.stack([numpy.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    assert record["images"].dtype == torch.uint8
    assert numpy.array_equal(record["images"].numpy(), expected)
    assert record["labels"].tolist() == [0] * 10 + [1] * 10
    assert record["classes"] == ["cat", "dog"]


def test_other_modes_and_sizes_become_rgb_of_the_tables_size(pictures):
    table, task, root = pictures
    folder = root / "pictures/train/pets/cat"
    for old in folder.iterdir():
        old.unlink()
    grey = Image.fromarray(numpy.full((8, 8), 100, dtype=numpy.uint8))
    grey.save(folder / "1.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(folder / "2.png")
    Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4).save(folder / "3.png")
    Image.new("RGB", (20, 12), (50, 60, 70)).save(folder / "4.png")
    Image.fromarray(numpy.full((8, 8), 100 * 257, dtype=numpy.uint16)).save(folder / "5.png")
    images = load_split(table, task, "train", data_root=root)["images"]
    colours = [images[index, :, 4, 4].tolist() for index in range(5)]
    assert colours == [[100] * 3, [10, 20, 30], [1, 2, 3], [50, 60, 70], [100] * 3]


def test_grey_tables_have_one_channel(make_tree, make_table):
    root = make_tree({"pets": ["cat"]})
    table = load_table(str(make_table(ENTRY + "channels = 1\n")), data_root=root)
    assert load_split(table, table.task("1"), "test", data_root=root)["images"].shape == (3, 1, 8, 8)


def test_an_unchanged_tree_is_not_decoded_again(pictures):
    table, task, root = pictures
    load_split(table, task, "train", data_root=root)
    before = cache_file(root).stat()
    load_split(table, task, "train", data_root=root)
    assert cache_file(root).stat().st_ino == before.st_ino


def test_a_changed_added_or_removed_file_rebuilds_the_cache(pictures):
    table, task, root = pictures
    first = load_split(table, task, "train", data_root=root)
    folder = root / "pictures/train/pets/cat"

    Image.new("RGB", (8, 8), (7, 7, 7)).save(folder / "zzz.png")
    added = load_split(table, task, "train", data_root=root)
    assert len(added["labels"]) == 21
    assert added["fingerprint"] != first["fingerprint"]

    (folder / "zzz.png").unlink()
    assert load_split(table, task, "train", data_root=root)["fingerprint"] == first["fingerprint"]

    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "cat_000.png")
    os.utime(folder / "cat_000.png", ns=(1, 1))
    changed = load_split(table, task, "train", data_root=root)
    assert changed["images"][0, 0, 0, 0] == 9


def test_another_size_rebuilds_the_cache(pictures, make_table):
    table, task, root = pictures
    load_split(table, task, "train", data_root=root)
    larger = load_table(str(make_table(ENTRY.replace("8", "16"))), data_root=root)
    assert load_split(larger, task, "train", data_root=root)["images"].shape[-1] == 16


def test_the_cache_alone_is_enough(pictures, make_table):
    table, task, root = pictures
    first = load_split(table, task, "train", data_root=root)
    shutil.rmtree(root / "pictures")
    assert load_split(table, task, "train", data_root=root)["fingerprint"] == first["fingerprint"]
    again = load_table(str(make_table(ENTRY)), data_root=root)
    assert again.task("pets").classes == ("cat", "dog")


def test_a_cache_of_other_classes_is_not_used(pictures, make_table):
    table, task, root = pictures
    load_split(table, task, "train", data_root=root)
    shutil.rmtree(root / "pictures")
    other = load_table(
        str(make_table(ENTRY + 'tasks = [{ name = "pets", classes = ["emu", "owl"] }]')), data_root=root
    )
    with pytest.raises(UserError, match="made for other classes"):
        load_split(other, other.task("pets"), "train", data_root=root)


@pytest.mark.parametrize("content", [b"", b"not a cache", None])
def test_a_damaged_cache_is_rebuilt_or_reported(pictures, content):
    table, task, root = pictures
    first = load_split(table, task, "train", data_root=root)
    whole = cache_file(root).read_bytes()
    damaged = whole[: len(whole) // 2] if content is None else content

    cache_file(root).write_bytes(damaged)
    assert load_split(table, task, "train", data_root=root)["fingerprint"] == first["fingerprint"]

    shutil.rmtree(root / "pictures")
    cache_file(root).write_bytes(damaged)
    with pytest.raises(
        UserError, match=r"pets/train\.pt is truncated or not a cache of images: delete it and put"
    ):
        load_split(table, task, "train", data_root=root)


def test_another_torch_file_is_not_a_cache(pictures):
    table, task, root = pictures
    shutil.rmtree(root / "pictures")
    cache_file(root).parent.mkdir(parents=True)
    torch.save({"model_state_dict": {}}, cache_file(root))
    with pytest.raises(UserError, match="is not a cache of images of this version"):
        load_split(table, task, "train", data_root=root)


@pytest.mark.parametrize("missing", ["train", "train/pets", "train/pets/cat"])
def test_a_missing_folder_is_named(pictures, missing):
    table, task, root = pictures
    shutil.rmtree(root / "pictures" / missing)
    with pytest.raises(UserError, match=f"pictures/{missing} not found: put the images there"):
        load_split(table, task, "train", data_root=root)


def test_a_missing_cifar_names_the_command_that_downloads_it(tmp_path):
    table = load_table("cifar100", data_root=tmp_path)
    with pytest.raises(
        UserError, match=r"cifar100_org/train/fish not found: run `python -m data\.prepare cifar100`$"
    ):
        load_split(table, table.task("fish"), "train", data_root=tmp_path)


def test_a_class_without_images_is_named(pictures):
    table, task, root = pictures
    for file in (root / "pictures/test/pets/dog").iterdir():
        file.unlink()
    (root / "pictures/test/pets/dog/.DS_Store").touch()
    with pytest.raises(UserError, match="test/pets/dog holds no images"):
        load_split(table, task, "test", data_root=root)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_unreadable_image_is_named(pictures, damage, suffix):
    table, task, root = pictures
    file = root / f"pictures/train/pets/dog/broken{suffix}"
    pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(file)
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(
        UserError, match=f"dog/broken{suffix} is not a readable image.*replace or delete"
    ) as caught:
        load_split(table, task, "train", data_root=root)
    assert "\n" not in str(caught.value)
    assert not cache_file(root).exists()


def _load(toml, root, results):
    table = load_table(str(toml), data_root=root)
    results.put(load_split(table, table.tasks[0], "train", data_root=root)["fingerprint"])


def test_processes_may_build_the_same_cache_at_once(make_tree, make_table):
    root, toml = make_tree({"pets": ["cat", "dog"]}, train=50), make_table(ENTRY)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_load, args=(toml, root, results)) for _ in range(2)]
    for process in processes:
        process.start()
    fingerprints = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(fingerprints) == 1
    assert {path.name for path in cache_file(root).parent.iterdir()} <= {"train.pt", ".train.pt.lock"}


def test_mean_and_std_are_those_of_the_pixels(pictures):
    table, task, root = pictures
    record = load_split(table, task, "train", data_root=root)
    pixels = record["images"].double() / 255
    assert record["mean"] == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert record["std"] == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)
