"""Files of tensors are read without running code, and damaged ones are rejected with a remedy."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.tensor_files import read_tensors


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def read(path: Path, *, mmap: bool = False) -> object:
    return read_tensors(path, what="a checkpoint", remedy="run its stage again", mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_numbers_and_strings_come_back(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(saved({"weight": torch.arange(3), "epoch": 4, "name": "fish"}))
    content = read(path, mmap=mmap)
    assert content["weight"].equal(torch.arange(3))
    assert (content["epoch"], content["name"]) == (4, "fish")


def test_the_older_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(saved([torch.ones(2)], zipped=False))
    assert read(path)[0].equal(torch.ones(2))


@pytest.mark.parametrize("kind", ["zip", "older format", "pickle"])
def test_other_objects_are_not_opened(kind: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "file.pt", tmp_path / "sprung"
    trap = {"trap": Trap(sprung)}
    path.write_bytes(pickle.dumps(trap) if kind == "pickle" else saved(trap, zipped=kind == "zip"))
    with pytest.raises(UserError) as caught:
        read(path)
    expected = "holds more than tensors, numbers and strings, and is not opened: run its stage again"
    assert str(caught.value) == f"{path} {expected}"
    assert not sprung.exists()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "content",
    [b"", b"this is text", saved({"a": torch.ones(9)})[:-50], saved([torch.ones(9)], zipped=False)[:-50]],
    ids=["empty", "text", "truncated", "truncated older format"],
)
def test_damaged_files_are_rejected_with_the_remedy(content: bytes, mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path, mmap=mmap)
    assert str(caught.value) == f"{path} is truncated or not a checkpoint: run its stage again"


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pt not found: run its stage again"):
        read(tmp_path / "absent.pt")


def test_an_error_of_the_system_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(saved([]))

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(PermissionError):
        read(path)
