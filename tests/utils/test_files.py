"""Files that several processes read and write concurrently."""

import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from utils import files
from utils.errors import UserError
from utils.files import (
    csv_text,
    locked,
    read_csv,
    read_json,
    read_once,
    update_csv,
    update_json,
    write_atomically,
    write_changed,
)

WRITERS, UPDATES = 4, 60
COLUMNS = ("target_id", "task_id")


def write_json_entries(path: Path, writer: int) -> None:
    for number in range(UPDATES):
        update_json(path, {f"{writer}-{number}": "x" * 50})


def write_csv_rows(path: Path, writer: int) -> None:
    for number in range(UPDATES):
        target = writer * UPDATES + number
        row = {"target_id": target, "task_id": writer}
        update_csv(path, [row], columns=COLUMNS, replace={"target_id": str(target)})


def in_processes(write: Callable[[Path, int], None], path: Path, look: Callable[[], object]) -> int:
    """Run `write` in several processes and `look` at the file meanwhile. Returns the number of looks."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, number)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    looks = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            look()
            looks += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    return looks


def test_concurrent_json_updates_lose_nothing_and_readers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    sizes = []
    looks = in_processes(write_json_entries, path, lambda: sizes.append(len(json.loads(path.read_text()))))
    assert looks > 20 and sizes == sorted(sizes)
    expected = {f"{writer}-{number}" for writer in range(WRITERS) for number in range(UPDATES)}
    assert read_json(path, remedy="").keys() == expected


def test_concurrent_csv_updates_lose_nothing_and_readers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "shared.csv"
    looks = in_processes(write_csv_rows, path, lambda: read_csv(path, columns=COLUMNS, remedy=""))
    assert looks > 20
    rows = read_csv(path, columns=COLUMNS, remedy="")
    assert [int(row["target_id"]) for row in rows] == list(range(WRITERS * UPDATES))
    assert all(int(row["task_id"]) == int(row["target_id"]) // UPDATES for row in rows)


def test_update_json_keeps_other_entries_and_replaces_its_own(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    update_json(path, {"fish": "0.1", "trees": "0.2"})
    update_json(path, {"fish": "0.3"})
    assert read_json(path, remedy="") == {"fish": "0.3", "trees": "0.2"}


def test_update_csv_replaces_the_rows_of_one_target_and_sorts_by_number(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"

    def update(target: int, *tasks: int) -> None:
        rows = [{"target_id": target, "task_id": task} for task in tasks]
        update_csv(path, rows, columns=COLUMNS, replace={"target_id": str(target)})

    update(10, 1)
    update(2, 9, 10)
    update(2, 3)
    assert path.read_text() == "target_id,task_id\n2,3\n10,1\n"


def test_splicing_a_csv_gives_what_parsing_it_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*COLUMNS, "score")

    def update(path: Path, target: int, *tasks: int) -> None:
        rows = [{"target_id": target, "task_id": task, "score": f"{task / 7:.3f}"} for task in tasks]
        update_csv(path, rows, columns=COLUMNS, added=names[2:], replace={"target_id": str(target)})

    def updated(name: str) -> str:
        path = tmp_path / name
        path.write_text("target_id,task_id\n7,1\n")  # without the added column
        for target, *tasks in ((10, 3, 12, 2), (2, 5), (1, 4), (10, 1), (100, 1, 2), (2,), (7, 9, 8), (3,)):
            update(path, target, *tasks)
        return path.read_text()

    spliced = updated("spliced.csv")
    parsed = []
    monkeypatch.setattr(files, "_spliced", lambda path, *_, **__: parsed.append(path))
    assert spliced == updated("parsed.csv") and len(parsed) == 8
    assert [line.split(",")[0] for line in spliced.splitlines()[1:]] == ["1", "7", "7", "10", "100", "100"]


def test_an_unchanged_file_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    update_json(path, {"a": 1})
    os.utime(path, ns=(5, 5))
    update_json(path, {"a": 1})
    write_changed(path, path.read_bytes())
    assert path.stat().st_mtime_ns == 5
    update_json(path, {"a": 2})
    assert path.stat().st_mtime_ns != 5


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fchmod", "fdopen"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError) as caught:
                write_atomically(path, "new")
        assert caught.value.filename == str(path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("")
    write_atomically(written, "")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[1]", "holds no JSON object"),
        (None, "not found"),
    ],
)
def test_an_invalid_json_file_is_rejected_with_the_remedy(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path, remedy="run the stage again")
    assert str(path) in str(caught.value) and "run the stage again" in str(caught.value)
    if content is not None:
        with pytest.raises(UserError, match=message):
            update_json(path, {"a": 1})
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"target_id\n1\n", "has no column task_id"),
        (b"", "has no column target_id, task_id"),
        (b"target_id,task_id\n1\n", "a line with too few fields"),
        (b"target_id,task_id\n\xff,1\n", "is not valid CSV"),
        (b'target_id,task_id\n"' + b"x" * 200_000 + b'",1\n', "is not valid CSV"),
        (None, "not found"),
    ],
)
def test_an_invalid_csv_file_is_rejected_with_the_remedy(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_csv(path, columns=COLUMNS, remedy="run the stage again")
    assert str(path) in str(caught.value) and "run the stage again" in str(caught.value)


def test_csv_fields_may_contain_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    rows = [{"target_id": "a, b", "task_id": 'c"\nd'}]
    path.write_text(csv_text(rows, COLUMNS))
    assert read_csv(path, columns=COLUMNS, remedy="") == rows


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "record[1].txt"
    stale, live = tmp_path / ".record[1].txt.a.tmp", tmp_path / ".record[1].txt.b.tmp"
    other = tmp_path / ".record1.txt.c.tmp"
    for file in (stale, live, other):
        file.touch()
    for file in (stale, other):
        os.utime(file, (0, 0))
    write_atomically(path, "x")
    assert sorted(tmp_path.iterdir()) == sorted([path, live, other])


def test_a_write_is_on_the_disk_before_it_replaces_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "record.txt", []
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_text()))
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert seen == ["old"]


def test_a_shared_file_is_read_again_only_once_it_has_changed(tmp_path: Path) -> None:
    path, read = tmp_path / "file.json", []

    def reader(path: Path, *, remedy: str) -> dict:
        read.append(path)
        return read_json(path, remedy=remedy)

    with pytest.raises(UserError, match="not found: make it"):
        read_once(reader, path, remedy="make it")
    for number in (1, 2):
        update_json(path, {"a": number})
        assert [read_once(reader, path, remedy="")["a"] for _ in range(3)] == [number] * 3
    assert len(read) == 3


def test_entries_that_the_file_holds_take_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    update_json(path, {"a": 1, "b": [2]})
    with locked(path):
        update_json(path, {"b": [2]})
