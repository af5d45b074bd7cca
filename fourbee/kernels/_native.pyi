"""The compiled kernels of csrc/: what `native_ops.py` and `native_attention.py` call of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

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
    def __init__(self, layers: int, heads: int, head_dim: int, kind: str, pages: int) -> None: ...
    def clear(self, page: int) -> None: ...
    def copy(self, source: int, target: int) -> None: ...
    def view(self, page: int) -> npt.NDArray[np.uint8]: ...
    @property
    def pages(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...

def pack(
    kind: str,
    group: int,
    rotated: bool,
    searched: bool,
    rows: Floats,
    data: npt.NDArray[np.uint8],
) -> None: ...

class Adapter:
    def __init__(self, rows: Integers, down: PackedWeights, up: PackedWeights) -> None: ...

def linear(
    weights: PackedWeights, x: Floats, out: Floats, add: bool, delta: Sequence[Adapter] = ...
) -> None: ...
def norm_linear(
    x: Floats,
    norm: Floats,
    eps: float,
    weights: Sequence[PackedWeights],
    outs: Sequence[Floats],
    deltas: Sequence[Sequence[Adapter]] = ...,
) -> None: ...
def gated_mlp(
    residual: Floats,
    norm: Floats,
    eps: float,
    gate: PackedWeights,
    up: PackedWeights,
    down: PackedWeights,
    deltas: Sequence[Sequence[Adapter]] = ...,
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
def select_tokens(
    weights: PackedWeights,
    hidden: Floats,
    temperature: Floats,
    top_k: Integers,
    top_p: Floats,
    min_p: Floats,
    seed: npt.NDArray[np.uint64],
    position: Integers,
    bias_rows: Integers,
    bias_ids: Integers,
    bias_values: Floats,
    bitmask: npt.NDArray[np.uint32],
    token_ids: Integers,
    logprobs: Floats,
    logsumexp: Floats,
    top_ids: Integers,
    top_logprobs: Floats,
    finite: Flags,
) -> None: ...
def score_targets(
    weights: PackedWeights,
    hidden: Floats,
    targets: Integers,
    token_ids: Integers,
    logprobs: Floats,
    logsumexp: Floats,
    top_ids: Integers,
    top_logprobs: Floats,
    finite: Flags,
) -> None: ...
def attend_spans(
    pool: KvPool,
    layer: int,
    query: Floats,
    key: Floats,
    value: Floats,
    counts: Integers,
    starts: Integers,
    page_offsets: Integers,
    pages: Integers,
    span_offsets: Integers,
    spans: Integers,
    slopes: Floats,
    seen_offsets: Integers,
    seen: npt.NDArray[np.uint8],
    out: Floats,
) -> None: ...

class Plan:
    def __init__(self) -> None: ...
    def buffer(self, width: int, kept: bool) -> int: ...
    def embed(self, table: PackedWeights, out: int) -> None: ...
    def norm(self, x: int, norm: Floats, eps: float, out: int) -> None: ...
    def norm_linear(
        self,
        x: int,
        norm: Floats,
        eps: float,
        weights: Sequence[PackedWeights],
        outs: Sequence[int],
    ) -> None: ...
    def rotate(self, x: int, norm: Floats, eps: float, out: int) -> None: ...
    def attend(self, layer: int, query: int, key: int, value: int, out: int) -> None: ...
    def select(self, x: int, out: int) -> None: ...
    def linear_residual(self, weights: PackedWeights, x: int, residual: int, out: int) -> None: ...
    def gated_mlp(
        self,
        x: int,
        norm: Floats,
        eps: float,
        gate: PackedWeights,
        up: PackedWeights,
        down: PackedWeights,
    ) -> None: ...
    def run(
        self,
        pool: KvPool,
        ids: Integers,
        kept_rows: Integers,
        cos: Floats,
        sin: Floats,
        counts: Integers,
        starts: Integers,
        page_offsets: Integers,
        pages: Integers,
        result: int,
        out: Floats,
    ) -> bool: ...

def norm_gradient(
    x: Floats, norm: Floats, eps: float, grad: Floats, grad_x: Floats, grad_norm: Floats
) -> None: ...
def head_gradient(
    x: Floats,
    norm: Floats,
    eps: float,
    cos: Floats,
    sin: Floats,
    grad: Floats,
    grad_x: Floats,
    grad_norm: Floats,
) -> None: ...
def swiglu(gate: Floats, up: Floats, out: Floats) -> None: ...
def swiglu_gradient(gate: Floats, up: Floats, inner: Floats) -> None: ...

LONGEST_DOCUMENT: int

def attend_documents(
    query: Floats, key: Floats, value: Floats, starts: Integers, out: Floats
) -> None: ...
def document_gradients(
    query: Floats,
    key: Floats,
    value: Floats,
    starts: Integers,
    grad: Floats,
    grad_query: Floats,
    grad_key: Floats,
    grad_value: Floats,
) -> None: ...
def abort() -> None: ...
def heartbeat() -> int: ...
def peak_int8(turns: int) -> float: ...
def peak_bf16(turns: int) -> float: ...
def read_bandwidth(data: npt.NDArray[np.uint8]) -> float: ...
def busy_seconds() -> float: ...
