"""Which operations run a model: device and type from what the user and the checkpoint say."""

import sys

import pytest
import torch

from fourbee.foundation.errors import UsageError
from fourbee.kernels.backends import torch_operations


def refusal(*arguments: str) -> tuple[str, str | None]:
    with pytest.raises(UsageError) as error:
        torch_operations(*arguments)
    return str(error.value), error.value.parameter


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
    ops = torch_operations("cpu", dtype, checkpoint)
    assert (ops.device.type, ops.dtype) == ("cpu", expected)


def test_what_there_is_not_is_refused_with_what_there_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal("cuda") == (
        "device = 'cuda': this machine has 0 CUDA devices; use cpu or auto",
        "device",
    )
    for name in ("tpu", "cpu:1", "cuda:x"):
        assert refusal(name) == (
            f"device = {name!r}: expected one of auto, cpu, cuda, cuda:N",
            "device",
        )
    assert refusal("cpu", "int4") == (
        "dtype = 'int4': expected one of auto, float32, bfloat16, float16",
        "dtype",
    )


def test_a_missing_torch_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "fourbee.kernels.torch_device", raising=False)
    monkeypatch.delattr("fourbee.kernels.torch_device", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    message, _ = refusal()
    assert message == (
        "running a model needs PyTorch, which is not installed: pip install 'fourbee[train]'"
    )
