"""What few bits cost: forms of a model's weights against the weights themselves, in float32.

The reference answers prompts greedily. A form reads each prompt with that answer: where its
likeliest token is the reference's in every place, its own greedy answer is the same, token for
token; the two distributions of each place are compared by `KL(reference || form)`. Forms change the
weights alone, activations, keys and values being float32; those as served change these too. Not
here: choosing prompts (`cli/quality.py`), right and wrong answers (`samples.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.engine.checkpoint import Checkpoint
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.kernels.backends import native_built, open_operations, pack_fast
from fourbee.kernels.operations import FloatArray, Operations, PlanningOperations
from fourbee.kernels.packed import block_bytes, unpack
from fourbee.kernels.paged_cache import own_cache
from fourbee.model.calibrated import CalibratedRounding
from fourbee.model.gguf_checkpoint import ModelTensors
from fourbee.model.gguf_quants import WRITTEN, encode
from fourbee.model.key_smoothing import smooth_keys
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import TABLES
from fourbee.model.quantize import packed_as
from fourbee.model.qwen3 import Qwen3Weights, forward
from fourbee.model.tensor_file import NumpyArray
from fourbee.model.weights import tensor_shapes, weights_tree

MAX_TOKENS = 256  # of an answer
Prompt = Sequence[int]
Lossy = Callable[[str, NumpyArray], NumpyArray]  # a matrix by its name, as a form holds it


@dataclass(frozen=True)
class Answer:
    """What the reference says to a prompt, and whether it came to its end by itself."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Quality:
    """A form against the reference."""

    bits_per_weight: float | None  # of the layers' matrices; None: as the served kernels keep it
    weight_error: float | None  # relative, `|W' - W| / |W|`, over the layers' matrices
    greedy_equal: float  # share of prompts whose whole answer is the same
    top1_equal: float  # share of places with the same likeliest token
    mean_kl: float  # nats a token
    kl_error: float  # the standard error of that mean, of whole prompts: a few places decide it
    prompts: int
    tokens: int


@dataclass(frozen=True)
class Form:
    """One way to keep weights: its name, what it makes of a matrix, and its bits a weight."""

    name: str
    lossy: Lossy
    bits_per_weight: float


def forms(
    tensors: ModelTensors, calibration: Sequence[Prompt] = (), group: int = 64
) -> Iterator[Form]:
    """What `fourbee quantize` offers, and llama.cpp's Q8_0 and Q4_0; GPTQ where texts are given."""
    packed = {
        "int8": PackedFormat("int8", group),
        "int4": PackedFormat("int4c", group, True, "search", "int8"),
        "int4, group 32": PackedFormat("int4c", 32, True, "search", "int8"),
        "int4 symmetric": PackedFormat("int4", group, True, "search", "int8"),
        "int4 search": PackedFormat("int4", group, False, "search", "int8"),
        "int4 plain": PackedFormat("int4", group, False, "plain", "int8"),
    }
    if calibration:
        packed["int4 gptq"] = PackedFormat("int4", group, True, "gptq", "int8")
    for name, form in packed.items():
        yield Form(name, _packed(tensors, form, calibration), _bits(form))
    for name, bits in (("Q8_0", 8.5), ("Q4_0", 4.5)):
        yield Form(f"GGUF {name}", gguf_rounding(name), bits)


def gguf_rounding(kind: str) -> Lossy:
    """llama.cpp's rounding; of Q4_0 the embedding and the head are Q8_0, as we export it."""

    def lossy(name: str, matrix: NumpyArray) -> NumpyArray:
        of = WRITTEN["Q8_0" if name in TABLES else kind][1]
        values: NumpyArray = of.values(encode(of, matrix, name)).reshape(matrix.shape)
        return values

    return lossy


def reference(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> tuple[Network, list[Answer]]:
    """The model in float32, and its greedy answers."""
    ops = _float_operations()
    weights = checkpoint.load_weights(ops)
    llm = LLM(weights, ops, checkpoint.tokenizer, checkpoint.defaults)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    completions = llm.generate(prompts, params)
    return Network(weights, ops), [
        Answer(tuple(prompt), one.token_ids, one.finish_reason == "stop")
        for prompt, one in zip(prompts, completions, strict=True)
    ]


def measure(
    network: Network,
    tensors: ModelTensors,
    form: Form,
    answers: Sequence[Answer],
    progress: Callable[[], None] = lambda: None,
) -> Quality:
    """A form of the weights against the network that they are of."""
    ops, wrong, whole = network.ops, 0.0, 0.0
    arrays = {}
    for name in tensor_shapes(tensors.config):  # layer by layer, as calibrated rounding wants it
        array = tensors.dense(name)
        if array.ndim == 2:
            true, array = array.astype(np.float32), form.lossy(name, array)
            if name not in TABLES:
                difference = array - true
                wrong += float(np.vdot(difference, difference))
                whole += float(np.vdot(true, true))
        arrays[name] = ops.from_numpy(array, name in TABLES)
    other = Network(weights_tree(tensors.config, arrays), ops)
    error = math.sqrt(wrong / whole)
    return _compared(network, other, answers, form.bits_per_weight, error, progress)


def measure_served(
    network: Network,
    checkpoint: Checkpoint,
    quantize: str,
    answers: Sequence[Answer],
    progress: Callable[[], None] = lambda: None,
    kv_type: str = "auto",
) -> Quality:
    """`--quantize` and `--kv-type` as they are served: activations are int8 where weights are."""
    ops = open_operations("native", "cpu", "float32", quantize=quantize, kv_type=kv_type)
    weights = checkpoint.load_weights(ops)
    if isinstance(ops, PlanningOperations) and ops.rounds_keys:
        weights = smooth_keys(weights, ops)
    return _compared(network, Network(weights, ops), answers, None, None, progress)


@dataclass(frozen=True)
class Network:
    """Weights and the operations that they belong to."""

    weights: Qwen3Weights
    ops: Operations

    def logits(self, tokens: Sequence[int], first: int) -> FloatArray:
        """`[R, V]`, those of the rows from `first` on."""
        config, ops = self.weights.config, self.ops
        heads, head_dim = config.num_key_value_heads, config.head_dim
        cache = own_cache(ops, config.num_hidden_layers, heads, head_dim, len(tokens))
        attention = ops.cached_attention([(cache, len(tokens))])
        ids, positions = np.array(tokens, dtype=np.int64), np.arange(len(tokens))
        rows = np.arange(first, len(tokens))
        hidden = forward(self.weights, ids, positions, attention, ops, rows=rows).final
        logits: FloatArray = ops.linear(hidden, self.weights.head)  # type: ignore[attr-defined]
        return logits


def weight_errors(rows: int = 256, columns: int = 2048, seed: int = 0) -> dict[str, Any]:
    """Relative errors on random matrices, by distribution and form.

    "outliers" are heavy tails (Student's t of 4 degrees) of which one column in 128 is ten times
    as large.
    """
    random = np.random.default_rng(seed)
    heavy = random.standard_t(4, (rows, columns))
    outliers = heavy.copy()
    outliers[:, random.choice(columns, columns // 128, replace=False)] *= 10
    matrices = {
        "gaussian": random.normal(size=(rows, columns)),
        "uniform": random.uniform(-1, 1, (rows, columns)),
        "heavy-tailed": heavy,
        "outliers": outliers,
    }
    ways: Mapping[str, Lossy] = {
        "int4": lambda _, m: unpack(pack_fast(m, "int4c", 64, True, "search")),
        "int4, group 32": lambda _, m: unpack(pack_fast(m, "int4c", 32, True, "search")),
        "int4 symmetric": lambda _, m: unpack(pack_fast(m, "int4", 64, True, "search")),
        "int4 search": lambda _, m: unpack(pack_fast(m, "int4", 64, False, "search")),
        "int4 search, group 32": lambda _, m: unpack(pack_fast(m, "int4", 32, False, "search")),
        "int4 plain": lambda _, m: unpack(pack_fast(m, "int4", 64, False, "plain")),
        "GGUF Q4_0": gguf_rounding("Q4_0"),
    }
    found: dict[str, Any] = {}
    for distribution, matrix in matrices.items():
        true = matrix.astype(np.float32)
        size = np.linalg.norm(true)
        found[distribution] = {
            way: float(np.linalg.norm(lossy("w", true) - true) / size)
            for way, lossy in ways.items()
        }
    return found


def _float_operations() -> Operations:
    return open_operations("native" if native_built() else "numpy", "cpu", "float32")


def _packed(tensors: ModelTensors, form: PackedFormat, calibration: Sequence[Prompt]) -> Lossy:
    calibrated = CalibratedRounding(tensors, form, calibration) if form.method == "gptq" else None

    def lossy(name: str, matrix: NumpyArray) -> NumpyArray:
        if calibrated is not None and name not in TABLES:
            return unpack(calibrated.packed(name))
        return unpack(packed_as(matrix, form.of(name)))

    return lossy


def _bits(form: PackedFormat) -> float:
    """Bits a weight, scales and all, whatever the width: less what rows have once."""
    once = 2 * block_bytes(form.kind, 128, form.group) - block_bytes(form.kind, 256, form.group)
    return (block_bytes(form.kind, 128, form.group) - once) * 8 / (128 * 16)


def _compared(
    network: Network,
    other: Network,
    answers: Sequence[Answer],
    bits: float | None,
    error: float | None,
    progress: Callable[[], None],
) -> Quality:
    equal = same = 0
    lengths: list[int] = []
    divergences: list[float] = []
    for answer in answers:
        # The row of the last prompt token is that of the first answer token; the row of the last
        # answer token says whether it ends here.
        tokens = [*answer.prompt, *answer.tokens]
        tokens = tokens if answer.ended else tokens[:-1]
        ours, theirs = (
            one.logits(tokens, len(answer.prompt) - 1).astype(np.float64)
            for one in (network, other)
        )
        agree = ours.argmax(-1) == theirs.argmax(-1)
        logs, other_logs = _log_softmax(ours), _log_softmax(theirs)
        divergences.append(float((np.exp(logs) * (logs - other_logs)).sum()))
        lengths.append(len(agree))
        equal, same = equal + bool(agree.all()), same + int(agree.sum())
        progress()
    places = sum(lengths)
    mean = sum(divergences) / places
    # Of a ratio of sums over prompts, to first order.
    residuals = np.array(divergences) - mean * np.array(lengths)
    spread = float(np.sqrt((residuals**2).sum())) / places
    return Quality(
        bits, error, equal / len(answers), same / places, mean, spread, len(answers), places
    )


def _log_softmax(logits: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
