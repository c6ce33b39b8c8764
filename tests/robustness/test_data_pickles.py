"""Damaged and hostile pickles: one line for each, no crash, no flood of memory."""

import io
import json
import os
import pickle
import pickletools
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from data import safe_pickle
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.pkl"))
# About 10 seconds. A campaign sets more.
CASES = int(os.environ.get("FUZZ_CASES", "20000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

# Reads one file and looks at every element, in a process of its own.
_READ = """
import resource, sys
from pathlib import Path
from data import safe_pickle
from utils.errors import UserError
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    print(repr(safe_pickle.load(Path(sys.argv[1]))))
except UserError as error:
    print("refused:", error)
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=3600,
    )


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_pickles_that_crashed_numpy_are_refused(path):
    run = run_python(_READ, path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"refused: {path} is not a readable pickle of arrays")
    assert run.stdout.count("\n") == 1 and not run.stderr


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


BOMBS = {
    "memo": b"\x80\x04]r" + (2**30).to_bytes(4, "little") + b"a.",
    "bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "frame": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "long": b"\x80\x04\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b".",
    "long text": b"L" + b"9" * 10**6 + b"L\n.",
    "deep lists": b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "deep tuples": b"\x80\x04)" + b"\x85" * 10**5 + b".",
    "deep key": b"\x80\x04})" + b"\x85" * 10**6 + b"Ns.",
    "containers": b"\x80\x04(" + b"\x8f" * (5 * 10**6) + b"l.",
    "itself": b"\x80\x04]q\x00h\x00a.",
    # Each list holds the one before ten times.
    "references": b"\x80\x04]q\x00" + (b"](" + b"h\x00" * 10 + b"eq\x00") * 60 + b".",
    "encoded": b"\x80\x04X" + (10**5).to_bytes(4, "little") + b"x" * 10**5 + b"q\x000"
    + b"(" + b"c_codecs\nencode\nh\x00\x85R" * 5000 + b"l.",
    "sets": b"\x80\x04](" + b"".join(b"J" + i.to_bytes(4, "little") for i in range(10**5))
    + b"eq\x000" + b"(" + b"cbuiltins\nset\nh\x00\x85R" * 5000 + b"l.",
    "shape": b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\n"
    + short("u1") + b"\x85R\x8a\x09" + (2**64).to_bytes(9, "little") + b"\x85" + short("C") + b"tR.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_the_memory(tmp_path, name):
    path = tmp_path / "batch"
    path.write_bytes(BOMBS[name])
    code = _READ.replace("try:", "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\ntry:")
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    run = run_python(code, path)
    assert run.returncode == 0, run.stderr
    message, grown = run.stdout.splitlines()
    assert message.startswith("refused: ") and len(message) < 400
    limit = 1024 if name == "containers" else 64
    assert int(grown) < 1024 * limit


def valid_batches() -> list[bytes]:
    """Batches like CIFAR-100's and ImageNet-32's, of every protocol."""
    pixels = numpy.arange(24, dtype=numpy.uint8).reshape(4, 6)
    content = {
        b"data": pixels,
        "fortran": numpy.asfortranarray(pixels.astype(numpy.int32)),
        b"fine_labels": [3, 1, 300, 100000],
        "labels": [numpy.int64(1), numpy.int64(2)],
        b"filenames": [b"a.png", b"b\xff.png"],
        "mean": pixels.mean(0),
        "more": (1.5, None, True, {"x": 2}, {4}),
    }
    return [pickle.dumps(content, protocol) for protocol in range(6)]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four flips, cuts, insertions, repetitions or large numbers."""
    opcodes = [ord(opcode.code) for opcode in pickletools.opcodes]
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(damaged) + 1)
        match draw.randrange(6):
            case 0 if place < len(damaged):
                damaged[place] ^= 1 << draw.randrange(8)
            case 1 if place < len(damaged):
                damaged[place] = draw.choice(opcodes)
            case 2:
                damaged[place:place] = bytes([draw.choice(opcodes)])
            case 3:
                del damaged[place : place + draw.randint(1, 8)]
            case 4:
                start = draw.randrange(len(damaged) + 1)
                damaged[place:place] = damaged[start : start + draw.randint(1, 40)]
            case 5:
                damaged[place : place + 4] = draw.choice(
                    (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80")
                )
    return bytes(damaged)


def fuzz(cases: int, seed: int, last: Path) -> None:
    """Read mutated batches; print how many were read and refused. `last` keeps the latest one."""
    import resource

    draw = random.Random(seed)
    batches = valid_batches()
    for batch in batches:
        safe_pickle.load(io.BytesIO(batch))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {"read": 0, "refused": 0}
    with last.open("wb") as file:
        for _ in range(cases):
            damaged = mutated(draw.choice(batches), draw)
            file.seek(0)
            file.truncate()
            file.write(damaged)
            file.flush()
            try:
                repr(safe_pickle.load(io.BytesIO(damaged), name="batch"))
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 300
                counts["refused"] += 1
            else:
                counts["read"] += 1
    counts["kilobytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(json.dumps(counts))


def test_mutated_batches_are_read_or_refused(tmp_path):
    code = "import sys; from pathlib import Path; from tests.robustness.test_data_pickles import fuzz\n"
    code += "fuzz(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
    last = tmp_path / "last.pkl"
    run = run_python(code, CASES, SEED, last)
    assert run.returncode == 0, f"{last.read_bytes()!r}\n{run.stderr[-2000:]}"
    counts = json.loads(run.stdout)
    assert counts["read"] + counts["refused"] == CASES
    assert counts["read"] > CASES / 100 and counts["refused"] > CASES / 10
    assert counts["kilobytes"] < 64 * 1024
