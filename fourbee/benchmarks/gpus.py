"""GPUs by name, and what their data sheets make of a model's work: a prediction, never measured.

fourbee's torch operations run a GPU in bfloat16, weights, keys and values alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourbee.benchmarks.pace import CHUNK, Pace, Writing, key_bytes, layer_products
from fourbee.engine.ledger import Setup
from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import nearest

_ITEM_BYTES = 2
# What programs reach of the peaks on a data sheet: assumed, not measured.
COMPUTE_SHARE, MEMORY_SHARE = 0.5, 0.7
# Kernels of a layer, a few microseconds each, replayed from a CUDA graph: assumed as well.
_LAYER_SECONDS = 20e-6


@dataclass(frozen=True)
class Gpu:
    """`read_bytes` and `bf16` as in `Limits`: bytes and multiply-adds a second."""

    name: str
    memory: int
    read_bytes: float
    bf16: float


def _gpu(name: str, gigabytes: int, bandwidth: int, tflops: float) -> Gpu:
    """Of the figures that data sheets have: GB, GB/s, and dense TFLOPS, two to a multiply-add."""
    return Gpu(name, gigabytes * 10**9, bandwidth * 1e9, tflops * 1e12 / 2)


# From NVIDIA's data sheets and architecture white papers (Ampere GA100 and GA102, Ada, Hopper,
# Blackwell): bfloat16 without sparsity and with float32 sums. Of GeForce cards that is half the
# figure with float16 sums; the 4090 D is the 4090 by its number of multiprocessors (114 of 128).
GPUS = (
    _gpu("3090", 24, 936, 71),
    _gpu("4080", 16, 717, 97.5),
    _gpu("4090", 24, 1008, 165.2),
    _gpu("4090D", 24, 1008, 147.1),
    _gpu("5080", 16, 960, 112.6),
    _gpu("5090", 32, 1792, 209.5),
    _gpu("A10", 24, 600, 125),
    _gpu("A100-40GB", 40, 1555, 312),
    _gpu("A100-80GB", 80, 2039, 312),
    _gpu("L4", 24, 300, 121),
    _gpu("L40S", 48, 864, 362),
    _gpu("H100-PCIe", 80, 2000, 756),
    _gpu("H100", 80, 3350, 989),
    _gpu("H200", 141, 4800, 989),
    _gpu("B200", 180, 8000, 2250),
)


def gpu_named(name: str) -> Gpu:
    """UsageError for one that is not known; spaces, hyphens, capitals and "RTX" do not count."""
    for one in GPUS:
        if _plain(one.name) == _plain(name):
            return one
    names = [one.name for one in GPUS]
    close = nearest(name.upper(), names)
    raise UsageError(f"--gpu {name}: expected one of {', '.join(names)}{close}", "gpu")


def predicted_pace(setup: Setup, gpu: Gpu, batches: Sequence[int]) -> Pace:
    """The larger of what products and reading take, of the shares that are assumed."""
    config = setup.config
    products, bandwidth = gpu.bf16 * COMPUTE_SHARE, gpu.read_bytes * MEMORY_SHARE
    head = config.vocab_size * config.hidden_size

    def seconds(rows: int, weights: int) -> float:
        """Rows times a matrix of so many weights."""
        return max(rows * weights / products, weights * _ITEM_BYTES / bandwidth)

    layer = layer_products(config)
    own = CHUNK * CHUNK / 2 * 2 * config.query_size / products
    return Pace(
        seconds(CHUNK, layer) + own + _LAYER_SECONDS,
        2 * config.query_size / products,
        seconds(1, head),
        tuple(
            Writing(batch, seconds(batch, layer) + _LAYER_SECONDS, key_bytes(setup) / bandwidth,
                    seconds(batch, head))
            for batch in batches
        ),
    )  # fmt: skip


def _plain(name: str) -> str:
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    for prefix in ("nvidia", "geforce", "rtx"):
        plain = plain.removeprefix(prefix)
    return plain
