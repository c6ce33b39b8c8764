import io
import pickle
import shutil

import numpy
import pytest

from data import safe_pickle
from utils.errors import UserError

CONTENT = {
    b"data": numpy.arange(12, dtype=numpy.uint8).reshape(3, 4),
    "labels": [1, 2.5, None, True, (3, {4}), -70000, 2**40, -(2**40)],
    "scalar": numpy.float32(1.5),
    "bytes": b"\x00\xff",
    "nothing": (b"", "", [], {}, ()),
    "text": "na\u00efve \u6771\n\\",
}


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_content_is_read(tmp_path, protocol):
    (tmp_path / "batch").write_bytes(pickle.dumps(CONTENT, protocol))
    read = safe_pickle.load(tmp_path / "batch")
    assert numpy.array_equal(read.pop(b"data"), CONTENT[b"data"])
    assert read == {key: value for key, value in CONTENT.items() if key != b"data"}
    assert type(read["scalar"]) is numpy.float32


ARRAYS = [
    numpy.arange(24).astype(code).reshape(2, 3, 4) for code in ("u1", "i2", ">i4", "i8", "f4", ">f8", "?")
]
ARRAYS += [numpy.asfortranarray(ARRAYS[1]), ARRAYS[1].transpose(1, 0, 2), ARRAYS[1][:, ::2]]
ARRAYS += [numpy.empty((0, 3), "u1"), numpy.array(5, "i4")]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", [b"numpy._core.", b"numpy.core."])
def test_arrays_are_read(array, protocol, module):
    content = pickle.dumps(array, protocol)
    if protocol < 4:  # the names of numpy 1; later protocols store their lengths
        content = content.replace(b"numpy._core.", module)
    read = safe_pickle.load(io.BytesIO(content))
    assert read.dtype == array.dtype.newbyteorder("=")
    assert numpy.array_equal(read, array)


def test_an_object_that_occurs_twice_is_read_twice():
    labels, array = [1, 2], numpy.arange(3)
    read = safe_pickle.load(io.BytesIO(pickle.dumps([labels, labels, array, array, {"labels": labels}])))
    assert read[:2] == [labels, labels] and read[4] == {"labels": labels}
    assert numpy.array_equal(read[2], array) and numpy.array_equal(read[3], array)


# What Python 2 writes for {"data": an array, "labels": [7L, "caf\xe9"]}.
PYTHON_2 = {
    0: b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\n"
    b"p2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\n"
    b"tp6\nRp7\n(I1\n(I2\nI3\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\n"
    b"NNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\xfa\\xfb\\xfc\\xfd\\xfe\\xff'\np15\ntp16\nbsS'labels'\np17\n"
    b"(lp18\nL7L\naS'caf\\xe9'\np19\nas.",
    2: b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    b"K\x00\x85U\x01b\x87Rq\x05(K\x01\x8a\x01\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\xfa\xfb\xfc\xfd\xfe\xfftb"
    b"U\x06labelsq\x08]q\x09(\x8a\x01\x07U\x04caf\xe9eu.",
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_pickles_of_python_2_are_read(protocol):
    read = safe_pickle.load(io.BytesIO(PYTHON_2[protocol]))
    assert read[b"data"].tolist() == [[250, 251, 252], [253, 254, 255]]
    assert read[b"labels"] == [7, b"caf\xe9"]


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
    with pytest.raises(UserError, match="batch is not a readable pickle of arrays"):
        safe_pickle.load(io.BytesIO(content), name="batch")
