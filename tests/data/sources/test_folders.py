import shutil
import zipfile

import pytest
import torch

from data import cache, prepare
from utils.errors import UserError


def write_zip(path, tree, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*.png"), reverse=True):
            archive.write(file, prefix + str(file.relative_to(tree.parent)))


@pytest.fixture
def pets(make_tree, make_table):
    """(data folder with a tree, file of a table that lists its classes)."""
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
def test_a_zip_gives_the_same_samples_as_its_tree(pets, tmp_path, prefix, load_cached):
    root, toml = pets
    expected = load_cached(toml, root)
    write_zip(tmp_path / "pictures.zip", root / "pictures", prefix)
    prepare.main([str(toml), "--source", str(tmp_path / "pictures.zip"), "--data_root", str(tmp_path / "b")])
    found = load_cached(toml, tmp_path / "b")
    assert torch.equal(found["images"], expected["images"])
    assert found["fingerprint"] == expected["fingerprint"]


@pytest.mark.parametrize("inner", ["pictures", "."])
def test_a_tree_elsewhere_or_the_folder_that_holds_it(pets, tmp_path, inner, load_cached):
    root, toml = pets
    source = root if inner == "." else root / "pictures"
    prepare.main([str(toml), "--source", str(source), "--data_root", str(tmp_path / "b")])
    assert load_cached(toml, tmp_path / "b")["fingerprint"] == load_cached(toml, root)["fingerprint"]


def test_the_zip_beside_the_missing_tree_is_found(pets, load_cached):
    root, toml = pets
    write_zip(root / "pictures.zip", root / "pictures")
    shutil.rmtree(root / "pictures")
    prepare.main([str(toml), "--data_root", str(root)])
    assert len(load_cached(toml, root)["labels"]) == 20


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
    with pytest.raises(UserError, match=r"pictures\.zip is truncated or not a zip"):
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
