"""GGUF files byte by byte, whole or damaged: what no proper writer would write."""

import struct
from collections.abc import Sequence
from typing import Any


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key with a value of a type, the value as it lies in the file."""
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return entry(key, 4, struct.pack("<I", value))


def string(key: str, value: str | bytes) -> bytes:
    return entry(key, 8, text(value))


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: str | bytes, dimensions: Sequence[int] = (2,), kind: int = 0, offset: int = 0
) -> bytes:
    """An entry in the list of tensors; the fastest dimension first."""
    form = f"<I{len(dimensions)}QIQ"
    return text(name) + struct.pack(form, len(dimensions), *dimensions, kind, offset)


def head(num_tensors: int, num_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def gguf(
    entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", **given: Any
) -> bytes:
    """A file; its data begin at a multiple of 32."""
    front = head(len(tensors), len(entries), **given) + b"".join([*entries, *tensors])
    return front + bytes(-len(front) % 32) + data
