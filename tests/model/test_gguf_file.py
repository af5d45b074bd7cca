"""GGUF containers: an independent writer's are read, damage of every kind is named in one line."""

import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from fourbee.foundation.errors import ModelFileError
from fourbee.model.gguf_file import read_gguf

from .conftest import message
from .gguf_bytes import array, entry, gguf, head, number, string, tensor, text

FLOATS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "brain": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 4),
}
KNOWN = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K"
PAIR = np.array([1.5, -2], dtype="<f4").tobytes()


def write(tmp_path, data: bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def test_files_of_the_gguf_package_are_read(tmp_path) -> None:
    library = pytest.importorskip("gguf")
    path = tmp_path / "theirs.gguf"
    writer = library.GGUFWriter(path, "qwen3")
    writer.add_uint32("a.count", 7)
    writer.add_int8("a.small", -7)
    writer.add_uint64("a.large", 2**63)
    writer.add_float32("a.rate", 1e-6)
    writer.add_float64("a.double", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "Größe 中文")
    writer.add_array("a.words", ["x", "", "中"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.flags", [True, False])
    for name, values in FLOATS.items():
        kind = library.GGMLQuantizationType.BF16 if name == "brain" else None
        raw = values.view(np.uint8) if name == "brain" else values
        writer.add_tensor(name, raw, raw_dtype=kind)
    blocks = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    packed = library.quants.quantize(blocks, library.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=library.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    values = dict(file.metadata)
    assert values.pop("a.numbers").tolist() == [1, -2, 3]
    assert values.pop("a.flags").tolist() == [True, False]
    assert values == {
        "general.architecture": "qwen3",
        "a.count": 7,
        "a.small": -7,
        "a.large": 2**63,
        "a.rate": 1e-6,
        "a.double": 0.1,
        "a.yes": True,
        "a.text": "Größe 中文",
        "a.words": ["x", "", "中"],
    }
    assert [type(values[key]) for key in ("a.count", "a.rate", "a.yes")] == [int, float, bool]
    assert list(file.tensors) == [*FLOATS, "packed"]
    for name, expected in FLOATS.items():
        found = file.tensors[name].read()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    found = file.tensors["packed"].read()
    expected = library.quants.dequantize(packed, library.GGMLQuantizationType.Q8_0)
    assert (found.dtype, found.shape) == (np.float32, (3, 64))
    assert np.array_equal(found, expected)


def test_tensors_larger_than_a_chunk_are_read_whole(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(700, 1024)).astype(np.float16)
    path = write(tmp_path, gguf([], [tensor("a", (1024, 700), 1)], values.tobytes()))
    assert np.array_equal(read_gguf(path).tensors["a"].read(), values)


def test_version_2_gaps_between_tensors_and_another_alignment_are_read(tmp_path) -> None:
    entries = [number("general.alignment", 64)]
    tensors = [tensor("b", offset=128), tensor("a")]
    front = head(2, 1, version=2) + b"".join(entries + tensors)
    front += bytes(-len(front) % 64)
    file = read_gguf(write(tmp_path, front + PAIR + bytes(120) + PAIR[::-1]))
    assert list(file.tensors) == ["a", "b"]
    assert file.tensors["a"].read().tolist() == [1.5, -2]
    assert file.tensors["b"].read().tobytes() == PAIR[::-1]


def test_arrays_in_arrays_are_read(tmp_path) -> None:
    inner = array(8, 1, text("x")) + array(0, 2, b"\1\2")
    [words, numbers] = read_gguf(
        write(tmp_path, gguf([entry("a", 9, array(9, 2, inner))]))
    ).metadata["a"]
    assert words == ["x"]
    assert numbers.tolist() == [1, 2]


def deep(depth: int) -> bytes:
    values = array(0, 0, b"")
    for _ in range(depth - 1):
        values = array(9, 1, values)
    return values


DAMAGED = "damaged GGUF file: "
PARTIAL = "not a whole GGUF file: "


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", PARTIAL + "its magic needs 4 bytes, 0 are left"),
        (b"GGML" + bytes(40), "not a GGUF file: begins with b'GGML'"),
        (
            b"version https://git-lfs",
            "a Git LFS pointer; expected the file: run `git lfs pull`",
        ),
        (gguf(version=1), "GGUF version 1; expected version 2 or 3, little-endian"),
        (gguf(version=4), "GGUF version 4; expected version 2 or 3, little-endian"),
        (
            b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
            "a big-endian GGUF file; expected version 2 or 3, little-endian",
        ),
        (
            head(0, 2**62),
            PARTIAL + f"metadata of {2**62} keys needs {13 * 2**62} bytes, 0 are left",
        ),
        (
            head(2**63, 0),
            PARTIAL + f"a list of {2**63} tensors needs {24 * 2**63} bytes, 0 are left",
        ),
        (
            head(0, 1) + struct.pack("<Q", 2**40) + bytes(20),
            PARTIAL + f"metadata key 0 needs {2**40} bytes, 20 are left",
        ),
        (gguf([number("", 1)]), DAMAGED + "metadata key 0 has 0 bytes, expected from 1 to 256"),
        (
            gguf([number("k" * 257, 1)]),
            DAMAGED + "metadata key 0 has 257 bytes, expected from 1 to 256",
        ),
        (gguf([entry(b"\xff", 0, b"1")]), DAMAGED + "metadata key 0 is not UTF-8"),
        (
            gguf([number("a\nb", 1)]),
            DAMAGED + "metadata key 0 is 'a\\nb', expected printable characters",
        ),
        (gguf([number("a", 1)] * 2), DAMAGED + "a is in its metadata twice"),
        (gguf([entry("a", 13, b"1")]), DAMAGED + "a has the unknown value type 13"),
        (
            gguf([entry("a", 9, array(13, 1, b"1"))]),
            DAMAGED + "a has the unknown value type 13",
        ),
        (gguf([string("a", b"\xff")]), DAMAGED + "a is not UTF-8"),
        (gguf([entry("a", 7, b"\2")]), DAMAGED + "a has a bool of 2, expected 0 or 1"),
        (
            gguf([entry("a", 9, array(7, 2, b"\1\3"))]),
            DAMAGED + "a has a bool of 3, expected 0 or 1",
        ),
        (
            gguf([entry("a", 9, deep(5))]),
            DAMAGED + "a has arrays in arrays deeper than 4",
        ),
        (
            head(0, 1) + entry("a", 8, struct.pack("<Q", 2**63)),
            PARTIAL + f"a needs {2**63} bytes, 0 are left",
        ),
        (
            head(0, 1) + entry("a", 9, array(5, 2**62, b"1234")),
            PARTIAL + f"a needs {2**64} bytes, 4 are left",
        ),
        (
            head(0, 1) + entry("a", 9, array(8, 2, text("x"))),
            PARTIAL + "a needs 16 bytes, 9 are left",
        ),
        (
            head(0, 1) + entry("a", 9, array(9, 2, deep(1))),
            PARTIAL + "a needs 24 bytes, 12 are left",
        ),
        (
            gguf([], [tensor("a", (1,) * 5)]),
            DAMAGED + "a has 5 dimensions, expected at most 4",
        ),
        (
            gguf([], [tensor("a", kind=23)]),
            f"a is IQ4_XS; expected one of {KNOWN}",
        ),
        (
            gguf([], [tensor("a", kind=99)]),
            f"a is of type 99; expected one of {KNOWN}",
        ),
        (
            gguf([], [tensor("a", (0, 2))]),
            DAMAGED + "a is [2, 0], expected rows of whole F32 blocks, 1 values each",
        ),
        (
            gguf([], [tensor("a", (16, 2), 2)]),
            DAMAGED + "a is [2, 16], expected rows of whole Q4_0 blocks, 32 values each",
        ),
        (
            gguf([], [tensor("a", (2**63, 2**63))]),
            PARTIAL + f"a ends at byte {96 + 2**128}, the file at 96",
        ),
        (
            gguf([], [tensor("a", offset=32)], bytes(39)),
            PARTIAL + "a ends at byte 104, the file at 103",
        ),
        (
            gguf([], [tensor("a", offset=4)], bytes(40)),
            DAMAGED + "a begins at byte 4 of the tensors, expected a multiple of 32",
        ),
        (
            gguf([], [tensor("a", (16,)), tensor("b", offset=32)], bytes(80)),
            DAMAGED + "b begins at byte 32 of the tensors, inside of the one before, "
            "which ends at 64",
        ),
        (
            gguf([], [tensor("a"), tensor("a", offset=32)], bytes(80)),
            DAMAGED + "a is in its list of tensors twice",
        ),
        (gguf([], [tensor(b"\xff")]), DAMAGED + "the name of tensor 0 is not UTF-8"),
        *[
            (gguf([value]), DAMAGED + "general.alignment is not a power of two")
            for value in (
                number("general.alignment", 0),
                number("general.alignment", 48),
                string("general.alignment", "32"),
                entry("general.alignment", 7, b"\1"),
                entry("general.alignment", 9, array(4, 2, bytes(8))),
            )
        ],
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, data, expected) -> None:
    path = write(tmp_path, data)
    assert message(read_gguf, path) == f"{path}: {expected}"


def test_a_header_without_end_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fourbee.model.gguf_file._MAX_HEADER_BYTES", 100)
    path = write(tmp_path, gguf([string("a", "x" * 100)]))
    assert message(read_gguf, path) == (
        f"{path}: damaged GGUF file: a ends beyond the 100 bytes that a header may have"
    )


def test_what_cannot_be_read_is_said(tmp_path) -> None:
    path = tmp_path / "none.gguf"
    assert message(read_gguf, path) == f"{path}: cannot be read: No such file or directory"


def test_a_file_that_shrinks_after_its_header_is_an_error(tmp_path) -> None:
    path = write(tmp_path, gguf([], [tensor("a")], PAIR))
    stored = read_gguf(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-1])
    assert message(stored.read) == f"{path}: ended while it was read; expected it not to change"


def whole_file() -> bytes:
    entries = [
        string("general.architecture", "qwen3"),
        number("general.alignment", 32),
        entry("rate", 6, struct.pack("<f", 0.5)),
        entry("flag", 7, b"\1"),
        entry("words", 9, array(8, 3, text("a") + text("中") + text(""))),
        entry("kinds", 9, array(5, 3, bytes(12))),
        entry("nested", 9, array(9, 2, array(4, 1, bytes(4)) + array(8, 1, text("x")))),
    ]
    tensors = [tensor("a"), tensor("b", (32, 2), 2, 32), tensor("c", (4, 2), 1, 96)]
    return gguf(entries, tensors, bytes(range(112)))


def read_all(path) -> None:
    for stored in read_gguf(path).tensors.values():
        stored.read()


def test_a_file_cut_anywhere_is_not_whole(tmp_path) -> None:
    data = whole_file()
    read_all(write(tmp_path, data))
    for length in range(len(data)):
        path = write(tmp_path, data[:length])
        assert message(read_all, path).startswith(f"{path}: not a whole GGUF file: ")


def test_damage_anywhere_is_one_error_or_none_and_takes_no_memory(tmp_path) -> None:
    data = whole_file()
    random = np.random.default_rng(3)
    refused = 0
    tracemalloc.start()
    for _ in range(600):
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            changed[place] = random.integers(0, 256)
        if random.random() < 0.2:
            del changed[random.integers(0, len(changed)) :]
        path = write(tmp_path, bytes(changed))
        try:
            read_all(path)
        except ModelFileError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 200 < refused < 600
    assert peak < 2_000_000
