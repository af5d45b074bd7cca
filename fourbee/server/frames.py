"""Frames: frozen dataclasses between two processes, as msgpack with their length before them.

A dataclass becomes a list of its name and its fields' values in order, whatever fields it has; what
is read is checked against the fields' types. Never pickle: reading a frame makes the dataclasses
that are expected and nothing else. Not here: which messages there are (`engine_messages.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack

from fourbee.foundation.errors import FourbeeError, UsageError

Reader = Callable[[Any], Any]

# The largest are scored prompts: 262,144 tokens with 20 alternatives each take 90 MB.
MAX_FRAME_BYTES = 2**30

_LENGTH = struct.Struct("!I")
# JSON may bring halves of surrogate pairs; they are text to us as they were before.
_UNICODE = "surrogatepass"
# A whole number is good for a float.
_PLAIN: Mapping[Any, tuple[type, ...]] = {
    str: (str,), bytes: (bytes,), bool: (bool,), int: (int,), float: (float, int),
    NoneType: (NoneType,),
}  # fmt: skip


class FrameError(FourbeeError):
    """What came is none of the frames that may come."""


def encode(message: object) -> bytes:
    """A dataclass as a frame. FrameError for one that is too long to be sent."""
    body: bytes = msgpack.packb(message, default=_listed, unicode_errors=_UNICODE)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes: expected at most {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes, kind: Any) -> Any:
    """What a frame without its length holds: a `kind`, which may be a union. FrameError."""
    try:
        value = msgpack.unpackb(body, use_list=False, unicode_errors=_UNICODE)
        return _reader(kind)(value)
    except (ValueError, TypeError, UsageError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"a frame that is not right: {error}") from None


class FrameSplitter:
    """Messages of a `kind` from a stream of bytes, cut anywhere."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole now. FrameError when one is not right; feed no more then."""
        self._bytes += data
        messages: list[Any] = []
        begin = 0
        while len(self._bytes) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, begin)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes: expected at most {MAX_FRAME_BYTES}")
            body = begin + _LENGTH.size
            if len(self._bytes) - body < length:
                break
            begin = body + length
            messages.append(decode(bytes(memoryview(self._bytes)[body:begin]), self._kind))
        del self._bytes[:begin]
        return messages


def _listed(value: object) -> list[Any]:
    """What msgpack does not know: a dataclass, or a whole number of more than 64 bits."""
    if isinstance(value, int):
        return ["int", hex(value)]
    kind: Any = type(value)
    return [kind.__name__, *[getattr(value, name) for name in _names(kind)]]


@cache
def _names(kind: Any) -> tuple[str, ...]:
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__}: frames carry dataclasses of plain data only")
    return tuple(field.name for field in fields(kind))


@cache
def _reader(hint: Any) -> Reader:
    """Checks a value that msgpack has read against a type, and makes its dataclasses."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is int:
        return _whole
    if hint in _PLAIN:
        return _plain_reader(_PLAIN[hint])
    if origin is Literal:
        return _literal_reader(arguments)
    if origin in (Union, UnionType):
        return _union_reader(arguments)
    if origin is tuple:
        return _list_reader(*arguments[:-1]) if arguments[-1] is ... else _tuple_reader(arguments)
    return _dataclass_reader(hint)


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is tuple and len(value) == 2 and value[0] == "int" and type(value[1]) is str:
        return int(value[1], 16)
    raise _wrong(value, "int")


def _plain_reader(types: tuple[type, ...]) -> Reader:
    def read(value: Any) -> Any:
        if type(value) not in types:
            raise _wrong(value, types[0].__name__)
        return value

    return read


def _literal_reader(values: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if value not in values:
            raise _wrong(value, f"one of {values}")
        return value

    return read


def _list_reader(kind: Any) -> Reader:
    """Of `tuple[kind, ...]`; prompts are long, so that plain values are checked all at once."""
    read_one, types = _reader(kind), set(_PLAIN.get(kind, ()))

    def read(value: Any) -> Any:
        if type(value) is not tuple:
            raise _wrong(value, "a list")
        if set(map(type, value)) <= types:
            return value
        return tuple(map(read_one, value))

    return read


def _tuple_reader(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(readers):
            raise _wrong(value, f"a list of {len(readers)}")
        return tuple(read_one(one) for read_one, one in zip(readers, value, strict=True))

    return read


def _union_reader(kinds: tuple[Any, ...]) -> Reader:
    classes: list[Any] = [kind for kind in kinds if is_dataclass(kind)]
    named = {kind.__name__: _reader(kind) for kind in classes}
    others = [_reader(kind) for kind in kinds if kind not in classes]

    def read(value: Any) -> Any:
        if type(value) is tuple and value and type(value[0]) is str and value[0] in named:
            return named[value[0]](value)
        for read_one in others:
            try:
                return read_one(value)
            except ValueError:
                continue
        raise _wrong(value, " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds))

    return read


def _dataclass_reader(kind: Any) -> Reader:
    names, hints = _names(kind), get_type_hints(kind)
    readers = [_reader(hints[name]) for name in names]

    def read(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(names) + 1 or value[0] != kind.__name__:
            raise _wrong(value, kind.__name__)
        return kind(*[read_one(one) for read_one, one in zip(readers, value[1:], strict=True)])

    return read


def _wrong(value: Any, expected: str) -> ValueError:
    found = value[0] if type(value) is tuple and value else value
    return ValueError(f"{type(value).__name__} {found!r:.60}: expected {expected}")
