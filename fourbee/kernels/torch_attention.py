"""Attention in PyTorch: over pages (serving) and over packed documents (training).

Both satisfy the `Attention` contract of `operations.py`. A sequence's pages are gathered before
they are attended, one sequence at a time, so that its arithmetic does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fourbee.kernels.attention_pattern import (
    PAGE_KEYS,
    AttentionPattern,
    Causal,
    LayeredPattern,
    page_table,
    variant_table,
)
from fourbee.kernels.operations import FloatArray, IntArray
from fourbee.kernels.paged_cache import DROPPED, PagedCache, held_positions

# In bfloat16 torch's fused CPU kernel is slower up to this length, mostly its backward pass; its
# scores need no memory, which decides for long documents.
_WRITTEN_OUT = 1024
# Scores of a document that take as long as a call does.
_CALL = 1024


class TorchPages:
    """Pages `[pages, layers, 2, G, 64, K]`: keys, then values."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (pages, layers, 2, kv_heads, PAGE_KEYS, head_dim)
        self.tensor = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def pages(self) -> int:
        return len(self.tensor)

    @property
    def page_bytes(self) -> int:
        return self.tensor[0].nbytes

    def clear(self, page: int) -> None:
        self.tensor[page] = 0

    def copy(self, source: int, target: int) -> None:
        self.tensor[target] = self.tensor[source]

    @property
    def kind(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    def read(self, page: int) -> memoryview:
        bytes_of: npt.NDArray[np.uint8] = self.tensor[page].view(torch.uint8).cpu().numpy()
        return bytes_of.data.cast("B")

    def fill(self, page: int, read_into: Callable[[memoryview], bool]) -> bool:
        data = torch.empty_like(self.tensor[page], device="cpu")
        into: npt.NDArray[np.uint8] = data.view(torch.uint8).numpy()
        read = read_into(into.data.cast("B"))
        self.tensor[page] = data.to(self.tensor.device)
        return read

    def store(
        self, cache: PagedCache, layer: int, start: int, key_TGK: Tensor, value_TGK: Tensor
    ) -> None:
        """Writes keys and values of the positions from `start` on."""
        positions = torch.arange(start, start + len(key_TGK), device=self.tensor.device)
        pages = self._table(cache)[positions // PAGE_KEYS]
        for part, rows in enumerate((key_TGK, value_TGK)):
            self.tensor[pages, layer, part, :, positions % PAGE_KEYS] = rows

    def load(self, cache: PagedCache, layer: int, part: int, end: int) -> Tensor:
        """Keys (part 0) or values (1) of `held_positions(cache, end)`, `[G, S, K]`."""
        table = self._table(cache)[: -(-end // PAGE_KEYS)]
        pages_GPSK = self.tensor[:, layer, part].transpose(0, 1)
        rows_GSK = pages_GPSK.index_select(1, table[table != DROPPED]).flatten(1, 2)
        return rows_GSK[:, : rows_GSK.shape[1] - (-end % PAGE_KEYS)]

    def _table(self, cache: PagedCache) -> Tensor:
        return torch.tensor(cache.pages, dtype=torch.int64, device=self.tensor.device)


class CachedAttention:
    """Attention of one step: rows are, in order, `count` new positions of each cache."""

    def __init__(
        self,
        chunks: Sequence[tuple[PagedCache, int]],
        patterns: Sequence[AttentionPattern] | None = None,
        slopes: FloatArray | None = None,
    ) -> None:
        self.chunks = tuple(chunks)
        self.patterns = tuple(patterns or [Causal()] * len(chunks))
        self.slopes = slopes
        # Lengths before this step: each layer writes behind them, the last layer moves them on.
        self.starts = tuple(cache.length for cache, _ in self.chunks)
        assert all(cache.capacity >= cache.length + count for cache, count in self.chunks)

    def __call__(
        self, layer: int, query_QTHK: Tensor, key_TGK: Tensor, value_TGK: Tensor
    ) -> Tensor:
        context = torch.empty_like(query_QTHK[0])
        row = 0
        steps = zip(self.chunks, self.starts, self.patterns, strict=True)
        for (cache, count), start, pattern in steps:
            rows, end = slice(row, row + count), start + count
            pool = cache.pool
            assert isinstance(pool, TorchPages), "a pool belongs to the operations that made it"
            pool.store(cache, layer, start, key_TGK[rows], value_TGK[rows])
            keys_GSK, values_GSK = (pool.load(cache, layer, part, end) for part in (0, 1))
            query_QHTK = query_QTHK[:, rows].transpose(1, 2)
            positions_S = held_positions(cache, end)
            rows_of = (query_QTHK[0, rows], key_TGK[rows])
            seen_by = _seen_by(pattern, layer, start, *rows_of, positions_S, self.slopes)
            if seen_by is None:
                attended_HTK = _attend(query_QHTK[0], keys_GSK, values_GSK)
            else:
                distances = np.arange(start, end)[:, None] - positions_S
                attended_HTK = _attend_pattern(
                    query_QHTK, keys_GSK, values_GSK, seen_by, distances, self.slopes
                )
            context[rows] = attended_HTK.transpose(0, 1)
            if layer == pool.tensor.shape[1] - 1:
                cache.length = end
            row += count
        return context.flatten(1)


def _seen_by(
    pattern: AttentionPattern, layer: int, start: int, query_THK: Tensor, key_TGK: Tensor,
    positions: IntArray, slopes: FloatArray | None,
) -> IntArray | None:  # fmt: skip
    """`variant_table` of a chunk's rows; None where they see all before them at no cost."""
    if isinstance(pattern, LayeredPattern):
        assert slopes is None, "slopes are of spans"
        rows = (one.float().cpu().numpy() for one in (query_THK, key_TGK))
        seen = pattern.seen_pages(layer, start, *rows)
        return None if seen is None else page_table(seen, start)
    if slopes is None and isinstance(pattern, Causal):
        return None
    return variant_table(pattern, start, len(query_THK), positions)


def _attend(query_HTK: Tensor, keys_GSK: Tensor, values_GSK: Tensor) -> Tensor:
    """Causal attention where the last query sees the last key: `[H, T, K]`."""
    num_heads, count, _ = query_HTK.shape
    groups, length, _ = keys_GSK.shape
    if count == 1:
        # One row: the query heads of a group become the rows of one small product.
        grouped = query_HTK.reshape(groups, num_heads // groups, -1)
        return F.scaled_dot_product_attention(grouped, keys_GSK, values_GSK).reshape(
            num_heads, 1, -1
        )
    keys = keys_GSK.repeat_interleave(num_heads // groups, dim=0)
    values = values_GSK.repeat_interleave(num_heads // groups, dim=0)
    if length == count:
        return F.scaled_dot_product_attention(query_HTK, keys, values, is_causal=True)
    positions = torch.arange(length, device=keys.device)
    visible = positions[None, :] <= positions[length - count :, None]
    return F.scaled_dot_product_attention(query_HTK, keys, values, attn_mask=visible)


def _attend_pattern(
    query_QHTK: Tensor,
    keys_GSK: Tensor,
    values_GSK: Tensor,
    seen_by: IntArray,
    distances: IntArray,
    slopes: FloatArray | None,
) -> Tensor:
    """Attention of rows to the keys that `seen_by` `[T, S]` gives a variant: `[H, T, K]`.

    Every variant scores every key, and each score is taken from the variant that its key asks for.
    """
    _, num_heads, _, head_dim = query_QHTK.shape
    share = num_heads // keys_GSK.shape[0]
    keys = keys_GSK.repeat_interleave(share, dim=0).float()
    values = values_GSK.repeat_interleave(share, dim=0).float()
    variants_TS = torch.from_numpy(seen_by).to(keys.device)
    scale: float = head_dim**-0.5
    scores_QHTS = (query_QHTK.float() * scale) @ keys.transpose(1, 2)
    chosen = variants_TS.clamp(min=0).expand(1, num_heads, -1, -1)
    scores_HTS = scores_QHTS.gather(0, chosen)[0]
    if slopes is not None:
        distances_TS = torch.from_numpy(distances).to(keys)
        scores_HTS = scores_HTS - torch.from_numpy(slopes).to(keys)[:, None, None] * distances_TS
    weights_HTS = scores_HTS.masked_fill(variants_TS < 0, -torch.inf).softmax(-1)
    return (weights_HTS @ values).to(query_QHTK.dtype)


class DocumentAttention:
    """Causal attention inside each document of packed rows, for training.

    `lengths` are those of the documents that lie one after another in the T rows. No mask over the
    pack and no work between documents: those of like lengths are attended in one call, in which
    rows that they do not see follow the shorter ones. A hundred short documents cost four times as
    much one by one.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        groups = _alike(lengths)
        self.shapes = [(len(group), lengths[group[0]]) for group in groups]
        self._order: tuple[Tensor, Tensor] | None = None
        order = [document for group in groups for document in group]
        padded = sum(count * longest for count, longest in self.shapes) > sum(lengths)
        if padded or order != list(range(len(lengths))):
            self._order = _laid_out(lengths, groups)

    def __call__(
        self, layer: int, query_QTHK: Tensor, key_TGK: Tensor, value_TGK: Tensor
    ) -> Tensor:
        inputs = [query_QTHK[0], key_TGK, value_TGK]
        if self._order is not None:
            taken, places = (one.to(key_TGK.device) for one in self._order)
            inputs = [one.index_select(0, taken) for one in inputs]
        rows = [count * longest for count, longest in self.shapes]
        parts = zip(self.shapes, *(torch.split(one, rows) for one in inputs), strict=True)
        contexts = [
            _attend_documents(count, query, key, value) for (count, _), query, key, value in parts
        ]
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
        return context if self._order is None else context.index_select(0, places)


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of documents that are attended together, the longest first."""
    groups: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        longest = lengths[groups[-1][0]] if groups else 0
        if longest**2 - lengths[document] ** 2 > _CALL or not groups:
            groups.append([])
        groups[-1].append(document)
    return groups


def _laid_out(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Which of the T rows each row of the groups is, and where among those the T rows are."""
    starts = np.cumsum([0, *lengths])
    taken: list[IntArray] = []
    places = np.empty(starts[-1], np.int64)
    at = 0
    for group in groups:
        longest = lengths[group[0]]
        for document in group:
            first, length = starts[document], lengths[document]
            # Its last row goes on to the end: no row of its own sees that far.
            taken.append(first + np.minimum(np.arange(longest), length - 1))
            places[first : first + length] = np.arange(at, at + length)
            at += longest
    return torch.from_numpy(np.concatenate(taken)), torch.from_numpy(places)


def _attend_documents(count: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor) -> Tensor:
    """Causal attention of `count` documents of one length, `[T, H*K]`."""
    rows, num_heads, head_dim = query_THK.shape
    length, groups = rows // count, key_TGK.shape[1]
    query = query_THK.view(count, length, num_heads, head_dim).transpose(1, 2)
    key = key_TGK.view(count, length, groups, head_dim).transpose(1, 2)
    value = value_TGK.view(count, length, groups, head_dim).transpose(1, 2)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and length <= _WRITTEN_OUT:
        context = _written_out(query, key, value)
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=groups != num_heads
        )
    return context.transpose(1, 2).reshape(rows, num_heads * head_dim)


def _written_out(query_NHTK: Tensor, key_NGTK: Tensor, value_NGTK: Tensor) -> Tensor:
    """The same, `[N, H, T, K]`, by its definition; the softmax in float32."""
    count, num_heads, length, head_dim = query_NHTK.shape
    groups = key_NGTK.shape[1]
    grouped = (query_NHTK * head_dim**-0.5).reshape(count, groups, -1, head_dim)
    scores = (grouped @ key_NGTK.transpose(2, 3)).view(count, num_heads, length, length)
    future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.float().masked_fill(future, -torch.inf).softmax(-1).to(value_NGTK.dtype)
    context: Tensor = weights.view(count, groups, -1, length) @ value_NGTK
    return context.view(count, num_heads, length, head_dim)
