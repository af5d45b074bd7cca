"""A plain training loop in the manner of nanoGPT, to compare ours with: it is nobody's to use.

The same Qwen3 network written plainly with `nn.Linear` and torch's fused attention, whole logits,
random crops of one long text, fused AdamW. It shares no code with `fourbee.training`. Run as a
program it trains for a time and writes what it reached (`python -m fourbee.benchmarks.plain_loop`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainShape:
    """The network's numbers, as in Qwen3's config.json."""

    vocab: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    theta: float = 10_000.0


class Layer(nn.Module):
    """One layer: attention with a norm on each query and key head, SwiGLU."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        self.shape = shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.before = nn.RMSNorm(shape.width, eps=1e-6)
        self.query = nn.Linear(shape.width, query, bias=False)
        self.key = nn.Linear(shape.width, key, bias=False)
        self.value = nn.Linear(shape.width, key, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.output = nn.Linear(query, shape.width, bias=False)
        self.after = nn.RMSNorm(shape.width, eps=1e-6)
        self.gate = nn.Linear(shape.width, shape.inner, bias=False)
        self.up = nn.Linear(shape.width, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        normed = self.before(x)
        query = self.query(normed).view(batch, length, -1, self.shape.head_dim)
        key = self.key(normed).view(batch, length, -1, self.shape.head_dim)
        value = self.value(normed).view(batch, length, -1, self.shape.head_dim)
        query = rotate(self.query_norm(query).transpose(1, 2), cos, sin)
        key = rotate(self.key_norm(key).transpose(1, 2), cos, sin)
        attended = F.scaled_dot_product_attention(
            query, key, value.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, -1))
        normed = self.after(x)
        after: Tensor = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return after


class PlainModel(nn.Module):
    """Qwen3 with tied embeddings."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.final = nn.RMSNorm(shape.width, eps=1e-6)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        half = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        angles = torch.arange(shape.positions).float()[:, None] * shape.theta**-half
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `labels` `[B, T]`."""
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.final(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `[B, H, T, K]`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class PlainLoop:
    """Random crops, AdamW, warm-up and cosine: nanoGPT's settings for a small text on a CPU."""

    def __init__(
        self,
        shape: PlainShape,
        ids: npt.NDArray[Any],
        batch: int,
        block: int,
        precision: str,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.model = PlainModel(shape)
        self.ids = torch.from_numpy(ids.astype(np.int64))
        self.batch, self.block = batch, block
        self.dtype = torch.bfloat16 if precision == "bfloat16" else None
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, rate: float) -> float:
        """One update; its loss."""
        starts = torch.randint(
            len(self.ids) - self.block, (self.batch,), generator=self.generator
        ).tolist()
        ids = torch.stack([self.ids[start : start + self.block] for start in starts])
        labels = torch.stack([self.ids[start + 1 : start + 1 + self.block] for start in starts])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = self.model(ids, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.item())

    def validate(self, ids: npt.NDArray[Any]) -> float:
        """Mean cross-entropy over all of a text, in blocks."""
        whole = torch.from_numpy(ids.astype(np.int64))
        count = (len(whole) - 1) // self.block
        inputs = whole[: count * self.block].view(count, self.block)
        labels = whole[1 : count * self.block + 1].view(count, self.block)
        total = 0.0
        with torch.no_grad():
            for start in range(0, count, 64):
                part = inputs[start : start + 64]
                total += self.model(part, labels[start : start + 64]).item() * len(part)
        return total / count


def cosine(update: int, total: int) -> float:
    """nanoGPT's schedule: 100 updates of warm-up to 1e-3, then down to 1e-4."""
    if update < 100:
        return 1e-3 * (update + 1) / 101
    done = min(1.0, (update - 100) / max(1, total - 100))
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4


def main() -> None:
    """Trains on `train.npy` of a folder until the time is over; `plain.jsonl` is its curve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--name", default="plain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, held_out = (np.load(options.folder / f"{name}.npy") for name in ("train", "val"))
    shape = PlainShape(
        vocab=int(max(train.max(), held_out.max())) + 1, width=options.width,
        inner=3 * options.width, layers=4, heads=4, kv_heads=4,
        head_dim=options.width // 4, positions=options.block,
    )  # fmt: skip
    loop = PlainLoop(shape, train, options.batch, options.block, "float32")
    path = options.folder / f"{options.name}.jsonl"
    started, spent, update, total = time.monotonic(), 0.0, 0, 10**9
    with path.open("w", encoding="utf-8", buffering=1) as file:
        while spent < options.seconds:
            if update == 60:  # its own pace tells how many updates the time holds
                total = int(60 * options.seconds / (time.monotonic() - started))
            loop.step(cosine(update, total))
            update += 1
            spent = time.monotonic() - started
            if update % max(250, min(total, 10**6) // 60) == 0 or spent >= options.seconds:
                loss = loop.validate(held_out)
                record = {
                    "update": update,
                    "seconds": spent,
                    "processor_seconds": time.process_time(),
                    "loss": loss,
                }
                print(json.dumps(record), file=file)


if __name__ == "__main__":
    main()
