"""Pickled arrays, as CIFAR and ImageNet-32 are distributed, read without running code that they may hold.

An interpreter for the few opcodes that such files use. Neither Python's unpickler nor numpy's `__setstate__`
sees the file, because both can be made to crash or to exhaust the memory. Constructors become inert
placeholders; arrays are rebuilt afterwards from bytes, shape and one of a few types.
"""

import codecs
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from utils.errors import UserError

_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_BYTE_ORDERS = ("<", ">", "=", "|")
_BUILTINS = ("set", "frozenset", "bytes", "bytearray", "complex")

# Enough for labels and counts. Printing longer integers takes quadratic time.
_MAX_INTEGER_BYTES = 16
_MAX_LINE = 1000
# Real files nest three containers.
_MAX_DEPTH = 100
# One byte of a file can make a container of 216 bytes. ImageNet-32 in a single file has 1.3 million labels,
# each of them a container if it is a numpy scalar.
_MAX_CONTAINERS = 1 << 22

# What the interpreter's own operations raise on malformed operands.
_MALFORMED = (
    *(LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error),
)

_MARK = object()


@dataclass(frozen=True)
class _Global:
    """A placeholder for one of the admitted constructors."""

    name: str


@dataclass
class _Dtype:
    code: str
    byte_order: str = "<"


@dataclass
class _Array:
    """An array, or a scalar if `shape` is None, that is rebuilt once the file is read."""

    content: bytes = b""
    dtype: _Dtype | None = None
    shape: tuple[int, ...] | None = ()
    order: str = "C"
    axes: tuple[int, ...] | None = None

    @property
    def is_native(self) -> bool:
        """Whether the array needs no copy in this machine's byte order."""
        return self.dtype is None or self._numpy_dtype().isnative

    def _numpy_dtype(self) -> numpy.dtype:
        return numpy.dtype(self.dtype.byte_order + self.dtype.code)

    def rebuilt(self) -> Any:
        if self.dtype is None:
            raise pickle.UnpicklingError("it holds an array without content")
        dtype = self._numpy_dtype()
        count = 1 if self.shape is None else math.prod(self.shape)
        if count * dtype.itemsize != len(self.content):
            raise pickle.UnpicklingError(
                f"it holds an array of {count} × {dtype.itemsize} bytes in {len(self.content)} bytes"
            )
        flat = numpy.frombuffer(self.content, dtype=dtype) if count else numpy.empty(0, dtype)
        # Native byte order, which torch needs.
        flat = flat.astype(dtype.newbyteorder("="), copy=False)
        if self.shape is None:
            return flat[0]
        if self.axes is not None:
            return flat.reshape(self.shape).transpose(self.axes)
        return flat.reshape(self.shape, order=self.order)


def _global(module: str, name: str) -> _Global:
    """The placeholder of a constructor under the module names of Python 2 and 3, numpy 1 and 2."""
    if module in ("builtins", "__builtin__") and name in _BUILTINS:
        return _Global(name)
    if (module, name) in (("collections", "OrderedDict"), ("_codecs", "encode")):
        return _Global(name)
    if module == "numpy" and name in ("ndarray", "dtype"):
        return _Global(name)
    inner = module.removeprefix("numpy.").removeprefix("_") if module.startswith("numpy.") else ""
    if inner in ("core.multiarray", "core.numeric") and name in ("_reconstruct", "_frombuffer", "scalar"):
        return _Global(name)
    raise pickle.UnpicklingError(f"it names {_shown(module)}.{_shown(name)}, which is refused")


class _Reader:
    """Interprets one pickle.

    Args:
        content: the file's bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0
        # Elements that constructors may still copy. Without a limit, a small file could have one string
        # encoded, or one list copied, thousands of times.
        self._copies_left = len(content) + 1024

    def load(self) -> Any:
        content, handlers = self._content, _HANDLERS
        while True:
            code = content[self.position]
            self.position += 1
            if code == pickle.STOP[0]:
                break
            handler = handlers.get(code)
            if handler is None:
                raise pickle.UnpicklingError(f"it holds the opcode {bytes([code])!r}, which is refused")
            handler(self)
        root = self._pop()
        if self._stack:
            raise pickle.UnpicklingError("it ends too early")
        return _Rebuilder(len(content) + 1024).rebuilt(root)

    # Reading the file.

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self._content):
            raise pickle.UnpicklingError("it is truncated")
        taken = self._content[self.position : end]
        self.position = end
        return taken

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return number

    def _counted(self, layout: str) -> bytes:
        return self._take(self._number(layout))

    def _line(self, longest: int = _MAX_LINE) -> bytes:
        end = self._content.find(b"\n", self.position)
        if end < 0 or end - self.position > longest:
            raise pickle.UnpicklingError("it is truncated, or a number or name is too long")
        line = self._content[self.position : end]
        self.position = end + 1
        return line

    def _integer(self, content: bytes) -> int:
        if len(content) > _MAX_INTEGER_BYTES:
            raise pickle.UnpicklingError(f"it holds an integer of {len(content)} bytes")
        return int.from_bytes(content, "little", signed=True)

    def _integer_line(self) -> int:
        return int(self._line(3 * _MAX_INTEGER_BYTES).removesuffix(b"L"))

    # The stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise pickle.UnpicklingError("an operand is missing")
        return value

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise pickle.UnpicklingError(f"an opcode needs a {kind.__name__}")
        return value

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise pickle.UnpicklingError("a mark is missing")
        values = stack[start + 1 :]
        del stack[start:]
        return values

    def _push_container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise pickle.UnpicklingError(f"it holds more than {_MAX_CONTAINERS} containers")
        self._stack.append(value)

    # Opcodes.

    def _proto(self) -> None:
        protocol = self._take(1)[0]
        if protocol > 5:
            raise pickle.UnpicklingError(f"its protocol {protocol} is unknown")

    def _frame(self) -> None:
        if self._number("<Q") > len(self._content) - self.position:
            raise pickle.UnpicklingError("it is truncated")

    def _int(self) -> None:
        line = self._line(3 * _MAX_INTEGER_BYTES)
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _string(self) -> None:
        line = self._line(len(self._content))
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise pickle.UnpicklingError("it holds a string without quotes")
        # Python 2 escaped every backslash and every byte that is not printable.
        self._push(codecs.escape_decode(line[1:-1])[0])

    def _unicode(self) -> None:
        self._push(str(self._line(len(self._content)), "raw-unicode-escape"))

    def _push_text(self, layout: str) -> None:
        self._push(str(self._counted(layout), "utf-8", "surrogatepass"))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]
        if self._stack[-1] is _MARK:
            raise pickle.UnpicklingError("an operand is missing")

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise pickle.UnpicklingError("a dictionary lacks a value")
        self._top(dict).update(zip(map(_hashable, values[::2]), values[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        values = self._since_mark()
        self._push_container({})
        self._set_items(values)

    def _add_items(self) -> None:
        values = self._since_mark()
        self._top(set).update(map(_hashable, values))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push_container(tuple(reversed(values)))

    def _global(self) -> None:
        module, name = (self._line().decode() for _ in range(2))
        self._push(_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("a constructor's name is not a string")
        self._push(_global(module, name))

    def _reduce(self) -> None:
        arguments, constructor = self._pop(), self._pop()
        if type(arguments) is not tuple or type(constructor) is not _Global:
            raise pickle.UnpicklingError("a constructor is called in an unknown way")
        self._push_container(self._constructed(constructor.name, arguments))

    def _constructed(self, name: str, arguments: tuple) -> Any:
        match name, arguments:
            case ("encode", (str(text),) | (str(text), "latin1" | "latin-1" | b"latin1" | b"latin-1")):
                return self._copy(text).encode("latin-1")
            case "encode", _:
                raise pickle.UnpicklingError("it holds text in an encoding that is refused")
            case ("bytes" | "bytearray", ()):
                return b""
            case "bytearray", (bytes(content),):
                return self._copy(content)
            case "bytearray", (str(text), "latin-1" | "latin1"):
                return self._copy(text).encode("latin-1")
            case (("set" | "frozenset"), ()):
                return set() if name == "set" else frozenset()
            case (("set" | "frozenset"), (list(values),)):
                return (set if name == "set" else frozenset)(map(_hashable, self._copy(values)))
            case "complex", (float(real), float(imaginary)):
                return complex(real, imaginary)
            case "OrderedDict", ():
                return {}
            case "OrderedDict", (list(pairs),):
                return {_hashable(key): value for key, value in self._copy(pairs)}
            case "dtype", (str() | bytes() as code, *_):
                return _dtype(code)
            case "_reconstruct", (_Global("ndarray"), *_):
                return _Array()
            case "scalar", (_Dtype() as dtype, bytes(content)):
                return _Array(content, dtype, None)
            case "_frombuffer", (bytes() as content, _Dtype() as dtype, shape, order, *axes):
                return _Array(content, dtype, *_layout(shape, order, *axes))
        raise pickle.UnpicklingError(f"{name} has arguments that are refused")

    def _copy(self, value: Any) -> Any:
        self._copies_left -= len(value)
        if self._copies_left < 0:
            raise pickle.UnpicklingError("it expands to more than its size")
        return value

    def _build(self) -> None:
        state, built = self._pop(), self._stack[-1]
        match built, state:
            case _Dtype(), (int(), str() | bytes() as order, None, None, None, *_):
                built.byte_order = _text(order)
                if built.byte_order not in _BYTE_ORDERS:
                    raise pickle.UnpicklingError("it holds an array of unknown byte order")
            case _Array(), (int(), shape, _Dtype() as dtype, int(fortran), bytes() as content):
                built.shape, built.order, built.axes = _layout(shape, "F" if fortran else "C")
                built.dtype, built.content = dtype, content
            case _:
                raise pickle.UnpicklingError("it holds objects other than arrays of numbers")


def _dtype(code: str | bytes) -> _Dtype:
    text = _text(code)
    order = text[:1] if text[:1] in _BYTE_ORDERS else "="
    if text.lstrip("".join(_BYTE_ORDERS)) not in _DTYPES:
        raise pickle.UnpicklingError(f"it holds an array of type {_shown(text)}")
    return _Dtype(text[-2:], order)


def _layout(shape: Any, order: Any, axes: Any = None) -> tuple[tuple[int, ...], str, tuple[int, ...] | None]:
    """The checked shape, order and permutation of axes of an array."""
    if type(shape) is int:
        shape = (shape,)
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError("it holds an array of unknown shape")
    if axes is not None and (type(axes) is not tuple or sorted(axes) != list(range(len(shape)))):
        raise pickle.UnpicklingError("it holds an array of unknown order")
    order = _text(order)
    if order not in ("C", "F") and not (order == "K" and axes is not None):
        raise pickle.UnpicklingError("it holds an array of unknown order")
    return shape, order, axes if order == "K" else None


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _hashable(value: Any) -> Any:
    """A dictionary's key or a set's element. The hash of a nested tuple would recurse without a limit."""
    if type(value) not in (str, bytes, int, float, bool, type(None)):
        raise pickle.UnpicklingError(f"it holds a key of type {type(value).__name__.strip('_').lower()}")
    return value


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:80]


class _Rebuilder:
    """Replaces the placeholders in what was read.

    Args:
        budget: maximum number of elements in all containers. Every reference to a container counts, so a
            small file cannot unfold into a large tree.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def rebuilt(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind is _Array:
            self._charge(0 if value.is_native else len(value.content))
            return value.rebuilt()
        if kind in (_Global, _Dtype):
            raise pickle.UnpicklingError("it holds objects other than arrays of numbers")
        if kind not in (list, dict, tuple):
            return value
        if depth > _MAX_DEPTH:
            raise pickle.UnpicklingError(f"it nests containers more than {_MAX_DEPTH} deep")
        self._charge(len(value))
        if kind is dict:
            return {key: self.rebuilt(part, depth + 1) for key, part in value.items()}
        return kind([self.rebuilt(part, depth + 1) for part in value])

    def _charge(self, amount: int) -> None:
        self._budget -= amount
        if self._budget < 0:
            raise pickle.UnpicklingError("it expands to more than its size")


def _handlers() -> dict[int, Callable[[_Reader], None]]:
    r = _Reader

    def push(read: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
        return lambda reader: reader._push(read(reader))

    def container(read: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
        return lambda reader: reader._push_container(read(reader))

    handlers = {
        pickle.PROTO: r._proto,
        pickle.FRAME: r._frame,
        pickle.MARK: push(lambda reader: _MARK),
        pickle.POP: lambda reader: reader._stack.pop(),
        pickle.POP_MARK: r._since_mark,
        pickle.DUP: push(lambda reader: reader._stack[-1]),
        pickle.NONE: push(lambda reader: None),
        pickle.NEWTRUE: push(lambda reader: True),
        pickle.NEWFALSE: push(lambda reader: False),
        pickle.INT: r._int,
        pickle.BININT: push(lambda reader: reader._number("<i")),
        pickle.BININT1: push(lambda reader: reader._number("<B")),
        pickle.BININT2: push(lambda reader: reader._number("<H")),
        pickle.LONG: push(r._integer_line),
        pickle.LONG1: push(lambda reader: reader._integer(reader._counted("<B"))),
        pickle.LONG4: push(lambda reader: reader._integer(reader._counted("<i"))),
        pickle.FLOAT: push(lambda reader: float(reader._line())),
        pickle.BINFLOAT: push(lambda reader: reader._number(">d")),
        pickle.STRING: r._string,
        pickle.BINSTRING: push(lambda reader: reader._counted("<i")),
        pickle.SHORT_BINSTRING: push(lambda reader: reader._counted("<B")),
        pickle.UNICODE: r._unicode,
        pickle.SHORT_BINUNICODE: lambda reader: reader._push_text("<B"),
        pickle.BINUNICODE: lambda reader: reader._push_text("<I"),
        pickle.BINUNICODE8: lambda reader: reader._push_text("<Q"),
        pickle.SHORT_BINBYTES: push(lambda reader: reader._counted("<B")),
        pickle.BINBYTES: push(lambda reader: reader._counted("<I")),
        pickle.BINBYTES8: push(lambda reader: reader._counted("<Q")),
        pickle.BYTEARRAY8: push(lambda reader: reader._counted("<Q")),
        pickle.EMPTY_LIST: container(lambda reader: []),
        pickle.EMPTY_TUPLE: push(lambda reader: ()),
        pickle.EMPTY_DICT: container(lambda reader: {}),
        pickle.EMPTY_SET: container(lambda reader: set()),
        pickle.LIST: container(r._since_mark),
        pickle.TUPLE: container(lambda reader: tuple(reader._since_mark())),
        pickle.FROZENSET: container(lambda reader: frozenset(map(_hashable, reader._since_mark()))),
        pickle.DICT: r._dict,
        pickle.APPEND: r._append,
        pickle.APPENDS: r._appends,
        pickle.SETITEM: r._set_item,
        pickle.SETITEMS: lambda reader: reader._set_items(reader._since_mark()),
        pickle.ADDITEMS: r._add_items,
        pickle.PUT: lambda reader: reader._put(reader._integer_line()),
        pickle.BINPUT: lambda reader: reader._put(reader._number("<B")),
        pickle.LONG_BINPUT: lambda reader: reader._put(reader._number("<I")),
        pickle.MEMOIZE: lambda reader: reader._put(len(reader._memo)),
        pickle.GET: push(lambda reader: reader._memo[reader._integer_line()]),
        pickle.BINGET: push(lambda reader: reader._memo[reader._number("<B")]),
        pickle.LONG_BINGET: push(lambda reader: reader._memo[reader._number("<I")]),
        pickle.GLOBAL: r._global,
        pickle.STACK_GLOBAL: r._stack_global,
        pickle.REDUCE: r._reduce,
        pickle.BUILD: r._build,
    }
    for count, code in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), start=1):
        handlers[code] = lambda reader, count=count: reader._tuple(count)
    return {code[0]: handler for code, handler in handlers.items()}


_HANDLERS = _handlers()


def load(file: Path | BinaryIO, *, name: str | None = None) -> Any:
    """Read a pickle of numpy arrays, numbers, strings, bytes and containers.

    Arrays are read-only. Byte arrays, and strings pickled by Python 2, are returned as bytes.

    Args:
        file: a path, or a binary stream.
        name: identifies it in error messages (default: the path).

    Raises:
        UserError: if the file is truncated, is not a pickle, names anything else, or would expand to far more
            than its size.
    """
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            return load(stream, name=name or str(file))
    name = name or "stream"
    reader = _Reader(file.read())
    try:
        return reader.load()
    except pickle.UnpicklingError as error:
        problem = str(error)
    except MemoryError:
        problem = "it does not fit into the memory"
    except _MALFORMED:
        problem = f"byte {reader.position} is malformed"
    raise UserError(f"{name} is not a readable pickle of arrays ({problem}): download it again")
