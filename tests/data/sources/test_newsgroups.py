import codecs
import pickle
import re
import shutil
import urllib.error
import zipfile

import numpy
import pytest
from sklearn.utils import Bunch

from data import cache, prepare
from data.loading import load_split, load_task
from data.raw_files import in_test
from data.sources import newsgroups
from data.tables import load_table
from data.text_encoders import HashEncoder
from utils.errors import UserError

POST = """From: someone@somewhere
Newsgroups: {group}
Subject: a question

In article <1@there> another@there writes:
> what was said before
| and before that
Body {number} of {group} in caf\xe9 words
and a second line

--
someone, who knows {group}
"""
EMPTY = "From: someone@somewhere\nNewsgroups: x\n\nIn article <1@there> another@there writes:\n> quoted\n"


def post(group: str, number: int) -> str:
    return EMPTY if number % 10 == 9 else POST.format(group=group, number=number)


@pytest.fixture
def source(make_tree, tmp_path):
    """A folder with the PNG tree of the table's CIFAR-100 tasks and 40 posts per group, extracted."""
    table = load_table("cifar_newsgroups", data_root=tmp_path)
    images = {task.name: task.classes for task in table.tasks if task.modality == "image"}
    root = make_tree(images, root="cifar100_org", size=32, train=2, test=1)
    for task in table.tasks:
        for group in task.classes if task.modality == "text" else ():
            (root / "20_newsgroups" / group).mkdir(parents=True)
            for number in range(40):
                path = root / "20_newsgroups" / group / str(number)
                path.write_bytes(post(group, number).encode("latin-1"))
    return root


def prepared(root, *arguments):
    prepare.main(["cifar_newsgroups", "--data_root", str(root), *map(str, arguments)])


def data_of(root, task):
    table = load_table("cifar_newsgroups", data_root=root)
    return load_task(table, table.task(task), data_root=root, protocol="published", seed=1, device="cpu")


def test_the_table_is_the_published_one(tmp_path):
    table = load_table("cifar_newsgroups", data_root=tmp_path)
    assert [task.name for task in table.tasks if task.modality == "text"] == [
        *("comp", "rec", "sci", "talk", "misc")
    ]
    assert sum(task.num_classes for task in table.tasks if task.modality == "text") == 20
    flowers = load_table("cifar100", data_root=tmp_path).task("flowers")
    assert (table.task("flowers").id, table.task("flowers").mean) == (2, flowers.mean)


def test_the_archive_zipped_or_not(source, tmp_path, caplog):
    with caplog.at_level("INFO"):
        prepared(tmp_path / "a", "--source", source)
    assert re.search(r"cifar_newsgroups: 11 tasks, 60 training and 30 test images and \d+ train", caplog.text)
    assert re.search(r"texts: 80 empty and left out, 0 not in UTF-8", caplog.text)
    with zipfile.ZipFile(source / "20_newsgroups.zip", "w") as archive:
        for path in sorted((source / "20_newsgroups").rglob("*"), reverse=True):
            archive.write(path, path.relative_to(source))
    shutil.rmtree(source / "20_newsgroups")
    # Again, from the data folder itself.
    prepared(source)
    caplog.clear()
    with caplog.at_level("INFO"):
        first, second = data_of(tmp_path / "a", "sci"), data_of(source, "sci")
    assert first.fingerprint == second.fingerprint
    assert caplog.text.count("sci: 20 Newsgroups, the archive of 19997 posts") == 2
    assert data_of(source, "insects").train.inputs.shape == (10, 3, 32, 32)


def test_posts_are_stripped_and_split_by_their_path(source, tmp_path):
    prepared(tmp_path / "a", "--source", source)
    data = data_of(tmp_path / "a", "rec")
    numbers = [str(number) for number in sorted(map(str, range(40))) if int(number) % 10 != 9]
    expected = [n for n in numbers if in_test(f"rec.autos/{n}")]
    of_autos = data.test.inputs[data.test.labels == 0]
    assert len(of_autos) == len(expected) > 0
    for row, number in zip(of_autos, expected, strict=True):
        content = f"Body {number} of rec.autos in caf\xe9 words\nand a second line"
        ids, _ = HashEncoder().tokenise(content)
        assert row[: len(ids)].tolist() == ids and not row[len(ids) :].any()


def test_an_existing_image_cache_needs_no_images(source, tmp_path):
    prepared(source)
    shutil.rmtree(source / "cifar100_org")
    before = cache.path_of(source, "cifar100", "insects", "train").stat().st_mtime_ns
    prepared(source)
    assert cache.path_of(source, "cifar100", "insects", "train").stat().st_mtime_ns == before


def test_an_incomplete_archive_and_a_wrong_folder_are_named(source, tmp_path):
    shutil.rmtree(source / "20_newsgroups/sci.med")
    with pytest.raises(UserError, match=r"20_newsgroups/sci\.med not found: give the complete"):
        prepared(tmp_path / "a", "--source", source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds neither 20_newsgroups\.zip"):
        prepared(source, "--source", tmp_path / "empty")


def test_without_preparation_the_command_is_named(source):
    table = load_table("cifar_newsgroups", data_root=source)
    with pytest.raises(UserError, match=r"rec/train-hash\.pt not found: run `python -m data\.prepare cifar_"):
        load_split(table, table.task("rec"), "train", data_root=source)


def test_scikit_learns_edition_is_stripped_the_same_way_and_named(tmp_path):
    """scikit-learn reads its earlier download: a pickle, here with four groups."""
    groups = ["sci.crypt", "sci.electronics", "sci.med", "sci.space"]
    bunches = {}
    for split, count in (("train", 8), ("test", 3)):
        rows = [(number, label) for number in range(count) for label in range(4)]
        bunches[split] = Bunch(
            data=[post(groups[label], number) for number, label in rows],
            target=numpy.array([label for _, label in rows]),
            filenames=numpy.array([f"{split}/{groups[label]}/{number}" for number, label in rows]),
            target_names=groups,
        )
    home = tmp_path / "home"
    home.mkdir()
    (home / "20news-bydate_py3.pkz").write_bytes(codecs.encode(pickle.dumps(bunches), "zlib_codec"))
    raw = newsgroups.find(None, home, None)(
        load_table("cifar_newsgroups", data_root=home).task("sci"), "train"
    )
    assert "scikit-learn's edition" in raw.edition
    texts = list(raw.read())
    assert [text.label for text in texts] == [label for _ in range(8) for label in range(4)]
    assert texts[5].content == newsgroups.strip(post("sci.electronics", 1))
    assert texts[5].content.strip().startswith("Body 1 of sci.electronics")


def test_without_a_network_the_archive_is_requested(tmp_path, monkeypatch):
    import sklearn.datasets

    def fetch(**_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    task = load_table("cifar_newsgroups", data_root=tmp_path).task("sci")
    with pytest.raises(UserError, match=r"no network.*put 20_newsgroups\.zip into .*--source"):
        list(newsgroups.find(None, tmp_path, None)(task, "test").read())
