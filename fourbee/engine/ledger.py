"""The memory ledger: what a model takes, part by part, and how much context what is left holds.

Weights and pages of keys and values are exact, what a step needs is from the shapes of its buffers,
the program itself was measured. Admission, `--max-context auto` and `fourbee plan` read this and
nothing else. No arrays, no torch; nothing is allocated here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fourbee.foundation.errors import CapacityError
from fourbee.foundation.memory import usable_bytes
from fourbee.foundation.sizes import show_size
from fourbee.kernels.attention_pattern import PAGE_KEYS
from fourbee.kernels.backends import Backend, check_choices
from fourbee.kernels.packed import Kind
from fourbee.model.config import Qwen3Config
from fourbee.model.packed_format import PackedFormat
from fourbee.model.quantize import FORMATS
from fourbee.model.weights import tensor_shapes

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DENSE_KINDS: dict[str, Kind] = {"float32": "f32", "bfloat16": "bf16"}
# What keys and values may be in, the widest first; the last two are the native operations' alone.
KV_TYPES = ("float32", "bfloat16", "int8", "int4")
# Keys of a row that are summed up on their own (csrc/kernels.h): its sum, largest score and weight.
_SPLIT_KEYS, _SPLIT_BYTES = 512, 16

# Measured as the growth of RssAnon and of private file pages (Python 3.11, x86-64): the API process
# with FastAPI, 68 MB, and the engine's, with NumPy and the kernels, 42 MB; torch adds 150 MB.
PROGRAM_BYTES, TORCH_BYTES = 110_000_000, 150_000_000
# Of `tokenizers` with Qwen's vocabulary and merges: 102 MB for 151,669 tokens.
TOKEN_BYTES = 700
# A CUDA context with cuBLAS and its workspaces: not measured, from what torch's documentation says.
CUDA_BYTES = 700_000_000

# A context below this is no use: less memory than it needs is an error.
SMALL_CONTEXT = 1024
# Fitted contexts are multiples of this, which people can read and repeat.
_ROUND = 1024
# Kept free for grammars, scored prompts, adapters, fragments, and for others on the machine.
_RESERVE_SHARE, _RESERVE_BYTES, _RESERVE_MOST = 0.10, 512_000_000, 0.25
# Of what is left beside the weights, where nobody named the memory.
POOL_SHARE = 0.5


@dataclass(frozen=True)
class Setup:
    """A model as it is to be run."""

    config: Qwen3Config
    backend: Backend = "native"
    dtype: str = "auto"
    quantize: str = "none"
    kv_type: str = "auto"
    # `Checkpoint.formats`: quantised matrices that stay as they are where `quantize` is "none".
    formats: Mapping[str, PackedFormat] = field(default_factory=dict)
    on_gpu: bool = False
    max_running: int = 16
    max_step_tokens: int = 512
    # Tokens that a request may have at most; None = those of the config. Attention that reaches
    # beyond what the model was trained for may have more.
    longest: int | None = None

    def __post_init__(self) -> None:
        check_choices(self.backend, self.quantize, self.kv_type)

    @property
    def compute_type(self) -> str:
        """What `dtype` comes to, as in `open_operations`."""
        if self.dtype != "auto":
            return self.dtype
        stored = self.config.torch_dtype
        if self.backend == "torch":
            known = stored in _ITEM_BYTES and not (stored == "float16" and not self.on_gpu)
            return stored if known else "float32"
        return "bfloat16" if stored == "bfloat16" and self.backend == "native" else "float32"

    @property
    def kept_keys(self) -> str:
        """What `kv_type` comes to, as in `open_operations`."""
        if self.kv_type != "auto":
            return self.kv_type
        packed = self.quantize
        if packed == "none" and self.dtype == "auto":
            packed = self.config.packed
        whole = self.backend == "native" and packed != "none"
        return "int8" if whole else self.compute_type


@dataclass(frozen=True)
class Entry:
    """Something that takes memory."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Ledger:
    """What a model takes while it serves."""

    entries: tuple[Entry, ...]

    @property
    def total(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def bytes_of(self, name: str) -> int:
        """Of the entry of this name."""
        [found] = (entry.bytes for entry in self.entries if entry.name == name)
        return found


@dataclass(frozen=True)
class Fitted:
    """The context that fits, and the pages of the pool that holds it."""

    context_length: int  # tokens of a request, its answer included
    pages: int
    ledger: Ledger  # with the whole pool
    memory: int  # what was to be used at most
    reserve: int  # of it, kept free
    limit: int  # the context that was asked for, or the model's own
    kv_type: str
    # Contexts that types of fewer bytes would fit, where this one does not fit the limit.
    others: tuple[tuple[str, int], ...] = ()

    @property
    def sentence(self) -> str:
        """One line for the log."""
        of = f" (of {self.limit:,})" if self.context_length < self.limit else ""
        pool = show_size(self.ledger.bytes_of(KEYS))
        said = f"context of {self.context_length:,} tokens{of}: {pool} of keys and values in "
        said += self.kv_type
        if self.pages * PAGE_KEYS >= self.context_length + _ROUND:
            said += f", room for {self.pages * PAGE_KEYS:,} tokens in all"
        better = " and ".join(f"--kv-type {kind} would fit {most:,}" for kind, most in self.others)
        return f"{said}; {better}" if better else said


WEIGHTS, KEYS = "weights", "keys and values"


def weight_bytes(setup: Setup) -> int:
    """Of all weights as they lie in memory, a tied table once. ModelFileError as packing them."""
    return sum(tensor_bytes(setup).values())


def tensor_bytes(setup: Setup) -> dict[str, int]:
    """The same by the names of a checkpoint."""
    shapes = tensor_shapes(setup.config)
    if setup.backend != "native":
        item = _ITEM_BYTES[setup.compute_type]
        return {name: item * math.prod(shape) for name, shape in shapes.items()}
    forms = matrix_formats(setup)
    return {
        name: math.prod(forms[name].parts(name, shape)[name].shape)
        if name in forms
        else 4 * shape[0]
        for name, shape in shapes.items()
    }


def matrix_formats(setup: Setup) -> dict[str, PackedFormat]:
    """What the native operations keep each matrix in, by its name in a checkpoint."""
    own = isinstance(setup.config.quantization, PackedFormat)
    dense = PackedFormat(_DENSE_KINDS[setup.compute_type])
    packing = FORMATS.get(setup.quantize)
    return {
        name: packing.of(name) if packing and not own else setup.formats.get(name, dense)
        for name, shape in tensor_shapes(setup.config).items()
        if len(shape) == 2
    }


def page_bytes(config: Qwen3Config, kv_type: str) -> int:
    """Of a page of 64 positions, all layers: what `KvPages.page_bytes` says."""
    head_dim, rows = config.head_dim, 2 * PAGE_KEYS
    numbers = rows * head_dim
    if kv_type == "int8":
        head = numbers + rows * 4  # a float32 scale a row
    elif kv_type == "int4":
        group = next(size for size in (64, 32, 16) if head_dim % size == 0)
        head = numbers // 2 + rows * head_dim // group * 4  # a float16 scale and minimum a group
    else:
        head = numbers * _ITEM_BYTES[kv_type]
    return config.num_hidden_layers * config.num_key_value_heads * head


def pages_of(positions: int) -> int:
    """Pages that hold so many positions."""
    return -(-positions // PAGE_KEYS)


def activation_bytes(setup: Setup, context: int) -> int:
    """Buffers of the largest step, as `native_plan.py` and csrc/operations.cpp have them.

    Of one layer: two of the hidden width, two of the queries', three of the keys'; both halves of
    the MLP; the rows made ready for a product; sums over a sequence of `context` keys.
    """
    config = setup.config
    rows, hidden, inner = setup.max_step_tokens, config.hidden_size, config.intermediate_size
    numbers = 2 * hidden + 2 * config.query_size + 3 * config.key_value_size + 2 * inner
    kept = setup.max_running * (config.query_size + 2 * hidden)
    # Whole numbers with a scale, a sum and a shift a group; else the matrices' own type.
    ready = 1.5 if setup.quantize != "none" else _ITEM_BYTES[setup.compute_type]
    widest = int(max(hidden, inner, config.query_size) * ready)
    splits = -(-context // _SPLIT_KEYS) * config.num_attention_heads
    sums = splits * (4 * config.head_dim + _SPLIT_BYTES)
    return 4 * (rows * numbers + kept) + rows * widest + sums


def logit_bytes(setup: Setup) -> int:
    """Of a row for each running request, once as they are, once with bias and grammar."""
    return 2 * 4 * setup.max_running * setup.config.vocab_size


def ledger(setup: Setup, positions: int, context: int | None = None) -> Ledger:
    """What running it takes with pages for so many positions, `context` of them one request's."""
    config = setup.config
    pool = pages_of(positions) * page_bytes(config, setup.kept_keys)
    entries = [
        Entry(WEIGHTS, weight_bytes(setup)),
        Entry(KEYS, pool),
        Entry("activations", activation_bytes(setup, context or positions)),
        Entry("logits", logit_bytes(setup)),
    ]
    if setup.on_gpu:
        entries.append(Entry("CUDA", CUDA_BYTES))
    else:
        torch = TORCH_BYTES if setup.backend == "torch" else 0
        entries.append(Entry("program", PROGRAM_BYTES + torch))
        entries.append(Entry("tokenizer", TOKEN_BYTES * config.vocab_size))
    return Ledger(tuple(entries))


def reserve_bytes(memory: int) -> int:
    """What is kept free: a tenth, half a gigabyte at least, but of little memory a quarter."""
    least = min(_RESERVE_BYTES, int(memory * _RESERVE_MOST))
    return max(int(memory * _RESERVE_SHARE), least)


def kv_pages(
    setup: Setup, memory: int | None = None, max_context: int | None = None,
    pool_share: float | None = None,
) -> Fitted:  # fmt: skip
    """The context and the pool of pages for a model in so many bytes of memory.

    `memory` is for everything, the weights too; None: what this process may use now, so that it is
    asked before the weights are loaded. Of what the rest leaves the pool takes `pool_share`, by
    default half where nobody named the memory and else all, or as much as `max_context` needs. The
    context is at most `max_context` and what the model has positions for. CapacityError only where
    not even a context of 1,024 tokens fits.
    """
    limit = setup.longest or setup.config.max_position_embeddings
    limit = min(limit, max_context or limit)
    given = usable_bytes() if memory is None else memory
    reserve, page = reserve_bytes(given), page_bytes(setup.config, setup.kept_keys)
    left = given - reserve - ledger(setup, 0, limit).total
    least = pages_of(min(SMALL_CONTEXT, limit))
    if least * page > left:
        raise CapacityError(_too_little(setup, given, reserve, min(SMALL_CONTEXT, limit)))
    if pool_share is None:
        pool_share = POOL_SHARE if memory is None else 1.0
    wanted = least if max_context is None else pages_of(limit)
    pool = min(max(int(left * pool_share), wanted * page), left)
    # No more than all requests that run can use.
    pages = min(pool // page, setup.max_running * pages_of(limit))
    context = _rounded(min(limit, pages * PAGE_KEYS), limit)
    pages = pages if context == limit else pages_of(context)
    others = () if context == limit or setup.backend != "native" else _others(setup, pool, limit)
    return Fitted(context, pages, ledger(setup, pages * PAGE_KEYS, limit), given, reserve, limit,
                  setup.kept_keys, others)  # fmt: skip


def _rounded(positions: int, limit: int) -> int:
    whole = positions // _ROUND * _ROUND
    return positions if positions == limit or not whole else whole


def _others(setup: Setup, pool: int, limit: int) -> tuple[tuple[str, int], ...]:
    """Types of fewer bytes, and the contexts that a pool of so many bytes would hold in them."""
    found: list[tuple[str, int]] = []
    for kind in KV_TYPES[KV_TYPES.index(setup.kept_keys) + 1 :]:
        most = min(limit, pool // page_bytes(setup.config, kind) * PAGE_KEYS)
        found.append((kind, _rounded(most, limit)))
        if most == limit:
            break
    return tuple(found)


def _too_little(setup: Setup, memory: int, reserve: int, context: int) -> str:
    need = ledger(setup, context)
    rest = need.total - need.bytes_of(WEIGHTS) - need.bytes_of(KEYS)
    return (
        f"not enough memory: a context of {context:,} tokens needs {show_size(need.total)} "
        f"(weights {show_size(need.bytes_of(WEIGHTS))}, keys and values "
        f"{show_size(need.bytes_of(KEYS))}, the rest {show_size(rest)}) and {show_size(reserve)} "
        f"are kept free, but {show_size(memory)} may be used; try "
        f"{_advice(setup, memory - reserve, context)}"
    )


def _advice(setup: Setup, memory: int, context: int) -> str:
    """The least change with which the context fits."""
    if setup.backend == "native":
        changes: list[dict[str, str]] = [{"kv_type": "int4"}, {"quantize": "int4"},
                                         {"quantize": "int4", "kv_type": "int4"}]  # fmt: skip
        for change in changes:
            if ledger(replace(setup, **change), context).total <= memory:  # type: ignore[arg-type]
                return " ".join(
                    f"--{name.replace('_', '-')} {value}" for name, value in change.items()
                )
    return "a smaller model"
