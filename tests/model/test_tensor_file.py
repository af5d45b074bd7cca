"""Safetensors files: equal to the library's, and damage of every kind named in one line."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from fourbee.foundation.errors import ModelFileError
from fourbee.model.tensor_file import read_header, write_tensors

from .conftest import message

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "brain": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 4),
    "bytes": np.array([-128, 127], dtype=np.int8),
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False]),
}


def file_of(tmp_path, header, data: bytes = b"") -> object:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_files_of_the_safetensors_library_are_read_bit_for_bit(tmp_path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    stored = read_header(path)
    assert stored.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        read = stored[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_the_safetensors_library_reads_our_files(tmp_path) -> None:
    path = tmp_path / "ours.safetensors"
    layout = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
    write_tensors(path, layout, ARRAYS.items())
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert file.get_tensor(name).tobytes() == array.tobytes()
    assert list(read_header(path)) == list(ARRAYS)


def test_a_file_cut_anywhere_is_not_whole(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    whole = save({"weight": np.ones((4, 4), dtype=np.float32)})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        text = message(read_header, path)
        assert text.startswith(f"{path}: not a whole safetensors file: {length} bytes, expected ")
    path.write_bytes(whole[:-10])
    assert message(read_header, path) == (
        f"{path}: not a whole safetensors file: {len(whole) - 10} bytes, expected {len(whole)}"
    )
    path.write_bytes(whole + b"x")
    assert message(read_header, path) == (
        f"{path}: not a whole safetensors file: {len(whole) + 1} bytes, expected {len(whole)}"
    )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"{]", "damaged safetensors file: its header is not JSON"),
        (b"\xff\xfe", "damaged safetensors file: its header is not JSON"),
        ([], "damaged safetensors file: its header is not an object"),
        ({"a": 1}, "damaged safetensors file: 'a' is malformed"),
        ({"a": entry(dtype=["F32"])}, "damaged safetensors file: 'a' is malformed"),
        ({"a": entry(shape=(-2,))}, "damaged safetensors file: 'a' is malformed"),
        ({"a": entry(shape=(2.0,))}, "damaged safetensors file: 'a' is malformed"),
        ({"a": entry(offsets=(0,))}, "damaged safetensors file: 'a' is malformed"),
        (
            {"a": entry(dtype="F8_E5M2")},
            "a is F8_E5M2; expected one of F64, F32, F16, BF16, F8_E4M3, I64, I32, I16, I8, U8, "
            "BOOL",
        ),
        (
            {"a": entry(shape=(3,))},
            "damaged safetensors file: a has 8 bytes, expected 12 for F32 [3]",
        ),
        (
            {"a": entry(shape=(2**62, 2**62))},
            "damaged safetensors file: a has 8 bytes, expected "
            f"{2**126} for F32 [{2**62}, {2**62}]",
        ),
        (
            {"a": entry(), "b": entry()},
            "damaged safetensors file: b begins at byte 130, expected 138",
        ),
        (
            b'{"a": 1, "a": 2}',
            "damaged safetensors file: 'a' is in its header twice",
        ),
    ],
)
def test_a_damaged_header_is_named(tmp_path, header, expected) -> None:
    path = file_of(tmp_path, header, bytes(8))
    assert message(read_header, path) == f"{path}: {expected}"


def test_a_git_lfs_pointer_is_recognised(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n")
    assert message(read_header, path) == (
        f"{path}: a Git LFS pointer; expected the file: run `git lfs pull`"
    )


def test_a_missing_file_is_named(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    assert message(read_header, path) == f"{path}: cannot be read: No such file or directory"


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.ones(64, dtype=np.float32)}, path)
    tensor = read_header(path)["weight"]
    path.write_bytes(path.read_bytes()[:-4])
    assert message(tensor.read) == f"{path}: ended while it was read; expected it not to change"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_but_our_error(tmp_path_factory, data) -> None:
    whole = bytearray(save({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.int8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(whole)
    try:
        stored = read_header(path)
    except ModelFileError:
        return
    for tensor in stored.values():
        assert tensor.read().shape == tensor.shape
