"""Writes one GGUF file, version 3: metadata and tensors, streamed, whole or not at all.

The bytes go to a file beside the target, which takes the target's name when all of it is on the
disk; one tensor's part is in memory at a time. It knows nothing of models (`gguf_export.py`) or of
how values become bytes (`gguf_quants.py`). What it writes `gguf_file.py` reads.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.model.gguf_file import SUFFIX
from fourbee.model.gguf_types import TYPES
from fourbee.model.hub import refuse_full_disk
from fourbee.model.tensor_file import NumpyArray

_ALIGNMENT = 32  # the format's default
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its name in the file, its type's number, its shape, rows first."""

    name: str
    type: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes, without what aligns the next one."""
        kind = TYPES[self.type]
        return math.prod(self.shape) // kind.block_values * kind.block_bytes


def check_target(target: Path) -> None:
    """UsageError unless a GGUF file can come to be there and nothing is there yet."""
    if target.suffix.lower() != SUFFIX:
        raise UsageError(f"{target}: expected a file name that ends in {SUFFIX}", "output")
    if target.exists():
        raise UsageError(f"{target}: exists; expected the name of a new file", "output")


def write_gguf(
    target: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[PlannedTensor],
    data: Callable[[PlannedTensor], Iterable[NumpyArray]],
) -> int:
    """Writes the file and returns its size; `data` gives a tensor's bytes in parts, in order.

    Metadata: str, bool, int (32 bits, unsigned), float (32 bits), lists of str, arrays of int32.
    Raises UsageError where the target exists, CapacityError where the disk has no room for it.
    """
    check_target(target)
    header = _header(metadata, tensors)
    size = len(header) + sum(_aligned(tensor.size) for tensor in tensors)
    with _appearing(target, size) as file:
        file.write(header)
        for tensor in tensors:
            begin = file.tell()
            for part in data(tensor):
                file.write(part.data)
            assert file.tell() - begin == tensor.size, tensor.name
            file.write(bytes(_aligned(tensor.size) - tensor.size))
    return size


def _header(metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        # The fastest dimension comes first in the file; in NumPy, last.
        form = f"<I{len(tensor.shape)}QIQ"
        numbers = (len(tensor.shape), *reversed(tensor.shape), tensor.type, offset)
        parts += [_string(tensor.name), struct.pack(form, *numbers)]
        offset += _aligned(tensor.size)
    header = b"".join(parts)
    return header + bytes(_aligned(len(header)) - len(header))


def _value(value: Any) -> bytes:
    """A value behind its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        numbers = value.astype("<i4").tobytes()
        return struct.pack("<IIQ", _ARRAY, _INT32, len(value)) + numbers
    strings = b"".join(map(_string, value))
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + strings


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@contextlib.contextmanager
def _appearing(target: Path, size: int) -> Iterator[BinaryIO]:
    """A file beside the target that takes its place when it is whole; else nothing is left."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_full_disk(target, size)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ModelFileError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, where the system lets one ask for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
