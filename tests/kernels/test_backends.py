"""Which operations run a model: what the user and the checkpoint say decides."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from fourbee.foundation.errors import UsageError
from fourbee.kernels import backends
from fourbee.kernels.backends import choose_backend, open_operations
from fourbee.kernels.numpy_ops import NumpyOperations
from fourbee.kernels.torch_ops import TorchOperations


def refusal(*arguments: str, **named: str) -> tuple[str, str | None]:
    with pytest.raises(UsageError) as error:
        open_operations(*arguments, **named)
    return str(error.value), error.value.parameter


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without torch, CUDA and the compiled kernels."""

    def make(torch: bool = True, cuda: bool = False, native: bool = True) -> None:
        installed = {"torch": torch, "fourbee.kernels._native": native}
        monkeypatch.setattr(
            backends, "find_spec", lambda name: importlib.util.find_spec("os") if installed[name]
            else None,
        )  # fmt: skip
        monkeypatch.setattr(backends, "_has_cuda", lambda: cuda)

    return make


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ({}, {}, "native"),
        ({"torch": False}, {}, "native"),
        ({"cuda": True}, {}, "torch"),
        ({"cuda": True}, {"device": "cpu"}, "native"),
        ({"cuda": True, "torch": False}, {}, "native"),
        ({}, {"device": "cuda"}, "torch"),
        ({}, {"dtype": "float16"}, "torch"),
        ({}, {"head_dim": 40}, "torch"),
        ({"native": False}, {}, "torch"),
        ({"native": False, "torch": False}, {}, "numpy"),
        ({}, {"name": "numpy"}, "numpy"),
    ],
)
def test_auto_is_the_best_that_does_what_is_asked(machine, there, asked, expected) -> None:
    machine(**there)
    assert choose_backend(**asked) == expected


@pytest.mark.parametrize(
    ("dtype", "checkpoint", "expected"),
    [
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("auto", "float16", torch.float32),
        ("auto", "unheard-of", torch.float32),
        ("float16", "float32", torch.float16),
        ("float32", "bfloat16", torch.float32),
    ],
)
def test_the_checkpoint_decides_the_type_unless_told(dtype, checkpoint, expected) -> None:
    ops = open_operations("torch", "cpu", dtype, checkpoint)
    assert isinstance(ops, TorchOperations)
    assert (ops.device.type, ops.dtype) == ("cpu", expected)


def test_the_kind_of_native_weights_follows_the_type() -> None:
    pytest.importorskip("fourbee.kernels._native", reason="native operations were not built")
    assert open_operations("native", "cpu", "auto", "bfloat16").kv_kind == "bf16"
    assert open_operations("native", "cpu", "auto", "float16").kv_kind == "f32"
    assert open_operations("native", "cpu", "bfloat16", "float32").kv_kind == "bf16"
    int4 = open_operations("native", "cpu", "auto", "bfloat16", "int4").packing
    assert (int4.layers, int4.tables, int4.rotated) == ("int4c", "int8", True)
    assert open_operations("native", quantize="int4").kv_kind == "int8"
    for name, kind in (
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("int8", "int8"),
        ("int4", "int4"),
    ):
        ops = open_operations("native", quantize="int4", kv_type=name)
        assert (ops.kv_kind, ops.rounds_keys) == (kind, kind.startswith("int"))
    # A packed checkpoint's keys and values are int8 as its like's are, unless a type is named.
    packed = {"checkpoint_dtype": "bfloat16", "packed": "int4"}
    assert open_operations("native", "cpu", **packed).kv_kind == "int8"
    assert open_operations("native", "cpu", "bfloat16", **packed).kv_kind == "bf16"
    assert refusal("native", "cpu", "float16") == (
        "dtype = 'float16': native operations compute in float32 or bfloat16",
        "dtype",
    )


def test_what_there_is_not_is_refused_with_what_there_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal("auto", "cuda") == (
        "device = 'cuda': this machine has 0 CUDA devices; use cpu or auto",
        "device",
    )
    for name in ("tpu", "cpu:1", "cuda:x"):
        assert refusal("auto", name) == (
            f"device = {name!r}: expected one of auto, cpu, cuda, cuda:N",
            "device",
        )
    assert refusal("torch", "cpu", "int4") == (
        "dtype = 'int4': expected one of auto, float32, bfloat16, float16",
        "dtype",
    )
    assert refusal("native", "cpu", "auto", "bfloat16", "int3") == (
        "quantize = 'int3': expected one of none, int8, int4",
        "quantize",
    )
    assert refusal("torch", "cpu", "auto", "bfloat16", "int4") == (
        "quantize = 'int4': needs the native backend, this is torch",
        "quantize",
    )
    assert refusal("native", kv_type="int2") == (
        "kv_type = 'int2': expected one of auto, float32, bfloat16, int8, int4",
        "kv_type",
    )
    assert refusal("numpy", kv_type="int4") == (
        "kv_type = 'int4': needs the native backend, this is numpy",
        "kv_type",
    )
    assert refusal("blas") == (
        "backend = 'blas': expected one of auto, native, torch, numpy",
        "backend",
    )
    assert refusal("numpy", "cuda")[0] == (
        "device = 'cuda': the numpy backend runs on the cpu alone; use backend = torch"
    )
    assert refusal("numpy", "cpu", "bfloat16")[0] == (
        "dtype = 'bfloat16': the numpy backend computes in float32"
    )


def test_a_missing_torch_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "fourbee.kernels.torch_device", raising=False)
    monkeypatch.delattr("fourbee.kernels.torch_device", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    message, _ = refusal("torch")
    assert message == "backend = 'torch': PyTorch is not installed: pip install 'fourbee[gpu]'"


def test_missing_kernels_are_told_and_auto_goes_on_with_a_warning(machine, caplog) -> None:
    machine(torch=False, native=False)
    assert refusal("native")[0].startswith("backend = 'native': its kernels were not built")
    assert isinstance(open_operations(), NumpyOperations)
    assert "running on NumPy, which is right but several times slower" in caplog.text


@pytest.mark.parametrize("method", ["plain", "search"])
def test_a_matrix_is_packed_alike_with_and_without_the_kernels(monkeypatch, method) -> None:
    matrix = np.random.default_rng(0).standard_normal((40, 128)).astype(np.float32)
    ways = []
    for built in (backends.native_built(), False):
        monkeypatch.setattr(backends, "native_built", lambda built=built: built)
        packed = backends.pack_fast(matrix, "int4", 64, True, method)
        ways.append((packed.data.tobytes(), backends.rel_error_fast(matrix, packed)))
    assert ways[0] == ways[1]
