import inspect
import textwrap

import pytest

from data import cache, prepare
from data.loading import load_task
from data.sources import docstrings
from data.tables import load_table
from utils.errors import UserError


def test_digits_docs_has_images_of_digits_and_texts_of_packages(tmp_path, caplog):
    with caplog.at_level("INFO"):
        prepare.main(["digits_docs", "--data_root", str(tmp_path)])
    table = load_table("digits_docs", data_root=tmp_path)
    assert [task.modality for task in table.tasks] == ["image"] * 3 + ["text"] * 3
    digits = load_table("digits", data_root=tmp_path)
    for number, name in ((1, "two_three"), (4, "asyncio_email_xml")):
        task = table.task(name)
        assert task.id == number
        data = load_task(table, task, data_root=tmp_path, protocol="published", seed=1, device="cpu")
        if task.modality == "image":
            same = load_task(
                digits, digits.task(name), data_root=tmp_path, protocol="published", seed=1, device="cpu"
            )
            assert data.fingerprint == same.fingerprint
            continue
        assert data.train.labels.bincount().min() >= 100
        assert len(data.train) / (len(data.train) + len(data.test)) == pytest.approx(0.8, abs=0.06)
        train, test = ({tuple(row.tolist()) for row in part.inputs} for part in (data.train, data.test))
        assert len(train & test) < 3
    assert cache.path_of(tmp_path, "digits", "two_three", "train").exists()
    assert not (cache.folder_of(tmp_path, "digits_docs") / "two_three").exists()


def test_docstrings_are_those_of_the_source_files():
    found = docstrings.docstrings_of("textwrap")
    (dedent,) = (content for content, name in found.items() if name.endswith("textwrap.py:dedent"))
    assert dedent == inspect.cleandoc(textwrap.dedent.__doc__)
    with pytest.raises(UserError, match="nowhere not found"):
        docstrings.docstrings_of("nowhere")
