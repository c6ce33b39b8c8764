import io
import pickle
import shutil

import numpy
import pytest

from data import safe_pickle
from utils.errors import UserError


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_read(tmp_path, protocol):
    content = {
        b"data": numpy.arange(12, dtype=numpy.uint8).reshape(3, 4),
        "labels": [1, 2.5, None, True, (3, {4})],
        "scalar": numpy.float32(1.5),
        "bytes": b"\x00\xff",
    }
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol))
    read = safe_pickle.load(tmp_path / "batch")
    assert numpy.array_equal(read.pop(b"data"), content.pop(b"data"))
    assert read == content


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
