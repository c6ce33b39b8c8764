"""Hostile command lines, tables and result files: one line of error at most, and nothing else touched."""

import argparse
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from tests.robustness.campaign.children import ENTRIES, Child, Ended
from tests.robustness.campaign.lines import Line
from tests.robustness.campaign.stages import BY_NAME, CPG, References, Stage, copy

PART = "inputs"
# Seconds of processor time after which a command counts as accepted: some hostile values are merely large.
ACCEPTED = 3.0
MEMORY = 12 << 30

_COMMON = r"""
    - -- -x --help . .. ../x / ~ * a/b a\b $HOME `id` $(id) ;id |id %s%n {0} {} \x00 ä 日本 con NUL
    all none None nan inf -inf True null same other random from_csv from_target cuda:99 cpu:1 meta
    0 -0 00 -1 1 2 999 1e3 1_0 0x1 1.5 1e-320 1e308 1e309 0.99999999 1- 1-999999999 3-1 1,,2 1-2-3
"""
_RARE = ("", " ", "a\nb", "a\rb", "a\tb", "\x1b[31m", "\udcff", "a" * 300, "x" * 5000, "9" * 30, "9" * 5000)
TEXTS = (*_COMMON.split(), *_RARE)
# Flags whose value names a file or folder that a command writes.
_WRITTEN = (
    *("--save_folder", "--log_path", "--report_file", "--jsonfile", "--csv_path"),
    *("--pruning_ratio_to_acc_record_file", "--checkpoints_root", "--logs_root", "--data_root"),
)
# These print pages, train for long, or download.
_LEFT_OUT = ("--help", "--tune", "--use_imagenet_pretrained")

_VICTIMS = (
    "stage 1",
    "stage 2-1",
    "stage 2-2",
    "stage 3-1",
    "stage 3-2, with growth",
    "K/V transfer",
    "spg_main.py, ncl",
)


def attempt(kind: str, *, references: References, number: int, seed: int, folder: Path) -> Line:
    """Try one hostile input of a kind in `KINDS`."""
    draw = random.Random(f"{seed} {kind} {number}")
    line = Line(part=PART, what=kind, number=number, tried=1)
    roots, outside = folder / "root", folder / "outside"
    make_sentinels(outside)
    before = snapshot(outside)
    stage, argv = KINDS[kind](draw, references=references, root=roots, outside=outside)
    child = Child(stage.entry, argv, output=folder / "output", before=lambda: _confine(outside))
    accepted = not child.ends_before(ACCEPTED)
    if accepted:
        child.kill(signal.SIGKILL)
    ended = child.end()
    where = f"{kind} {number}: {stage.entry} {argv}"
    if problem := "" if accepted else misreported(ended):
        line.tracebacks.append(f"{where}: {problem}: {ended.output[-1500:]}")
    named = [Path(value) for flag, value in _pairs(argv) if flag in _WRITTEN]
    after = snapshot(outside)
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        # A new file below a folder that an output flag names is what was asked for.
        if name not in before and any(
            (outside / name).is_relative_to((outside / path).resolve()) for path in named
        ):
            continue
        line.lost.append(f"{where}: {name} was touched")
    shutil.rmtree(outside)
    line.notes["refused"] = int(ended.status in (1, 2))
    return line


def misreported(ended: Ended) -> str:
    """What is wrong with how a command ended: "" for success, or for an error in one line."""
    if ended.status not in (0, 1, 2):
        return f"status {ended.status}"
    if ended.tracebacks:
        return "traceback"
    errors = [text for text in ended.output.splitlines() if "error: " in text and " - root - " not in text]
    if ended.status == 0:
        return ""
    if len(errors) != 1 or not errors[0].strip() or len(errors[0]) > 20_000:
        return f"{len(errors)} lines of errors"
    if ended.output.splitlines()[-1] != errors[0]:
        return "the error is not the last line"
    return ""


def _pairs(argv: list[str]) -> Iterator[tuple[str, str]]:
    for number, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if equals:
            yield flag, value
        elif number + 1 < len(argv):
            yield word, argv[number + 1]


def _confine(folder: Path) -> None:
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def make_sentinels(folder: Path) -> None:
    """Files and folders that no command of the campaign may change, some of which look like its outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "task_1" / "train").mkdir(parents=True)
    (folder / "x" / "tune").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "x", "version": 1}\n')
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "notes.txt").write_text("not a log\n")
    (folder / "task_1" / "train" / "checkpoint-3.pth.tar").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (folder / "x" / "resume.pth.tar").write_bytes(b"PK\x03\x04")
    (folder / "x" / "tune" / "record.txt").write_text("[]\n")


def snapshot(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Command lines


@cache
def flags_of(entry: str) -> list[argparse.Action]:
    """The flags of an entry point, as its parser knows them."""
    parsers = []

    def remember(self: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(self)
        raise SystemExit

    with mock.patch.object(argparse.ArgumentParser, "parse_args", remember), suppress(SystemExit):
        ENTRIES[entry].main([])
    return [
        action
        for action in parsers[-1]._actions
        if action.option_strings and action.option_strings[0] not in _LEFT_OUT
    ]


def command_line(
    draw: random.Random, *, references: References, root: Path, outside: Path
) -> tuple[Stage, list[str]]:
    """A stage's command with one to three hostile flags, on roots where it has finished."""
    stage = draw.choice([stage for stage in references.stages if stage.name in _VICTIMS])
    copy(references.after(stage), root)
    argv = stage.argv(root, references.data)
    files = [str(path) for path in outside.rglob("*")] + [
        str(outside),
        str(root),
        str(root / "checkpoints"),
        "task_1",
        ".",
    ]
    for _ in range(draw.randint(1, 3)):
        action = draw.choice(flags_of(stage.entry))
        flag = draw.choice(action.option_strings)
        if action.nargs == 0:
            argv.append(flag)
            continue
        values = [
            draw.choice(files) if draw.random() < 0.3 else draw.choice(TEXTS)
            for _ in range(draw.randint(1, 2))
        ]
        argv += [f"{flag}={values[0]}"] if len(values) == 1 and draw.random() < 0.7 else [flag, *values]
    return stage, argv


# Tables

_NUMBERS = (0, 1, -1, 2, 16, 10**9, 10**40, 1.5, -0.0)
_WORDS = tuple(text for text in TEXTS if "\udcff" not in text)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return "nan"
    return json.dumps(value)


def _hostile(draw: random.Random) -> Any:
    match draw.randrange(6):
        case 0:
            return draw.choice(_NUMBERS)
        case 1:
            return [draw.choice(_WORDS) for _ in range(draw.randint(0, 3))]
        case 2:
            return draw.choice((True, False, [], {}, [[]], None, {"a": 1}))
        case _:
            return draw.choice(_WORDS)


def task_table(
    draw: random.Random, *, references: References, root: Path, outside: Path
) -> tuple[Stage, list[str]]:
    """A task table with one to three hostile entries, listed or trained on."""
    table: dict[str, Any] = {
        "root": "pictures",
        "size": 16,
        "channels": 1,
        "augment": {"crop_padding": 4, "flip": True},
        "mean": [0.5],
        "std": [0.5],
        "tasks": [
            {"name": "pets", "classes": ["cat", "dog"]},
            {"name": "cars", "classes": ["bus", "van"], "folder": "autos"},
            {"name": "zero_one", "table": "digits"},
        ],
    }
    places: list[dict] = [table, table["augment"], *table["tasks"]]
    for _ in range(draw.randint(1, 3)):
        place = draw.choice(places)
        key = draw.choice(
            [*place, "name", "text_root", "modality", "source", "download", draw.choice(_WORDS)]
        )
        place[key] = _hostile(draw)
    name = draw.choice(["mine", "mine", "mine", draw.choice(_WORDS)])
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in table.items()]
    path = root / "table.toml"
    copy(Path("nowhere"), root)
    path.write_text(f"[{json.dumps(name)}]\n" + "\n".join(lines) + "\n")
    roots = ("--data_root", references.data, "--checkpoints_root", root / "c", "--logs_root", root / "l")
    argv = ["--dataset_config", str(path), *map(str, roots)]
    if draw.random() < 0.3:
        stage = Stage("a table", "packnet_cifar100_main_normal", ())
        return stage, [*argv, "--epochs", "1", "--threads", "1", "--dataset", draw.choice(("3", "1", "all"))]
    return Stage("a table", "tools.list_tasks", ()), argv


# Result files

_LOGS = "logs/lenet5/seed1"
_RECORD = "checkpoints/lenet5/seed1/CPG_single_scratch_woexp/digits/zero_one/gradual_prune/record.txt"
_WIDTHS = (
    "checkpoints/lenet5/seed1/CPG_fromsingle_scratch_woexp_target/digits/*/four_five/scratch/widths.json"
)
# Each with a stage that reads it.
_FILES = (
    (f"{_LOGS}/baseline_digits_acc_scratch.txt", "stage 2-2"),
    (f"{_LOGS}/baseline_digits_acc_scratch.txt", "stage 3-2, with growth"),
    (f"{_LOGS}/pickaback_digits_result.csv", "stage 3-2, with growth"),
    (f"{_LOGS}/pickaback_digits_result.csv", "stage 3-1"),
    (f"{_LOGS}/pickaback_digits_table.csv", "stage 3-1"),
    (f"{_LOGS}/pickaback_digits_result.csv.arguments.json", "stage 3-1"),
    (_RECORD, "stage 2-2"),
    (_RECORD, "stage 2-1"),
    (_WIDTHS, "stage 3-2, with growth"),
)


def result_file(
    draw: random.Random, *, references: References, root: Path, outside: Path
) -> tuple[Stage, list[str]]:
    """A finished stage, one of whose result files holds hostile values, run again."""
    present = {stage.name for stage in references.stages}
    name, stage_name = draw.choice([entry for entry in _FILES if entry[1] in present])
    stage = BY_NAME[stage_name]
    copy(references.after(stage), root)
    (path,) = root.glob(name)
    if path.suffix == ".csv":
        path.write_bytes(_hostile_csv(path.read_text(), draw))
    else:
        path.write_bytes(_hostile_json(json.loads(path.read_text()), draw))
    more = ["--overwrite"] if draw.random() < 0.3 and stage.entry != CPG else []
    return stage, [*stage.argv(root, references.data), *more]


def _hostile_csv(text: str, draw: random.Random) -> bytes:
    rows = [row.split(",") for row in text.splitlines()]
    for _ in range(draw.randint(1, 3)):
        row = draw.choice(rows)
        match draw.randrange(5):
            case 0:
                rows.insert(draw.randrange(len(rows) + 1), list(row))
            case 1:
                row.append("x")
            case 2 if len(row) > 1:
                row.pop()
            case 3:
                row[draw.randrange(len(row))] = '"'
            case _:
                row[draw.randrange(len(row))] = draw.choice(TEXTS)
    content = "\n".join(",".join(row) for row in rows).encode(errors="surrogateescape")
    return draw.choice((b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + content


def _hostile_json(value: dict, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        place = draw.choice([value, *(entry for entry in value.values() if isinstance(entry, dict))])
        key = draw.choice([*place, draw.choice(_WORDS)])
        place[key] = _hostile(draw)
    text = json.dumps(value)
    return (
        draw.choice(("{}", "[]", "null", '{"a":' * 20_000, "", text[:-1])) if draw.random() < 0.1 else text
    ).encode()


KINDS = {"command lines": command_line, "task tables": task_table, "result files": result_file}
