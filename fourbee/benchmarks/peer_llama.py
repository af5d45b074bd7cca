"""llama.cpp as one of the systems, through llama-cpp-python: a script that imports nothing of ours.

`python peer_llama.py '{"layers": 36, ...}' THREADS` runs in any environment that has `llama_cpp` and `gguf`:
writes a GGUF file of the shape with random Q4_0 weights (the tied table Q6_K, as llama.cpp's own
quantiser has it), loads it, and answers a line of JSON for a line. Flash attention, batches of 512.
A depth is made of the keys and values of 512 tokens, repeated: reading 16,384 would take minutes.
"""

# ruff: noqa: E501
import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 512  # tokens that are read at a time


def describe(writer: Any, shape: dict[str, Any]) -> None:
    """What llama.cpp asks of a file beside its tensors; the tokens are names only."""
    hidden, inner, vocabulary = shape["hidden"], shape["inner"], shape["vocabulary"]
    writer.add_context_length(262144)
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_freq_base(5e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["t 1"])


def write_model(path: Path, shape: dict[str, Any]) -> int:
    """Random weights as llama.cpp's quantiser would lay them out; bytes read by a step."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(path), "qwen3")
    hidden, inner, vocabulary = shape["hidden"], shape["inner"], shape["vocabulary"]
    query, key = shape["heads"] * 128, shape["kv_heads"] * 128
    describe(writer, shape)
    total = 0

    def matrix(name: str, rows: int, columns: int, kind: Any = Kind.Q4_0) -> None:
        nonlocal total
        if kind == Kind.Q4_0:  # a float16 scale and 32 halves of bytes
            data = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
            data[..., :2] = np.array([1.7 / 8 / columns**0.5], np.float16).view(np.uint8)
        else:  # Q6_K: 192 bytes of numbers, 16 int8 scales, a float16 scale
            data = rng.integers(0, 256, (rows, columns // 256, 210), dtype=np.uint8)
            data[..., 192:208] = 1
            data[..., 208:] = np.array([1.7 / 32 / columns**0.5], np.float16).view(np.uint8)
        data = data.reshape(rows, -1)
        total += data.nbytes
        writer.add_tensor(name, data, raw_dtype=kind)

    def ones(name: str, width: int) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    matrix("token_embd.weight", vocabulary, hidden, Kind.Q6_K)
    if not shape["tied"]:
        total = 0  # the embedding is not read by a step then
        matrix("output.weight", vocabulary, hidden, Kind.Q6_K)
    ones("output_norm.weight", hidden)
    for layer in range(shape["layers"]):
        p = f"blk.{layer}."
        ones(p + "attn_norm.weight", hidden)
        ones(p + "ffn_norm.weight", hidden)
        ones(p + "attn_q_norm.weight", 128)
        ones(p + "attn_k_norm.weight", 128)
        matrix(p + "attn_q.weight", query, hidden)
        matrix(p + "attn_k.weight", key, hidden)
        matrix(p + "attn_v.weight", key, hidden)
        matrix(p + "attn_output.weight", hidden, query)
        matrix(p + "ffn_gate.weight", inner, hidden)
        matrix(p + "ffn_up.weight", inner, hidden)
        matrix(p + "ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def deepened(state: Any, depth: int) -> Any:
    """The state of one sequence with its tokens repeated until there are `depth`, or None.

    The layout is llama.cpp's own (llama-kv-cache.cpp: two words, then for each stream a count,
    position and owners of each cell, and for each layer a type, a row's size and the rows of keys;
    the same of values). None where a version has another.
    """
    words = state[: len(state) // 4 * 4].view(np.uint32)
    place = 3
    while place < len(words) and not words[place]:
        place += 1  # streams of other sequences
    count = int(words[place])
    cells = words[place + 1 : place + 1 + 3 * count].reshape(-1, 3)
    transposed, layers = (int(word) for word in words[place + 1 + 3 * count :][:2])
    if transposed or not (cells[:, 0] == np.arange(count)).all() or not (cells[:, 1] == 1).all():
        return None
    rows = np.arange(depth) % count
    positions = cells[rows]
    positions[:, 0] = np.arange(depth)
    start, byte = (place + 1 + 3 * count) * 4, np.uint8
    before = np.append(words[:place], depth).astype(np.uint32)
    parts = [before.view(byte), positions.view(byte).ravel(), state[start : start + 8]]
    start += 8
    for _ in range(2 * layers):
        size = int(state[start + 4 : start + 12].copy().view(np.uint64)[0])
        end = start + 12 + size * count
        if end > len(state):
            return None
        parts += [
            state[start : start + 12],
            state[start + 12 : end].reshape(count, size)[rows].ravel(),
        ]
        start = end
    return np.concatenate([*parts, state[start:]])


class Llama:
    """A model and a context that is made anew for each size of work."""

    def __init__(self, path: Path, vocabulary: int, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.vocabulary, self.threads = vocabulary, threads
        self.api.llama_log_set(_SILENT, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        self.model = self.api.llama_model_load_from_file(str(path).encode(), params)
        self.context: Any = None
        self.filled: tuple[int, int] | None = None  # depth and batch of what the context holds

    def seconds(self, kind: str, tokens: int, depth: int, batch: int) -> float:
        self._fill(depth, batch, depth + tokens + 8)
        started = time.perf_counter()
        if kind == "prefill":
            self._read(0, depth, tokens)
        else:
            for step in range(tokens):
                self._decode([(sequence, depth + step, True) for sequence in range(batch)])
                for sequence in range(batch):
                    logits = self.api.llama_get_logits_ith(self.context, sequence)
                    np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()
        elapsed = time.perf_counter() - started
        memory = self.api.llama_get_memory(self.context)
        for sequence in range(batch):  # the depth stays for the next round
            self.api.llama_memory_seq_rm(memory, sequence, depth, -1)
        return elapsed

    def _fill(self, depth: int, batch: int, length: int) -> None:
        if self.filled == (depth, batch) and length * batch <= self.api.llama_n_ctx(self.context):
            return
        if self.context:
            self.api.llama_free(self.context)
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = length * batch, _CHUNK, _CHUNK
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1
        self.context = self.api.llama_init_from_model(self.model, params)
        self.filled = (depth, batch)
        for sequence in range(batch):
            self._read(sequence, 0, min(depth, _CHUNK))
            if depth > _CHUNK:
                self._deepen(sequence, depth)

    def _deepen(self, sequence: int, depth: int) -> None:
        byte = ctypes.POINTER(ctypes.c_uint8)
        size = self.api.llama_state_seq_get_size(self.context, sequence)
        state = np.empty(size, np.uint8)
        self.api.llama_state_seq_get_data(self.context, state.ctypes.data_as(byte), size, sequence)
        deep = deepened(state, depth)
        if deep is None:
            self._read(sequence, _CHUNK, depth - _CHUNK)
            return
        source = deep.ctypes.data_as(byte)
        if not self.api.llama_state_seq_set_data(self.context, source, len(deep), sequence):
            raise SystemExit(f"llama.cpp takes no state of {depth} tokens")

    def _read(self, sequence: int, start: int, count: int) -> None:
        for first in range(0, count, _CHUNK):
            here = min(_CHUNK, count - first)
            self._decode([(sequence, start + first + i, i == here - 1) for i in range(here)])

    def _decode(self, rows: list[tuple[int, int, bool]]) -> None:
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (sequence, position, logits) in enumerate(rows):
            batch.token[i] = (position * 7919 + sequence * 31 + 17) % self.vocabulary
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        code = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if code:
            raise SystemExit(f"llama_decode returned {code}")


# Messages of the library go nowhere.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def main() -> None:
    shape, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = Path(folder) / "model.gguf"
        size = write_model(path, shape)
        llama = Llama(path, shape["vocabulary"], threads)
    print(json.dumps({"weight_bytes": size}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": llama.seconds(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
