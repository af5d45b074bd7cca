"""Which device and compute type torch works in, from what the user and the checkpoint say."""

from __future__ import annotations

from typing import cast

import torch

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Operations
from fourbee.kernels.torch_ops import DTYPES, TorchOperations


def open_operations(device: str, dtype: str, checkpoint_dtype: str) -> Operations:
    """Operations on a device in a type, as `backends.open_operations` describes them."""
    chosen = _device(device)
    if dtype == "auto":
        slow = checkpoint_dtype == "float16" and chosen.type == "cpu"
        dtype = checkpoint_dtype if checkpoint_dtype in DTYPES and not slow else "float32"
    if dtype not in DTYPES:
        raise UsageError(
            f"dtype = {dtype!r}: expected one of auto, {', '.join(DTYPES)}", parameter="dtype"
        )
    return cast(Operations, TorchOperations(chosen, DTYPES[dtype]))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(
            f"device = {name!r}: expected one of auto, cpu, cuda, cuda:N", parameter="device"
        )
    available = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= available:
        raise UsageError(
            f"device = {name!r}: this machine has {available} CUDA devices; use cpu or auto",
            parameter="device",
        )
    return torch.device(name)
