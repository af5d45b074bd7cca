"""One safetensors file: its header, checked; its tensors, read and written one at a time.

The format: 8 bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and the
tensors' bytes one after another. Read with plain `read` into fresh arrays: a file that shrinks is
an error and not a crash, and memory holds one tensor at a time; packed matrices alone are mapped.
Runs no code, trusts no number. It knows nothing of models: `checkpoint_files.py` does.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fourbee.foundation.errors import ModelFileError

NumpyArray = npt.NDArray[Any]

# The element types that checkpoints hold, by their names in the header.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Larger headers are refused, as the safetensors library does.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `size` bytes from `offset` of the file at `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def read(self) -> NumpyArray:
        """A fresh array of this shape and type."""
        raw = np.empty(self.size, dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            fill(raw, file, self.path)
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)

    def map(self) -> NumpyArray:
        """The same array over a read-only map of the file, which must then not be changed."""
        mapped = np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)
        return mapped.view(np.ndarray)


def fill(raw: npt.NDArray[np.uint8], file: RawIOBase, path: Path) -> None:
    """Reads as many bytes as `raw` has; ModelFileError when the file has become shorter."""
    filled = 0
    # One system call reads at most 2 GiB.
    while filled < raw.size and (count := file.readinto(raw[filled:].data)):
        filled += count
    if filled < raw.size:
        raise ModelFileError(f"{path}: ended while it was read; expected it not to change")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name, in file order; ModelFileError for a damaged file."""
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), file_size)
            header = _parse(path, file.read(length))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _stored(path, start, name, entry) for name, entry in header.items()}
    _check_coverage(path, start, file_size, tensors)
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def write_tensors(
    path: Path,
    layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    arrays: Iterable[tuple[str, NumpyArray]],
) -> None:
    """Writes a file of exactly `layout` (name to type and shape), and waits until it is on disk.

    `arrays` yields the tensors in the layout's order, so that only one need be in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # tensors begin at a cache line
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, array), (wanted, form) in zip(arrays, layout.items(), strict=True):
            assert (name, array.dtype, array.shape) == (wanted, *form)
            file.write(np.ascontiguousarray(array).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _header_length(path: Path, first: bytes, file_size: int) -> int:
    if first == b"version ":
        raise ModelFileError(f"{path}: a Git LFS pointer; expected the file: run `git lfs pull`")
    length = int.from_bytes(first, "little")
    if file_size < 8 + length or length > _MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path}: not a whole safetensors file: {file_size} bytes, "
            f"expected at least {8 + length}"
        )
    return length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (ValueError, RecursionError):
        raise ModelFileError(f"{path}: damaged safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: damaged safetensors file: its header is not an object")
    return header


def _unique(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelFileError(f"{path}: damaged safetensors file: {twice!r} is in its header twice")
    return table


def _stored(path: Path, start: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        well_formed = isinstance(dtype, str) and all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        )
    except (TypeError, KeyError, ValueError):
        well_formed = False
    if not well_formed:
        raise ModelFileError(f"{path}: damaged safetensors file: {name!r} is malformed")
    if dtype not in DTYPES:
        raise ModelFileError(f"{path}: {name} is {dtype}; expected one of {', '.join(DTYPES)}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise ModelFileError(
            f"{path}: damaged safetensors file: {name} has {end - begin} bytes, "
            f"expected {expected} for {dtype} {list(shape)}"
        )
    return StoredTensor(path, dtype, shape, start + begin, expected)


def _check_coverage(
    path: Path, start: int, file_size: int, tensors: Mapping[str, StoredTensor]
) -> None:
    """Tensors follow one another without gap or overlap and end where the file ends."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        # An empty tensor may share its offset with the one after it, in either order.
        if tensor.size and tensor.offset != end:
            raise ModelFileError(
                f"{path}: damaged safetensors file: {name} begins at byte {tensor.offset}, "
                f"expected {end}"
            )
        end += tensor.size
    if end != file_size:
        raise ModelFileError(
            f"{path}: not a whole safetensors file: {file_size} bytes, expected {end}"
        )
