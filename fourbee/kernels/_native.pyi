"""The compiled kernels of csrc/: what `native_ops.py` and `native_attention.py` call of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

def isa() -> str: ...
def isas() -> list[str]: ...
def threads() -> int: ...
def set_threads(threads: int) -> None: ...

class PackedWeights:
    def __init__(
        self,
        kind: str,
        rows: int,
        columns: int,
        group: int,
        rotated: bool,
        data: npt.NDArray[np.uint8],
    ) -> None: ...

class KvPool:
    def __init__(self, layers: int, heads: int, head_dim: int, kind: str) -> None: ...
    def allocate(self) -> int: ...
    def release(self, page: int) -> None: ...
    def copy(self, source: int, target: int) -> None: ...
    @property
    def used(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...

def pack(
    kind: str, group: int, rotated: bool, rows: Floats, data: npt.NDArray[np.uint8]
) -> None: ...
def linear(weights: PackedWeights, x: Floats, out: Floats, add: bool) -> None: ...
def norm_linear(
    x: Floats, norm: Floats, eps: float, weights: Sequence[PackedWeights], outs: Sequence[Floats]
) -> None: ...
def gated_mlp(
    residual: Floats,
    norm: Floats,
    eps: float,
    gate: PackedWeights,
    up: PackedWeights,
    down: PackedWeights,
) -> None: ...
def norm(x: Floats, norm: Floats, eps: float, out: Floats) -> None: ...
def unpack_rows(weights: PackedWeights, rows: Integers, out: Floats) -> None: ...
def rotate_heads(
    x: Floats, norm: Floats, eps: float, cos: Floats, sin: Floats, out: Floats
) -> None: ...
def attend(
    pool: KvPool,
    layer: int,
    query: Floats,
    key: Floats,
    value: Floats,
    counts: Integers,
    starts: Integers,
    page_offsets: Integers,
    pages: Integers,
    out: Floats,
) -> None: ...
