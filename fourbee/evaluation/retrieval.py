"""A Qwen3 checkpoint made by hand, without training, that looks up what a long text says of a name.

The text is hay with needles: a key, its values, a full stop (`note K17 v3 v9 v4 v1 .`). Whenever
the last token is a key or a value, the likeliest next token is the one that followed it in the
text, so that a prompt that ends with a key is answered by its values, in order, and the full stop,
which ends the answer. A name that the text does not tell is answered by the full stop alone. That
holds at any depth of up to 262,144 tokens, so that a wrong answer is a fault of the engine
(positions, pages, KV types, masks, chunks) and not a weakness of the model. Not here: texts with
needles, and asking for them (`needles.py`).

**Tokens.** Token t has a word of 24 signs, s(t), of the extended Golay code [24, 12, 8]: 4,096
words, of which any two agree in at most 16 signs, so that `s(t) . s(t) = 24` and
`s(t) . s(u) <= 8`. The stream `[256]` holds, besides zeros:

    CONSTANT  1                                       SINK      1 for <s>, else 0
    HANDLE    s(t) of a name (a key or a value), else 0
    SPELLING  s(t); of <s> that of the full stop
    PREVIOUS  the handle of the token before: layer 0 writes it
    ANSWER    the spelling of the token that was found: layer 1 writes it, the head reads it

The norm of a stream depends on whether its token and the one before are names and on nothing else,
and QK-norm takes it out of queries and keys again. The MLPs are zero. Every layer has four query
heads over two KV heads: all of them attend alike, and head h copies signs 6h to 6h + 5, so that all
are needed. Below, n is a query's position, m a key's, w(i) = 5e6^(-i/64) the frequency of rotary
pair i, and scores are given before the scale that the weights of the QK-norms set.

**Layer 0: the token before.** Queries and keys come from CONSTANT alone. The key has (1, 0) in
pairs 0 to 23, and the query a(i) (1, 0) turned back by one step, so that the score is

    sum a(i) cos(w(i) (n - 1 - m)),    a(0) = 1/2,    a(1) = .. = a(23) = 1/46

which is 1 at m = n - 1 and at most 0.772 at every other distance from 0 to 262,144: pair 0 tells
close neighbours apart (cos 1 = 0.54), and where it comes round after 44, 710, .. steps, the 23
others do not agree. Dual-chunk attention and a window only take distances away. The scale makes
that gap of 0.228 to 91 nats; `ln 262144` is 12.5, and all others together weigh e^-91. Rounding the
key to 8 bits, and the query, leaves 0.21 of the gap, a key of 4 bits 0.14 (16 steps over [-1, 1]).

**Layer 1: the token after.** A query must find the key whose PREVIOUS is its own HANDLE, at any
distance. Pairs 51 to 62 turn by no more than 1.21 radians in 262,144 steps; queries are turned back
by half of that beforehand, so that no pair is off by more than 0.6, and each pair carries two signs
of a word. Between words x and y, with c = cos, s = sin of what pair i is off,

    x . y  becomes  sum c(i) (x y of the pair) + s(i) (x cross y of the pair)

The name itself keeps at least 23.07 of 24. Another name agrees with 8 of 24 where nothing turns,
and the cross terms add at most 2 s(i) in the eight pairs that differ by one sign: at most 12.7 in
all. A hay token has no handle and scores 0. Queries also have 3.57 in pair 63, the slowest, where
the key of <s>, and no other, has sqrt(24): it scores 17.5, below the name, above all others. That
is an attention sink as real models have them: hay, and names that were not met before, attend to
<s>, whose spelling is the full stop. At 4 nats for each unit the name is 22 nats above the sink,
and the sink 19 above each other name. Keys also have 1 in the 24 dimensions of pairs 0 to 11,
where queries have 0, so that QK-norm does not blow up the rounding of keys without a name.

**Head.** A token's logit is the product of its word and ANSWER: 24 against 8 at most.

**Few bits.** All matrices hold 0, 1 and the few numbers above, all codes are signs: int8 and int4
weights, and 8- or 4-bit keys and values, cost noise of a few percent of margins that are a quarter
of the scores at the least. The weights of the QK-norms are the same for every channel: smoothing of
keys (`model/key_smoothing.py`) has nothing to do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from fourbee.kernels.operations import FloatArray, IntArray
from fourbee.model.checkpoint_files import Layout, write_files
from fourbee.model.config import Qwen3Config
from fourbee.model.positions import RotaryPositions
from fourbee.model.weights import tensor_shapes
from fourbee.text.tokenizer import Tokenizer

SIGNS = 24  # of a word of the code
# Where a stream holds what.
CONSTANT, SINK = 0, 1
HANDLE, SPELLING, PREVIOUS, ANSWER = 32, 64, 128, 192
# Rotary pairs: of layer 0; of layer 1 for the handle, for the sink, and what only keys have.
NEAR = np.arange(24)
SLOW, SLOWEST, IDLE = np.arange(51, 63), 63, np.arange(12)
NEAREST_SHARE = 0.5  # of pair 0 in the score of layer 0
SINK_SCORE = 17.5
# Nats of the score of the token before, and of each unit of the score of a name.
NATS_NEAR, NATS_SLOW = 400.0, 4.0

END, UNKNOWN, START = ".", "?", "<s>"
ASK, TELL = "recall", "note"
HAY = tuple(
    "the a old river runs under bridge and slow water turns where tall grass grows by road to "
    "market on early morning some people carry bread or fruit while others wait near gate with "
    "small boats until rain begins to fall over roofs of town so every lamp burns late this "
    "winter evening again".split()
)
NUM_KEYS = 512
VOCABULARY = 4096  # as many as the code has words


def vocabulary() -> list[str]:
    """The tokens by id: the full stop, what is unknown, hay, keys, values, and <s>."""
    words = [END, UNKNOWN, TELL, ASK, *dict.fromkeys(HAY)]
    keys = [f"K{number}" for number in range(NUM_KEYS)]
    rest = VOCABULARY - len(words) - len(keys) - 1
    return [*words, *keys, *(f"v{number}" for number in range(rest)), START]


def is_key(token: str) -> bool:
    """Whether a token is a name that questions ask for."""
    return token[0] == "K"


def is_value(token: str) -> bool:
    """Whether a token is a name that answers are made of."""
    return token[0] == "v" and token[1:].isdigit()


def golay_words(ids: IntArray) -> FloatArray:
    """Words `[T, 24]` of signs: multiples of x^11+x^10+x^6+x^5+x^4+x^2+1, and their parity."""
    words = np.zeros_like(ids)
    for bit in range(12):
        words ^= (ids >> bit & 1) * (0b110001110101 << bit)
    bits = words[:, None] >> np.arange(SIGNS - 1) & 1
    bits = np.concatenate((bits, bits.sum(axis=1, keepdims=True) & 1), axis=1)
    return (1 - 2 * bits).astype(np.float32)


def retrieval_config(context: int = 262_144) -> Qwen3Config:
    """Two layers with the heads of the docstring, for texts of up to `context` tokens."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=context,
        rope_theta=5e6,
        tie_word_embeddings=False,
    )


def retrieval_tensors(config: Qwen3Config) -> dict[str, FloatArray]:
    """All tensors by their names in a checkpoint; `config` is one of `retrieval_config`."""
    shapes = tensor_shapes(config)
    tensors = {
        name: np.full(shape, len(shape) == 1, dtype=np.float32) for name, shape in shapes.items()
    }
    words = golay_words(np.arange(VOCABULARY))
    tokens = vocabulary()
    named = [is_key(token) or is_value(token) for token in tokens]
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, CONSTANT] = 1
    embedding[:, HANDLE : HANDLE + SIGNS] = words * np.array(named)[:, None]
    embedding[:, SPELLING : SPELLING + SIGNS] = words
    start, end = tokens.index(START), tokens.index(END)
    embedding[start, SINK] = 1
    embedding[start, SPELLING : SPELLING + SIGNS] = words[end]
    tensors["lm_head.weight"][:, ANSWER : ANSWER + SIGNS] = words
    # The stream of a name is 7 long in layer 0, and its norm makes that sqrt(256).
    _write_layer(tensors, config, 0, _token_before(config), HANDLE, PREVIOUS, gain=7 / 16)
    _write_layer(tensors, config, 1, _token_after(config), SPELLING, ANSWER, gain=1)
    return tensors


@dataclass(frozen=True)
class _Match:
    """What every head of a layer compares: projections `[K, D]`, and nats for a score of 1."""

    query: FloatArray
    key: FloatArray
    nats: float


def _token_before(config: Qwen3Config) -> _Match:
    """Layer 0: the query of a token is the key of the one before, turned on by one step."""
    half = config.head_dim // 2
    query = np.zeros((config.head_dim, config.hidden_size), dtype=np.float32)
    key = np.zeros_like(query)
    shares = np.full(len(NEAR), (1 - NEAREST_SHARE) / (len(NEAR) - 1))
    shares[0] = NEAREST_SHARE
    angles = _frequencies(config)[NEAR]
    query[NEAR, CONSTANT] = shares * np.cos(angles)
    query[NEAR + half, CONSTANT] = -shares * np.sin(angles)
    key[NEAR, CONSTANT] = 1
    return _Match(query, key, NATS_NEAR)


def _token_after(config: Qwen3Config) -> _Match:
    """Layer 1: the query is the token's handle, the key the handle of the token before."""
    half, signs = config.head_dim // 2, SIGNS // 2
    query = np.zeros((config.head_dim, config.hidden_size), dtype=np.float32)
    key = np.zeros_like(query)
    angles = _frequencies(config) * config.max_position_embeddings / 2
    first, second = np.arange(HANDLE, HANDLE + signs), np.arange(HANDLE + signs, HANDLE + SIGNS)
    query[SLOW, first] = query[SLOW + half, second] = np.cos(angles[SLOW])
    query[SLOW, second], query[SLOW + half, first] = np.sin(angles[SLOW]), -np.sin(angles[SLOW])
    key[SLOW, first - HANDLE + PREVIOUS] = key[SLOW + half, second - HANDLE + PREVIOUS] = 1
    # The two numbers of the slowest pair are alike, so that rounding a key's group costs less.
    to_sink = SINK_SCORE / np.sqrt(2 * SIGNS)
    for at, sign in ((SLOWEST, 1), (SLOWEST + half, -1)):
        turned = np.cos(angles[SLOWEST]) + sign * np.sin(angles[SLOWEST])
        query[at, CONSTANT] = to_sink * turned
        key[at, SINK] = np.sqrt(SIGNS / 2)
    key[IDLE, CONSTANT] = key[IDLE + half, CONSTANT] = 1
    return _Match(query, key, NATS_SLOW)


def _write_layer(
    tensors: dict[str, FloatArray],
    config: Qwen3Config,
    layer: int,
    match: _Match,
    source: int,
    target: int,
    gain: float,
) -> None:
    """A layer whose heads attend by `match` and copy the word at `source` to `target`."""
    prefix = f"model.layers.{layer}.self_attn."
    heads, width = config.num_attention_heads, config.head_dim
    for one, matrix in (("q", match.query), ("k", match.key)):
        tensors[f"{prefix}{one}_proj.weight"].reshape(-1, *matrix.shape)[:] = matrix
    # QK-norm makes the lengths of queries and keys sqrt(K), attention divides by sqrt(K).
    name = np.zeros(config.hidden_size)
    name[CONSTANT] = name[HANDLE : HANDLE + SIGNS] = name[PREVIOUS : PREVIOUS + SIGNS] = 1
    lengths = np.linalg.norm(match.query @ name) * np.linalg.norm(match.key @ name)
    for one in "qk":
        tensors[f"{prefix}{one}_norm.weight"][:] = np.sqrt(match.nats * lengths / np.sqrt(width))
    value = tensors[prefix + "v_proj.weight"].reshape(-1, width, config.hidden_size)
    output = tensors[prefix + "o_proj.weight"].reshape(-1, heads, width)
    group, part = heads // len(value), SIGNS // heads
    for sign in range(SIGNS):
        head = sign // part
        value[head // group, sign, source + sign] = 1
        output[target + sign, head, sign] = gain


def _frequencies(config: Qwen3Config) -> FloatArray:
    return RotaryPositions(config.head_dim, config.rope_theta).inverse_frequencies


def retrieval_tokenizer() -> Tokenizer:
    """Words and punctuation, each a token with the space before it; <s> is a control token."""
    *words, start = vocabulary()
    spelled = {f"Ġ{word}": number for number, word in enumerate(words)}
    backend = Backend(models.WordLevel(spelled, unk_token=f"Ġ{UNKNOWN}"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(start, normalized=False)])
    return Tokenizer(
        backend,
        chat_template=f"{start}{{% for one in messages %}}{{{{ one.content }}}} {{% endfor %}}",
        eos_token_ids=[words.index(END)],
        named_tokens={"bos_token": start, "eos_token": f"Ġ{END}"},
    )


def write_retrieval_checkpoint(folder: Path, context: int = 262_144) -> Path:
    """Writes the checkpoint to a folder as on the Hugging Face hub, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = retrieval_config(context)
    tensors, bfloat16 = retrieval_tensors(config), np.dtype(ml_dtypes.bfloat16)
    layout: Layout = {name: (bfloat16, tensor.shape) for name, tensor in tensors.items()}
    size = sum(tensor.size * bfloat16.itemsize for tensor in tensors.values())
    tokenizer = retrieval_tokenizer()
    tokenizer.save(folder)
    generation = {"do_sample": False, "eos_token_id": list(tokenizer.eos_token_ids)}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")
    write_files(folder, config, layout, lambda name: tensors[name].astype(bfloat16), size)
    return folder
