"""One training loop in a process of its own: `python -m fourbee.benchmarks.training_side ours ...`.

It says when it is ready, then makes as many updates as each line says and answers with what they
took. Ours is the parts that the trainer is made of; the other is `plain_loop.py`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fourbee.benchmarks.plain_loop import PlainLoop, PlainShape
from fourbee.foundation.runtime import keep_freed_memory
from fourbee.kernels.torch_ops import DTYPES
from fourbee.model.config import Qwen3Config
from fourbee.training.attention import TrainingAttention
from fourbee.training.losses import next_token_loss
from fourbee.training.network import TrainableQwen3
from fourbee.training.operations import TrainingOperations
from fourbee.training.optimizers import OptimizerSettings, build_optimizers
from fourbee.training.packing import Pack


@dataclass(frozen=True)
class TrainingShape:
    """A network and what one update sees: `batch` texts of `block` tokens."""

    network: PlainShape
    batch: int
    block: int
    updates: int  # of one round


SHAPES = {
    "shakespeare": TrainingShape(PlainShape(65, 128, 384, 4, 4, 4, 32, 64), 12, 64, 40),
    "mini": TrainingShape(PlainShape(4096, 256, 768, 4, 4, 2, 128, 256), 16, 256, 2),
    "vocabulary": TrainingShape(PlainShape(151_936, 256, 768, 2, 4, 2, 64, 256), 8, 256, 1),
}


class OurLoop:
    """AdamW on packs of equal texts, as `training/trainer.py` makes its updates."""

    def __init__(self, shape: TrainingShape, ids: npt.NDArray[Any], precision: str) -> None:
        keep_freed_memory()
        network = shape.network
        self.model = TrainableQwen3(
            Qwen3Config(
                vocab_size=network.vocab, hidden_size=network.width,
                intermediate_size=network.inner, num_hidden_layers=network.layers,
                num_attention_heads=network.heads, num_key_value_heads=network.kv_heads,
                head_dim=network.head_dim, max_position_embeddings=network.positions,
                rope_theta=network.theta, torch_dtype="float32",
            )
        )  # fmt: skip
        self.ops = TrainingOperations("cpu", DTYPES[precision])
        self.ids, self.shape = ids.astype(np.int64), shape
        self.parameters = self.model.trained_tensors()
        self.optimizers = build_optimizers(self.parameters, OptimizerSettings())
        self.random = np.random.default_rng(0)

    def step(self, rate: float) -> float:
        """One update; its loss."""
        pack = self._pack()
        ids, positions = torch.from_numpy(pack.ids), torch.from_numpy(pack.positions)
        hidden = self.model(ids, positions, TrainingAttention(pack.lengths), self.ops)
        loss = next_token_loss(hidden, self.model.head(), pack, self.ops).loss / pack.num_targets
        del hidden
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    @property
    def targets(self) -> int:
        """Of one update: nothing predicts a text's first token."""
        return self.shape.batch * (self.shape.block - 1)

    def _pack(self) -> Pack:
        batch, block = self.shape.batch, self.shape.block
        starts = self.random.integers(0, len(self.ids) - block, batch)
        learned = np.ones((batch, block), np.bool_)
        learned[:, 0] = False
        return Pack(
            ids=np.concatenate([self.ids[start : start + block] for start in starts]),
            positions=np.tile(np.arange(block), batch),
            learned=learned.reshape(-1),
            lengths=(block,) * batch,
            documents=tuple(range(batch)),
        )


def random_ids(shape: TrainingShape) -> npt.NDArray[Any]:
    """A text that is no text, with frequent tokens and rare ones."""
    drawn: npt.NDArray[Any] = np.random.default_rng(1).random(100_000)
    return (shape.network.vocab * drawn**2).astype(np.int64)


def main() -> None:
    """Answers a line for a line; peak memory is the process's own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "plain"))
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    ids = random_ids(shape)
    loop: OurLoop | PlainLoop
    if options.side == "ours":
        loop = OurLoop(shape, ids, options.precision)
        targets = loop.targets
    else:
        loop = PlainLoop(shape.network, ids, shape.batch, shape.block, options.precision)
        targets = shape.batch * shape.block
    print(json.dumps({"ready": options.side}), flush=True)
    for line in sys.stdin:
        started, processor = time.perf_counter(), time.process_time()
        losses = [loop.step(1e-3) for _ in range(int(line))]
        answer = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - processor,
            "targets": targets * int(line),
            "loss": losses[-1],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
