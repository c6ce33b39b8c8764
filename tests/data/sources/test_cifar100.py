import pickle
import tarfile
import urllib.error
import zipfile

import numpy
import pytest

from data import prepare
from data.tables import load_table
from utils.errors import UserError

CIFAR_CLASSES = 100


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
def test_cifar100_from_its_own_archive(cifar_python, tmp_path, form, load_cached):
    source = {"folder": cifar_python, "parent": cifar_python.parent}.get(form)
    if source is None:
        source = tmp_path / "cifar-100-python.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(cifar_python, "cifar-100-python")
    prepare.main(["cifar100", "--source", str(source), "--data_root", str(tmp_path / "data")])
    record = load_cached("cifar100", tmp_path / "data", "fish")
    assert record["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    # The 100 images of the second half have the smaller file names, so they come first in each class.
    first, second = record["images"][0], record["images"][1]
    assert int(first[1, 0, 0]) == int(second[1, 0, 0]) + 100
    assert int(first[0].max()) == 0 and first[1:].unique().numel() == 1


def test_cifar100_with_a_file_missing(cifar_python, tmp_path):
    (cifar_python / "test").unlink()
    with pytest.raises(UserError, match="cifar-100-python/test not found"):
        prepare.main(["cifar100", "--source", str(cifar_python), "--data_root", str(tmp_path / "data")])


def test_cifar100_is_downloaded_if_missing(cifar_python, tmp_path, monkeypatch, load_cached):
    import torchvision.datasets.utils as downloads

    def download(url, root, filename, md5):
        with tarfile.open(f"{root}/{filename}", "w:gz") as archive:
            archive.add(cifar_python, "cifar-100-python")

    monkeypatch.setattr(downloads, "download_url", download)
    (tmp_path / "data").mkdir()
    prepare.main(["cifar100", "--data_root", str(tmp_path / "data")])
    assert len(load_cached("cifar100", tmp_path / "data", "20", "test")["labels"]) == 5


def test_without_a_network_the_other_ways_are_named(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def download(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(downloads, "download_url", download)
    with pytest.raises(UserError, match=r"could not be downloaded .*no network.*--source"):
        prepare.main(["cifar100", "--data_root", str(tmp_path)])


def test_real_cifar100(cifar_zip, tmp_path, load_cached):
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

    train = load_cached("cifar100", tmp_path, "1", "train")
    test = load_cached("cifar100", tmp_path, "1", "test")
    assert (len(train["labels"]), len(test["labels"])) == (2500, 500)
    assert test["labels"][:101].tolist() == [0] * 100 + [1]
    assert train["mean"] == pytest.approx(table.tasks[0].mean, abs=1e-4)
    assert train["std"] == pytest.approx(table.tasks[0].std, abs=1e-4)
