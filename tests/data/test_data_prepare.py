import io
import pickle
import shutil
import tarfile
import urllib.error
import zipfile

import numpy
import pytest
import torch

from data import cache, prepare, safe_pickle
from data.images import load_split
from data.tables import load_table
from utils.errors import UserError

CIFAR_CLASSES = 100


def write_zip(path, tree, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*.png"), reverse=True):
            archive.write(file, prefix + str(file.relative_to(tree.parent)))


def load(config, root, task="1", split="train"):
    table = load_table(str(config), data_root=root)
    return load_split(table, table.task(task), split, data_root=root)


@pytest.fixture
def pets(make_tree, make_table):
    """(data folder with a tree, a table's file that declares its classes)."""
    root = make_tree({"pets": ["cat", "dog"]})
    entry = '[pictures]\nroot = "pictures"\nsize = 8\ntasks = [{ name = "pets", classes = ["cat", "dog"] }]'
    return root, make_table(entry)


def test_a_users_tree_is_prepared_and_counted(pets, caplog):
    root, toml = pets
    with caplog.at_level("INFO"):
        prepare.main([str(toml), "--data_root", str(root)])
    assert caplog.messages[-1].startswith("pictures: 1 tasks, 20 training and 6 test images")
    assert cache.path_of(root, "pictures", "pets", "train").exists()


@pytest.mark.parametrize("prefix", ["", "downloads/"])
def test_a_zip_gives_what_its_tree_gives(pets, tmp_path, prefix):
    root, toml = pets
    expected = load(toml, root)
    write_zip(tmp_path / "pictures.zip", root / "pictures", prefix)
    prepare.main([str(toml), "--source", str(tmp_path / "pictures.zip"), "--data_root", str(tmp_path / "b")])
    found = load(toml, tmp_path / "b")
    assert torch.equal(found["images"], expected["images"])
    assert found["fingerprint"] == expected["fingerprint"]


@pytest.mark.parametrize("inner", ["pictures", "."])
def test_a_tree_elsewhere_or_the_folder_that_holds_it(pets, tmp_path, inner):
    root, toml = pets
    source = root if inner == "." else root / "pictures"
    prepare.main([str(toml), "--source", str(source), "--data_root", str(tmp_path / "b")])
    assert load(toml, tmp_path / "b")["fingerprint"] == load(toml, root)["fingerprint"]


def test_the_zip_beside_the_missing_tree_is_found(pets):
    root, toml = pets
    write_zip(root / "pictures.zip", root / "pictures")
    shutil.rmtree(root / "pictures")
    prepare.main([str(toml), "--data_root", str(root)])
    assert len(load(toml, root)["labels"]) == 20


def test_an_incomplete_zip_names_the_folder(pets, tmp_path):
    root, toml = pets
    shutil.rmtree(root / "pictures/test/pets/dog")
    write_zip(tmp_path / "pictures.zip", root / "pictures")
    with pytest.raises(UserError, match=r"pictures\.zip/pictures/test/pets/dog not found"):
        prepare.main(
            [str(toml), "--source", str(tmp_path / "pictures.zip"), "--data_root", str(tmp_path / "b")]
        )


def test_a_truncated_zip_is_refused(pets, tmp_path):
    root, toml = pets
    archive = tmp_path / "pictures.zip"
    write_zip(archive, root / "pictures")
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"pictures\.zip is truncated or no zip"):
        prepare.main([str(toml), "--source", str(archive), "--data_root", str(tmp_path / "b")])


def test_a_damaged_member_of_a_zip_is_named(pets, tmp_path):
    root, toml = pets
    archive = tmp_path / "pictures.zip"
    write_zip(archive, root / "pictures")
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        at = opened.getinfo("pictures/train/pets/cat/cat_004.png").header_offset + 100
    content[at] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"cat_004\.png cannot be read.*download the archive again"):
        prepare.main([str(toml), "--source", str(archive), "--data_root", str(tmp_path / "b")])


def test_a_missing_source_is_named(pets, tmp_path):
    with pytest.raises(UserError, match="nowhere not found"):
        prepare.main([str(pets[1]), "--source", str(tmp_path / "nowhere")])


def test_digits(tmp_path, caplog):
    with caplog.at_level("INFO"):
        prepare.main(["digits", "--data_root", str(tmp_path)])
    assert caplog.messages[-1].startswith("digits: 5 tasks, 1442 training and 355 test images")
    train, test = (load("digits", tmp_path, "four_five", split) for split in ("train", "test"))
    assert train["images"].shape[1:] == (3, 32, 32)
    assert int(train["images"].min()) == 0 and int(train["images"].max()) == 255
    for record in (train, test):
        assert torch.equal(record["images"][:, 0], record["images"][:, 2])
    # scikit-learn has 181 fours and 182 fives.
    assert train["labels"].bincount().tolist() == [145, 146]
    assert test["labels"].bincount().tolist() == [36, 36]


@pytest.fixture
def cifar_python(tmp_path):
    """A folder like the extracted cifar-100-python, with 2 training and 1 test image of each class."""
    table = load_table("cifar100", data_root=tmp_path)
    names = sorted(name for task in table.tasks for name in task.classes)
    assert len(names) == CIFAR_CLASSES
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}, 2))
    for split, count in (("train", 2), ("test", 1)):
        fine = [label for _ in range(count) for label in range(CIFAR_CLASSES)]
        files = [f"{names[f]}_s_{count * CIFAR_CLASSES - n:06}.png".encode() for n, f in enumerate(fine)]
        data = numpy.arange(len(fine), dtype=numpy.uint8)[:, None].repeat(3072, axis=1)
        data[:, :1024] = 0
        batch = {b"data": data, b"fine_labels": fine, b"filenames": files}
        (folder / split).write_bytes(pickle.dumps(batch, 2))
    return folder


@pytest.mark.parametrize("form", ["folder", "parent", "tar"])
def test_cifar100_from_its_own_archive(cifar_python, tmp_path, form):
    source = {"folder": cifar_python, "parent": cifar_python.parent}.get(form)
    if source is None:
        source = tmp_path / "cifar-100-python.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(cifar_python, "cifar-100-python")
    prepare.main(["cifar100", "--source", str(source), "--data_root", str(tmp_path / "data")])
    record = load("cifar100", tmp_path / "data", "fish")
    assert record["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    # The 100 images of the second half have the smaller file names, so each class's come first.
    first, second = record["images"][0], record["images"][1]
    assert int(first[1, 0, 0]) == int(second[1, 0, 0]) + 100
    assert int(first[0].max()) == 0 and first[1:].unique().numel() == 1


def test_cifar100_with_a_file_missing(cifar_python, tmp_path):
    (cifar_python / "test").unlink()
    with pytest.raises(UserError, match="cifar-100-python/test not found"):
        prepare.main(["cifar100", "--source", str(cifar_python), "--data_root", str(tmp_path / "data")])


def test_cifar100_is_downloaded_where_there_is_nothing(cifar_python, tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def download(url, root, filename, md5):
        with tarfile.open(f"{root}/{filename}", "w:gz") as archive:
            archive.add(cifar_python, "cifar-100-python")

    monkeypatch.setattr(downloads, "download_url", download)
    (tmp_path / "data").mkdir()
    prepare.main(["cifar100", "--data_root", str(tmp_path / "data")])
    assert len(load("cifar100", tmp_path / "data", "20", "test")["labels"]) == 5


def test_without_a_network_the_other_ways_are_named(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def download(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(downloads, "download_url", download)
    with pytest.raises(UserError, match=r"could not be downloaded .*no network.*--source"):
        prepare.main(["cifar100", "--data_root", str(tmp_path)])


def test_real_cifar100(cifar_zip, tmp_path):
    """One task of the real archive: the table's mean and std are those of its pixels."""
    table = load_table("cifar100", data_root=tmp_path)
    wanted = f"/{table.tasks[0].name}/"
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(cifar_zip) as archive, zipfile.ZipFile(small, "w") as kept:
        for name in archive.namelist():
            if wanted in name:
                kept.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="train/fish/aquarium_fish not found"):
        prepare.main(["cifar100", "--source", str(small), "--data_root", str(tmp_path)])

    train = load("cifar100", tmp_path, "1", "train")
    test = load("cifar100", tmp_path, "1", "test")
    assert (len(train["labels"]), len(test["labels"])) == (2500, 500)
    assert test["labels"][:101].tolist() == [0] * 100 + [1]
    assert train["mean"] == pytest.approx(table.tasks[0].mean, abs=1e-4)
    assert train["std"] == pytest.approx(table.tasks[0].std, abs=1e-4)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_read(tmp_path, protocol):
    content = {
        b"data": numpy.arange(12, dtype=numpy.uint8).reshape(3, 4),
        "labels": [1, 2.5, None, True, (3, {4})],
        "scalar": numpy.float32(1.5),
        "bytes": b"\x00\xff",
    }
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
    read = safe_pickle.load(tmp_path / "batch")
    assert numpy.array_equal(read.pop(b"data"), content.pop(b"data"))
    assert read == content


class _Harmful:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("harmful", "named"),
    [
        (_Harmful(exec, "raise SystemExit"), "exec"),
        (_Harmful(shutil.rmtree, "nowhere"), "rmtree"),
        (_Harmful(getattr, "text", "upper"), "getattr"),
        (_Harmful(numpy.fromfile, "secret"), "fromfile"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, harmful, named, protocol):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": harmful}, protocol))
    with pytest.raises(UserError, match=rf"it names [\w.]+\.{named}, which is refused") as caught:
        safe_pickle.load(tmp_path / "batch")
    assert str(tmp_path / "batch") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00", b"hello", b"\x80\xff"])
def test_a_damaged_pickle_is_refused(content):
    with pytest.raises(UserError, match="batch is no readable pickle of arrays"):
        safe_pickle.load(io.BytesIO(content), name="batch")
