"""Which implementation of the operations runs a model; torch's until the native ones exist.

Imports no backend before it is asked for, so that the rest of fourbee starts without torch.
"""

from __future__ import annotations

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Operations


def torch_operations(
    device: str = "auto", dtype: str = "auto", checkpoint_dtype: str = "bfloat16"
) -> Operations:
    """The operations in PyTorch. UsageError when torch or the device is missing.

    `device`: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N". `dtype`: "auto" (what
    the checkpoint is in; float32 for float16 on a CPU), "float32", "bfloat16" or "float16".
    """
    try:
        from fourbee.kernels import torch_device
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            "running a model needs PyTorch, which is not installed: pip install 'fourbee[train]'"
        ) from None
    return torch_device.open_operations(device, dtype, checkpoint_dtype)
