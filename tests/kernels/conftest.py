"""Float32 torch operations on one thread, and seeded random tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fourbee.kernels.torch_ops import TorchOperations


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ops() -> TorchOperations:
    return TorchOperations("cpu", torch.float32)


@pytest.fixture
def random() -> Callable[..., torch.Tensor]:
    """`random(2, 3)`: normal numbers, the same in every run of a test."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)
