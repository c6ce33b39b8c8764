"""Mutated files of every kind that the project reads: a UserError or a result, and no crash."""

import io
import json
import os
import random
import resource
import shutil
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from data import cache
from data.archives import open_zip, zipped_file
from pipeline import fleet
from tests.robustness import test_checkpoints_checksum, test_data_fuzz, test_data_pickles
from tests.robustness.campaign.lines import Line
from tools.select_pruning_ratio import read_record
from training.checkpoints import read_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import csv_text, read_csv

PART = "fuzzed files"
MEMORY = 16 << 30


class Fuzzer:
    """Reads mutated files, and counts them.

    Args:
        cases: how many; a kind may round it.
        last: file that keeps the latest one, for the case that reading it kills the process.
    """

    def __init__(self, *, cases: int, draw: random.Random, folder: Path) -> None:
        self.cases = cases
        self.draw = draw
        self.folder = folder
        self.last = folder / "last"
        self.counts = {"tried": 0, "refused": 0}

    def __call__(self, content: bytes, read: Callable[[bytes], object], *, cases: int | None = None) -> None:
        """Read mutated versions of `content`.

        Args:
            cases: ignored; for the tests' functions that call this in place of their own.

        Raises:
            Exception: what reading one raises, except for the errors that scripts report in one line.
        """
        for _ in range(self.cases):
            damaged = test_data_fuzz.mutated(content, self.draw)
            self.last.write_bytes(damaged)
            self.counts["tried"] += 1
            try:
                read(damaged)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
                self.counts["refused"] += 1
            except OSError as error:
                assert error.filename is not None, error

    def through(self, name: str, content: bytes, read: Callable[[Path], object]) -> None:
        """Read mutated versions of a file by its path."""
        path = self.folder / name

        def write_and_read(damaged: bytes) -> None:
            path.write_bytes(damaged)
            read(path)

        self(content, write_and_read)


def attempt(kind: str, *, cases: int, number: int, seed: int, folder: Path) -> Line:
    """Fuzz one kind in `KINDS`, in a process of its own."""
    line = Line(part=PART, what=kind, number=number)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _work(kind, cases=cases, seed=f"{seed} {kind} {number}", folder=work, report=report)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = (
        json.loads(report.read_text()) if report.exists() else {"counts": {"tried": 0}, "error": "no report"}
    )
    line.tried = found["counts"].pop("tried")
    line.notes = found["counts"]
    if status != 0 or found["error"]:
        kept = folder / f"crash_{kind.replace(' ', '_')}_{number}"
        if (work / "last").exists():
            shutil.copy(work / "last", kept)
        line.tracebacks.append(f"{kind} {number}: status {status}, {kept}: {found['error']}")
    return line


def _work(kind: str, *, cases: int, seed: str, folder: Path, report: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    fuzzer = Fuzzer(cases=cases, draw=random.Random(seed), folder=folder)
    error = ""
    try:
        with warnings.catch_warnings(action="ignore"):
            KINDS[kind](fuzzer)
    except BaseException:
        error = traceback.format_exc()[-3000:]
    report.write_text(json.dumps({"counts": fuzzer.counts, "error": error}))
    os._exit(0)


# The fuzzers of the tests, with this campaign's cases


def _of_tests(test: Callable, *arguments: object, fuzzer: Fuzzer) -> None:
    with mock.patch.object(test_data_fuzz, "fuzz", fuzzer):
        needs_folder = "tmp_path" in test.__code__.co_varnames[: test.__code__.co_argcount]
        test(*([fuzzer.folder] if needs_folder else []), *arguments)


def _pickles(fuzzer: Fuzzer) -> None:
    report = io.StringIO()
    with mock.patch("sys.stdout", report):
        test_data_pickles.fuzz(fuzzer.cases, fuzzer.draw.randrange(2**32), fuzzer.last)
    found = json.loads(report.getvalue())
    fuzzer.counts |= {"tried": found["read"] + found["refused"], "refused": found["refused"]}


# Checkpoints, caches, and the text files that stages exchange


def _payload() -> dict:
    shared = {"fish": {"network_width_multiplier": 1.0, "bias": {"features.0": torch.ones(3)}}}
    return test_checkpoints_checksum.small_payload(
        shared_layer_info=shared,
        architecture={"name": "lenet5", "layers": "plain"},
        arguments={"lr": 0.1, "epochs": 3, "task": "fish"},
        epoch=3,
        metrics=dict.fromkeys(("train_accuracy", "validation_accuracy", "test_accuracy"), 0.5),
    )


def _checkpoints(fuzzer: Fuzzer, *, kind: str) -> None:
    """With a checksum, without one, and in torch's older format without an archive."""
    path = fuzzer.folder / "checkpoint-3.pth.tar"
    if kind == "checksum":
        save_checkpoint(path, _payload())
    else:
        torch.save(_payload(), path, _use_new_zipfile_serialization=kind == "archive")
    fuzzer.through(path.name, path.read_bytes(), read_checkpoint)


def _caches(fuzzer: Fuzzer) -> None:
    path = fuzzer.folder / "train.pt"
    images = torch.arange(4 * 3 * 4 * 4, dtype=torch.uint8).reshape(4, 3, 4, 4)
    cache.write(path, images=images, labels=torch.tensor([0, 1, 0, 1]), classes=("a", "b"), signature="x")
    fuzzer.through(path.name, path.read_bytes(), partial(cache.read, remedy="run it again"))


def _archives(fuzzer: Fuzzer) -> None:
    buffer = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, method in enumerate(methods):
            archive.writestr(
                f"train/a/{number}.png", test_data_fuzz.IMAGES["png"][:200], compress_type=method
            )

    def read(path: Path) -> None:
        with open_zip(path) as opened:
            for member in opened.infolist():
                zipped_file(opened, member, 0).read()

    fuzzer.through("a.zip", buffer.getvalue(), read)


_METRICS = {"train_accuracy": 0.9, "validation_accuracy": 0.8, "test_accuracy": 0.8, "grow": True}


def _results(fuzzer: Fuzzer, *, name: str) -> None:
    content, read = {
        "baselines": ({"fish": "0.5000", "dog": "0.7"}, partial(fleet.read_baseline, task="fish")),
        "records": ({"0.0": 0.5, "0.8": 0.4}, partial(read_record, ratios=[0.8])),
        "arguments": ({"3": {"seed": 1, "select": "nearest"}}, partial(fleet.read_arguments, entry="3")),
        "metrics": (
            {"arguments": {"seed": 1}, "accuracy_matrix": [[0.25], [0.5, 0.75]]},
            partial(fleet.read_reference, tasks=2, remedy="run it again"),
        ),
    }[name]
    fuzzer.through("results.json", json.dumps(content).encode(), read)


def _widths(fuzzer: Fuzzer) -> None:
    content = json.dumps({"1.0": _METRICS, "1.5": _METRICS}).encode()
    fuzzer.through("widths.json", content, lambda path: fleet.read_widths(path.parent))


def _rows(fuzzer: Fuzzer) -> None:
    columns: Sequence[str] = ("target_id", "task_id")
    content = csv_text([{"target_id": 3, "task_id": 1}, {"target_id": 4, "task_id": 2}], columns).encode()
    fuzzer.through("result.csv", content, partial(read_csv, columns=columns, remedy="delete it"))


KINDS: dict[str, Callable[[Fuzzer], None]] = {
    "pickled batches": _pickles,
    **{
        f"checkpoints, {kind}": partial(_checkpoints, kind=kind)
        for kind in ("checksum", "archive", "older format")
    },
    "caches": _caches,
    "zip archives": _archives,
    **{
        f"JSON, {name}": partial(_results, name=name)
        for name in ("baselines", "records", "arguments", "metrics")
    },
    "JSON, widths": _widths,
    "CSV": _rows,
    **{
        f"images, {kind}": lambda fuzzer, kind=kind: _of_tests(
            test_data_fuzz.test_images, kind, fuzzer=fuzzer
        )
        for kind in test_data_fuzz.IMAGES
    },
    "LEAF's JSON": lambda fuzzer: _of_tests(test_data_fuzz.test_leaf, fuzzer=fuzzer),
    "COCO's JSON": lambda fuzzer: _of_tests(test_data_fuzz.test_mscoco, fuzzer=fuzzer),
    "TOML": lambda fuzzer: _of_tests(test_data_fuzz.test_tables, fuzzer=fuzzer),
    "ImageNet batches": lambda fuzzer: _of_tests(test_data_fuzz.test_imagenet_batches, fuzzer=fuzzer),
    "CIFAR batches": lambda fuzzer: _of_tests(test_data_fuzz.test_cifar_batches, "train", fuzzer=fuzzer),
    "CIFAR names": lambda fuzzer: _of_tests(test_data_fuzz.test_cifar_batches, "meta", fuzzer=fuzzer),
}
# Slow to read: fewer of them.
SLOW = ("COCO's JSON", "CIFAR batches", "CIFAR names", "ImageNet batches", "LEAF's JSON")


def cases_of(kind: str, cases: int) -> int:
    """How many files of a kind make one attempt, if the fast kinds get `cases`."""
    return max(cases // 20, 1) if kind in SLOW else cases * (10 if kind == "pickled batches" else 1)
