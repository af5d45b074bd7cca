"""One GGUF file, version 2 or 3: its metadata and where its tensors lie, all of it checked.

The format, little-endian: magic, version, two counts; keys with typed values; names, dimensions,
types and offsets of the tensors; then, aligned, their bytes. Read with plain `read`, one tensor at
a time, as `tensor_file.py` does. Trusts no number: nothing is allocated that the file has no bytes
for. It knows nothing of models (`gguf_checkpoint.py`) or of vocabularies.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from fourbee.foundation.errors import ModelFileError
from fourbee.model.gguf_types import OTHER_TYPES, TYPES, TensorType
from fourbee.model.tensor_file import NumpyArray, fill

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Value types: numbers by their form, the others by name.
_NUMBERS: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(form)
    for number, form in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
        6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
# The least bytes of a metadata entry, of a tensor's entry, of a string and of an array.
_LEAST_ENTRY, _LEAST_TENSOR, _LEAST_STRING, _LEAST_ARRAY = 13, 24, 8, 12
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 256
# All before the tensors; Qwen's vocabulary takes 6 MB.
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies: `size` bytes from `offset`. The shape is NumPy's, rows first."""

    path: Path
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int

    def read(self) -> NumpyArray:
        """A fresh array: of the file's float type, or float32 where it is quantised.

        Chunk by chunk, so that little more than the result is in memory.
        """
        kind = self.type
        values = np.empty(math.prod(self.shape), dtype=kind.dtype)
        step = max(1, _CHUNK_BYTES // kind.block_bytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            for first in range(0, self.size // kind.block_bytes, step):
                count = min(step, self.size // kind.block_bytes - first)
                raw = np.empty(count * kind.block_bytes, dtype=np.uint8)
                fill(raw, file, self.path)
                begin = first * kind.block_values
                values[begin : begin + count * kind.block_values] = kind.values(raw)
        return values.reshape(self.shape)

    def raw_rows(self, first: int, end: int) -> NumpyArray:
        """The bytes of some rows of a matrix, one after the other as in the file."""
        row = self.size // self.shape[0]
        raw = np.empty((end - first) * row, dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + first * row)
            fill(raw, file, self.path)
        return raw


def is_gguf(path: Path) -> bool:
    """Whether a path is named as a GGUF file is; a folder may be called anything."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself, and its tensors by name, in the order of their bytes.

    Metadata: strings, bools, ints and floats; arrays of numbers are NumPy's, others are lists.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """The file without its tensors' bytes; ModelFileError in one line for a damaged one."""
    try:
        with path.open("rb") as file:
            reader = _Reader(path, file, os.fstat(file.fileno()).st_size)
            num_tensors, num_keys = _counts(reader)
            metadata = _metadata(reader, num_keys)
            entries = [_tensor_entry(reader, index) for index in range(num_tensors)]
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    return GgufFile(path, metadata, _placed(reader, _alignment(reader, metadata), entries))


class _Reader:
    """Reads the header in order, and never more than the file has."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._file = file

    def damaged(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: damaged GGUF file: {problem}")

    def need(self, size: int, what: str) -> None:
        """ModelFileError unless so many bytes are left."""
        left = self.size - self.position
        if size > left:
            raise ModelFileError(
                f"{self.path}: not a whole GGUF file: {what} needs {size} bytes, {left} are left"
            )
        if self.position + size > _MAX_HEADER_BYTES:
            self.damaged(f"{what} ends beyond the {_MAX_HEADER_BYTES} bytes that a header may have")

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        data = self._file.read(size)
        if len(data) < size:
            raise ModelFileError(f"{self.path}: ended while it was read; expected it not to change")
        self.position += size
        return data

    def word(self, what: str) -> int:
        """An unsigned number of 32 bits."""
        return int.from_bytes(self.take(4, what), "little")

    def long(self, what: str) -> int:
        """An unsigned number of 64 bits."""
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        data = self.take(self.long(what), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.damaged(f"{what} is not UTF-8")

    def name(self, what: str) -> str:
        """A short printable string: it stands in messages."""
        length = self.long(what)
        self.need(length, what)
        if not 0 < length <= _MAX_NAME_BYTES:
            self.damaged(f"{what} has {length} bytes, expected from 1 to {_MAX_NAME_BYTES}")
        try:
            name = self.take(length, what).decode()
        except UnicodeDecodeError:
            self.damaged(f"{what} is not UTF-8")
        if not name.isprintable():
            self.damaged(f"{what} is {name!r}, expected printable characters")
        return name


def _counts(reader: _Reader) -> tuple[int, int]:
    """How many tensors and how many keys the file has."""
    magic = reader.take(4, "its magic")
    if magic == b"vers":
        raise ModelFileError(
            f"{reader.path}: a Git LFS pointer; expected the file: run `git lfs pull`"
        )
    if magic != _MAGIC:
        raise ModelFileError(f"{reader.path}: not a GGUF file: begins with {magic!r}")
    version = reader.word("its version")
    if version not in _VERSIONS:
        big = version & 0xFFFF == 0  # the bytes the other way round
        found = "a big-endian GGUF file" if big else f"GGUF version {version}"
        raise ModelFileError(f"{reader.path}: {found}; expected version 2 or 3, little-endian")
    num_tensors, num_keys = reader.long("its counts"), reader.long("its counts")
    reader.need(num_keys * _LEAST_ENTRY, f"metadata of {num_keys} keys")
    reader.need(num_tensors * _LEAST_TENSOR, f"a list of {num_tensors} tensors")
    return num_tensors, num_keys


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = reader.name(f"metadata key {index}")
        if key in metadata:
            reader.damaged(f"{key} is in its metadata twice")
        metadata[key] = _value(reader, reader.word(key), key)
    return metadata


def _value(reader: _Reader, kind: int, key: str) -> Any:
    if kind == _STRING:
        return reader.string(key)
    if kind == _ARRAY:
        return _array(reader, key, depth=1)
    if kind not in _NUMBERS and kind != _BOOL:
        reader.damaged(f"{key} has the unknown value type {kind}")
    value = _numbers(reader, kind, 1, key)[0]
    if kind == 6:
        # The shortest decimal of these 32 bits, as people write it: 1e-06 and not 9.99999997e-07.
        return float(str(value))
    return value.item()


def _array(reader: _Reader, key: str, depth: int) -> Any:
    kind, count = reader.word(key), reader.long(key)
    if kind in _NUMBERS or kind == _BOOL:
        return _numbers(reader, kind, count, key)
    if kind == _STRING:
        reader.need(count * _LEAST_STRING, key)
        return [reader.string(key) for _ in range(count)]
    if kind != _ARRAY:
        reader.damaged(f"{key} has the unknown value type {kind}")
    if depth == _MAX_DEPTH:
        reader.damaged(f"{key} has arrays in arrays deeper than {_MAX_DEPTH}")
    reader.need(count * _LEAST_ARRAY, key)
    return [_array(reader, key, depth + 1) for _ in range(count)]


def _numbers(reader: _Reader, kind: int, count: int, key: str) -> NumpyArray:
    if kind == _BOOL:
        flags = np.frombuffer(reader.take(count, key), dtype=np.uint8)
        if np.any(flags > 1):
            reader.damaged(f"{key} has a bool of {flags.max()}, expected 0 or 1")
        return flags.astype(np.bool_)
    form = _NUMBERS[kind]
    return np.frombuffer(reader.take(count * form.itemsize, key), dtype=form)


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header has it: its offset counts from where all tensors begin."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int


def _tensor_entry(reader: _Reader, index: int) -> _Entry:
    name = reader.name(f"the name of tensor {index}")
    count = reader.word(name)
    if count > _MAX_DIMENSIONS:
        reader.damaged(f"{name} has {count} dimensions, expected at most {_MAX_DIMENSIONS}")
    # The fastest dimension comes first in the file; in NumPy, last.
    dimensions = struct.unpack(f"<{count}Q", reader.take(8 * count, name))
    shape = tuple(reversed(dimensions))
    number, offset = reader.word(name), reader.long(name)
    if number not in TYPES:
        raise ModelFileError(
            f"{reader.path}: {name} is {OTHER_TYPES.get(number, f'of type {number}')}; "
            f"expected one of {', '.join(kind.name for kind in TYPES.values())}"
        )
    kind = TYPES[number]
    if 0 in shape or (math.prod(shape[-1:]) % kind.block_values):
        reader.damaged(
            f"{name} is {list(shape)}, expected rows of whole {kind.name} blocks, "
            f"{kind.block_values} values each"
        )
    return _Entry(
        name, kind, shape, offset, math.prod(shape) // kind.block_values * kind.block_bytes
    )


def _alignment(reader: _Reader, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    # A power of two has one bit.
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        reader.damaged("general.alignment is not a power of two")
    return int(alignment)


def _placed(reader: _Reader, alignment: int, entries: list[_Entry]) -> dict[str, GgufTensor]:
    """The tensors where they lie in the file: aligned, inside of it, without overlap."""
    start = -(-reader.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.name in tensors:
            reader.damaged(f"{entry.name} is in its list of tensors twice")
        if entry.offset % alignment:
            reader.damaged(
                f"{entry.name} begins at byte {entry.offset} of the tensors, "
                f"expected a multiple of {alignment}"
            )
        if entry.offset < end:
            reader.damaged(
                f"{entry.name} begins at byte {entry.offset} of the tensors, "
                f"inside of the one before, which ends at {end}"
            )
        end = entry.offset + entry.size
        if start + end > reader.size:
            raise ModelFileError(
                f"{reader.path}: not a whole GGUF file: {entry.name} ends at byte {start + end}, "
                f"the file at {reader.size}"
            )
        tensors[entry.name] = GgufTensor(
            reader.path, entry.type, entry.shape, start + entry.offset, entry.size
        )
    return tensors
