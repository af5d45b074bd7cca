"""OpenVINO as one of the systems: its CPU plugin over a stateful 4-bit model; imports none of ours.

That is what openvino-genai's pipelines run for a batch of equal lengths, without their Python and
their sampling. Keys and values in u8, dynamic quantisation and latency as openvino-genai sets them.
A prompt that goes on at a depth is read by the plugin's attention for single tokens, as it does for
every stateful model; paged attention, which openvino-genai has too, is not run here.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-not-found,unused-ignore]
import openvino_model

_CHUNK = 4096  # a longer prompt is read in pieces: logits aside, memory grows with its square
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "KV_CACHE_PRECISION": "u8",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64",
}


class Peer:
    """A compiled model; its states are set anew for each round."""

    def __init__(self, config: dict[str, Any], threads: int) -> None:
        self.config = config
        self.builder = openvino_model.Builder(config)  # holds the weights
        model = self.builder.build()
        self.weight_bytes = self.builder.bits / 8
        settings = _SETTINGS | {"INFERENCE_NUM_THREADS": str(threads)}
        self.compiled = ov.Core().compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self._kept: tuple[tuple[int, int], Any] | None = None

    def seconds(self, kind: str, tokens: int, depth: int, batch: int) -> float:
        self.request.reset_state()
        ids = np.arange(batch)[:, None] % self.config["vocab_size"]
        if depth:
            # The last position by a step that is not timed: in it the plugin takes the states in.
            self._fill(depth - 1, batch)
            ids = self._step(ids, depth - 1)
        if kind == "prefill":
            prompt = np.arange(tokens)[None] % min(self.config["vocab_size"], 1000)
            started = time.perf_counter()
            for begin in range(0, tokens, _CHUNK):
                self._step(prompt[:, begin : begin + _CHUNK], depth + begin)
            return time.perf_counter() - started
        started = time.perf_counter()
        for step in range(tokens):
            ids = self._step(ids, depth + step)
        return time.perf_counter() - started

    def _step(self, tokens: Any, start: int) -> Any:
        """Tokens `[B, T]` from position `start` on; the greedy next ones, `[B, 1]`."""
        batch, count = tokens.shape
        positions = np.tile(np.arange(start, start + count), (batch, 1))
        self.request.infer({"input_ids": tokens.astype(np.int64), "position_ids": positions,
                            "beam_idx": np.arange(batch, dtype=np.int32)})  # fmt: skip
        logits = self.request.get_output_tensor(0).data
        return logits[:, -1].argmax(axis=-1)[:, None]

    def _fill(self, length: int, batch: int) -> None:
        """Random keys and values, the same in all layers."""
        if not length:
            return
        if self._kept is None or self._kept[0] != (length, batch):
            shape = (batch, self.config["num_key_value_heads"], length, self.config["head_dim"])
            drawn = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            self._kept = (length, batch), ov.Tensor(drawn)
        for state in self.request.query_state():
            state.state = self._kept[1]


def main() -> None:
    """`python peer_openvino.py SHAPE THREADS`: answers a line of JSON for a line."""
    shape, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    config = {
        "num_hidden_layers": shape["layers"], "hidden_size": shape["hidden"], "head_dim": 128,
        "intermediate_size": shape["inner"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "vocab_size": shape["vocabulary"],
        "tie_word_embeddings": shape["tied"], "rope_theta": 5e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    peer = Peer(config, threads)
    print(json.dumps({"weight_bytes": peer.weight_bytes}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": peer.seconds(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
