"""Which implementation of the operations runs a model, or packs one: native, torch or NumPy.

Imports none before it is asked for: serving on a CPU starts, and is installed, without torch.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy.typing as npt

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Operations
from fourbee.kernels.packed import PACKINGS, Kind, Method, PackedMatrix, pack, rel_error

Backend = Literal["native", "torch", "numpy"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
QUANTIZATIONS = ("none", *PACKINGS)
KV_TYPES = ("auto", "float32", "bfloat16", "int8", "int4")

logger = logging.getLogger(__name__)


def choose_backend(
    name: str = "auto", device: str = "auto", dtype: str = "auto", head_dim: int = 128
) -> Backend:
    """The backend of this name; for "auto" the best that is installed and does what is asked.

    A device other than the CPU, and float16, are torch's alone; the native kernels want heads of a
    multiple of 16. UsageError for an unknown name.
    """
    if name in BACKENDS:
        return name
    if name != "auto":
        raise UsageError(
            f"backend = {name!r}: expected one of auto, {', '.join(BACKENDS)}", parameter="backend"
        )
    torch_installed = find_spec("torch") is not None
    if device not in ("auto", "cpu") or dtype == "float16":
        return "torch"
    if device == "auto" and torch_installed and _has_cuda():
        return "torch"
    if native_built() and head_dim % 16 == 0:
        return "native"
    return "torch" if torch_installed else "numpy"


def open_operations(
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    checkpoint_dtype: str = "bfloat16",
    quantize: str = "none",
    head_dim: int = 128,
    packed: str = "none",
    kv_type: str = "auto",
) -> Operations:
    """The operations of a backend. UsageError when it is not there or cannot do what is asked.

    `device`: "auto" (CUDA where torch has it), "cpu", "cuda" or "cuda:N". `dtype`: "auto" (what
    the checkpoint is in; float32 for float16 on a CPU), "float32", "bfloat16" or "float16".
    `quantize`: "none", "int8" or "int4", which packs the weights while they load (native alone).
    `kv_type`: what keys and values are kept in, "auto" for int8 where weights are quantised and
    else for the compute type; others are native's alone.
    `packed`: what the checkpoint is packed in already; native operations then keep keys and values
    as if it had been packed while it loaded, unless a `dtype` is named.
    """
    chosen = choose_backend(backend, device, dtype, head_dim)
    check_choices(chosen, quantize, kv_type)
    if chosen == "torch":
        return _open_torch(device, dtype, checkpoint_dtype)
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"device = {device!r}: the {chosen} backend runs on the cpu alone; use backend = torch",
            parameter="device",
        )
    if chosen == "numpy":
        if dtype not in ("auto", "float32"):
            raise UsageError(
                f"dtype = {dtype!r}: the numpy backend computes in float32", parameter="dtype"
            )
        if backend == "auto":
            logger.warning(
                "running on NumPy, which is right but several times slower: the native kernels "
                "were not built (a C++ compiler is needed)"
            )
        from fourbee.kernels.numpy_ops import NumpyOperations

        return NumpyOperations()
    if not native_built():
        raise UsageError(
            "backend = 'native': its kernels were not built when fourbee was installed (a C++ "
            "compiler is needed); use numpy or torch",
            parameter="backend",
        )
    from fourbee.kernels.native_ops import open_native

    if dtype == "auto":
        dtype = "bfloat16" if checkpoint_dtype == "bfloat16" else "float32"
        quantize = packed if quantize == "none" else quantize
    return open_native(dtype, quantize, kv_type=kv_type)


def check_choices(backend: Backend, quantize: str, kv_type: str) -> None:
    """UsageError for what is not known, and for what is native's alone with another backend."""
    _check_choice("quantize", quantize, QUANTIZATIONS, backend)
    _check_choice("kv_type", kv_type, KV_TYPES, backend)


def _check_choice(name: str, value: str, choices: tuple[str, ...], backend: Backend) -> None:
    """UsageError for what is none of the choices, or not the first and not for this backend."""
    if value not in choices:
        raise UsageError(
            f"{name} = {value!r}: expected one of {', '.join(choices)}", parameter=name
        )
    if value != choices[0] and backend != "native":
        raise UsageError(
            f"{name} = {value!r}: needs the native backend, this is {backend}", parameter=name
        )


def pack_fast(
    matrix: npt.NDArray[Any], kind: Kind, group: int, rotated: bool, method: Method
) -> PackedMatrix:
    """`packed.pack`: by the kernels where they were built, else in NumPy; the same bytes."""
    if native_built():
        from fourbee.kernels.native_ops import pack_natively

        return pack_natively(matrix, kind, group, rotated, method)
    return pack(matrix, kind, group, rotated, method)


def rel_error_fast(matrix: npt.NDArray[Any], packed: PackedMatrix) -> float:
    """`packed.rel_error`, with the kernels where they were built; the same number."""
    if native_built():
        from fourbee.kernels.native_ops import rows_natively

        return rel_error(matrix, packed, rows_natively)
    return rel_error(matrix, packed)


def native_built() -> bool:
    """Whether the compiled kernels are there."""
    return find_spec("fourbee.kernels._native") is not None


def _has_cuda() -> bool:
    """Whether there may be a CUDA device. Asking torch would import it, which takes a second."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


def _open_torch(device: str, dtype: str, checkpoint_dtype: str) -> Operations:
    try:
        from fourbee.kernels import torch_device
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            "backend = 'torch': PyTorch is not installed: pip install 'fourbee[gpu]'",
            parameter="backend",
        ) from None
    return torch_device.open_operations(device, dtype, checkpoint_dtype)
