"""The hand-made checkpoint: its margins by hand, and the same ones in the network itself."""

from __future__ import annotations

import numpy as np
import pytest

from fourbee.engine.llm import LLM
from fourbee.evaluation.needles import haystack, needle_prompt, retrieval_weights
from fourbee.evaluation.retrieval import (
    END,
    NATS_NEAR,
    NATS_SLOW,
    SINK_SCORE,
    golay_words,
    retrieval_tokenizer,
    vocabulary,
    write_retrieval_checkpoint,
)
from fourbee.kernels.attention_pattern import Causal, DualChunk, PageLists, SlidingWindow
from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.numpy_ops import NumpyOperations
from fourbee.kernels.operations import Rotary
from fourbee.kernels.paged_cache import own_cache
from fourbee.model.qwen3 import block_forward, forward

CONTEXT = 262_144
FREQUENCIES = 5e6 ** (-np.arange(64) / 64)
WORDS = golay_words(np.arange(4096))
TOKENS = {token: number for number, token in enumerate(vocabulary())}

needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


def near_scores(distances) -> np.ndarray:
    """Layer 0 by hand: scores of keys so many steps before the query, 1 at a distance of 1."""
    shares = np.array([1 / 2, *[1 / 46] * 23])
    return np.cos(np.outer(np.asarray(distances) - 1, FREQUENCIES[:24])) @ shares


def name_scores(mine, others, distance) -> np.ndarray:
    """Layer 1 by hand: scores `[M, N]` of words of names, in signs that agree."""
    angles = FREQUENCIES[51:63] * (distance - CONTEXT / 2)
    first, second = np.split(mine, 2, axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)
    return turned.astype(np.float32) @ others.T


def test_every_two_words_agree_in_16_of_24_signs_at_most() -> None:
    agreement = WORDS @ WORDS.T
    np.fill_diagonal(agreement, 0)
    assert agreement.max() == 8
    assert set(np.unique(WORDS)) == {-1, 1}
    assert len(vocabulary()) == len(set(vocabulary())) == len(WORDS)


def test_the_token_before_outweighs_all_others_together() -> None:
    distances = np.delete(np.arange(CONTEXT + 1), 1)
    others = near_scores(distances)
    assert near_scores([1]) == pytest.approx(1)
    assert others.max() == pytest.approx(0.772, abs=1e-3)
    assert np.log(np.exp(NATS_NEAR * (others - 1)).sum()) < -91


def rounded(values, bits) -> np.ndarray:
    """As pages keep keys: 8 bits about zero, or 4 bits from the least of each 64 numbers on.

    Of a key's dimensions only those are here that are not zero.
    """
    if bits == 8:
        scale = np.abs(values).max(-1, keepdims=True) / 127
        return np.rint(values / scale) * scale
    halves = values.reshape(len(values), 2, -1)
    low = np.minimum(halves.min(-1, keepdims=True), 0)
    scale = np.maximum((np.maximum(halves.max(-1, keepdims=True), 0) - low) / 15, 1e-9)
    return (np.rint((halves - low) / scale) * scale + low).reshape(values.shape)


@pytest.fixture(scope="module")
def near_keys() -> np.ndarray:
    """Keys of layer 0 at all positions `[C, 48]`, as long as the numbers in them make them."""
    angles = np.arange(CONTEXT)[:, None] * FREQUENCIES[:24]
    return np.concatenate((np.cos(angles), np.sin(angles)), axis=1)


@pytest.mark.parametrize(("bits", "gap"), [(8, 0.20), (4, 0.13)])
def test_rounded_keys_leave_most_of_the_gap(near_keys, bits, gap) -> None:
    keys = rounded(near_keys, bits)
    shares = np.array([1 / 2, *[1 / 46] * 23])
    rows = np.random.default_rng(0).integers(1, CONTEXT, 60)
    queries = rounded(near_keys[rows - 1] * np.tile(shares, 2), 8)
    scores = queries.astype(np.float32) @ keys.astype(np.float32).T
    right = scores[np.arange(60), rows - 1].copy()
    scores[np.arange(60), rows - 1] = -1
    scores[np.arange(CONTEXT) > rows[:, None]] = -1
    assert (right - scores.max(1)).min() > gap


@pytest.mark.parametrize("distance", [0, 65_536, CONTEXT // 2, CONTEXT])
def test_names_stay_above_the_sink_and_all_other_names_below(distance) -> None:
    scores = name_scores(WORDS, WORDS, distance)
    own = np.diag(scores).min()
    np.fill_diagonal(scores, -np.inf)
    assert own >= 23.07
    assert scores.max() <= 12.7
    assert min(own - SINK_SCORE, SINK_SCORE - scores.max()) * NATS_SLOW > 19


class Watched:
    """An attention that tells what scores it saw: `[H, T, T]` a layer."""

    def __init__(self, attention) -> None:
        self.attention, self.scores = attention, []

    def __call__(self, layer, query_QTHK, key_TGK, value_TGK):
        key_THK = np.repeat(key_TGK, 2, axis=1)
        self.scores.append(np.einsum("nhk,mhk->hnm", query_QTHK[0], key_THK) / np.sqrt(128))
        return self.attention(layer, query_QTHK, key_TGK, value_TGK)


def test_the_scores_of_the_network_are_those_by_hand() -> None:
    words = "<s> K1 v5 road the K2 v6 v7 road K1".split()
    # As far apart as a context is long.
    positions = np.array([0, 1, 2, 3, 700, 701, 702, 703, CONTEXT - 2, CONTEXT - 1])
    ids = np.array(retrieval_tokenizer().encode(" ".join(words), control_tokens=True))
    ops = NumpyOperations()
    weights = retrieval_weights(ops)
    watched = Watched(ops.cached_attention([(own_cache(ops, 2, 2, 128, 300_000), len(ids))]))
    forward(weights, ids, positions, watched, ops)
    distances = positions[:, None] - positions[None]

    near = NATS_NEAR * near_scores(distances.ravel()).reshape(distances.shape)
    for head in watched.scores[0]:
        assert np.abs(head - near)[distances >= 0].max() < 0.01 * NATS_NEAR

    named = [word[0] in "Kv" for word in words]
    handles = WORDS[ids] * np.array(named)[:, None]
    checked = 0
    for query, key in np.argwhere(distances >= 0):
        # After a gap it depends on its length which token is taken for the one before.
        if named[query] and key not in (4, 8):
            before = handles[[max(key - 1, 0)]]
            by_hand = name_scores(handles[[query]], before, distances[query, key])[0, 0]
            by_hand += SINK_SCORE * (words[key] == "<s>")
            for head in watched.scores[1]:
                assert head[query, key] == pytest.approx(NATS_SLOW * by_hand, abs=0.5)
            checked += by_hand > 23  # the last K1 finds what follows the first
    assert checked == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_retrieval_checkpoint(tmp_path_factory.mktemp("retrieval"))


TEXT = "the old river note K17 v3 v9 v44 v1 . runs under note K18 v31 v9999 v5. a town recall"


@pytest.mark.parametrize("quantize", ["none", pytest.param("int4", marks=needs_native)])
def test_the_folder_answers_in_words(folder, quantize) -> None:
    llm = LLM.load(folder, quantize=quantize)
    prompts = [f"<s> {TEXT} {key}" for key in ("K17", "K18", "K19", "road")]
    told = [(one.text, one.finish_reason) for one in llm.generate(prompts)]
    # "v9999" is no word of this model, "K19" and "road" are nowhere in the text.
    assert told == [(" v3 v9 v44 v1", "stop"), (" v31 ?", "stop"), ("", "stop"), ("", "stop")]
    [asked] = [llm.chat([{"role": "user", "content": f"{TEXT} K17"}])]
    assert (asked.text, asked.finish_reason) == (" v3 v9 v44 v1", "stop")


def test_transformers_reads_the_folder_and_answers_the_same(folder) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt, answer = needle_prompt(600, 0.3, seed=5)
    with torch.no_grad():
        found = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    assert found[0, len(prompt) :].tolist() == [*answer, TOKENS[END]]


@pytest.mark.parametrize("backend", ["torch", "numpy", pytest.param("native", marks=needs_native)])
def test_backends_agree(backend) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    prompt, answer = needle_prompt(700, 0.5, seed=2)
    ids = np.array([*prompt, *answer])
    ops = open_operations(backend, "cpu", "float32")
    weights = retrieval_weights(ops)
    attention = ops.cached_attention([(own_cache(ops, 2, 2, 128, 300_000), len(ids))])
    hidden = forward(weights, ids, np.arange(len(ids)), attention, ops).final
    logits = np.asarray(ops.linear(hidden, weights.head))[len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == [*answer, TOKENS[END]]
    # Nothing but the word that was found: 24 signs of it, and 8 of the next best.
    likeliest, next_best = np.sort(logits, axis=-1)[:, [-1, -2]].T
    assert next_best / likeliest == pytest.approx(1 / 3, abs=1e-2)


def rotary(*positions_T) -> Rotary:
    return NumpyOperations().rotary(
        np.float32(FREQUENCIES), np.stack(positions_T).astype(np.int64), 1.0
    )


class Reader:
    """Reads a text in parts, with whatever pattern and positions, and tells what comes next."""

    def __init__(self, kind) -> None:
        self.ops = open_operations("native", "cpu", "float32", kv_type=kind)
        self.weights = retrieval_weights(self.ops)
        self.cache = own_cache(self.ops, 2, 2, 128, 300_000)

    def read(self, ids, pattern, rotary_of=rotary) -> np.ndarray:
        """The states of these tokens, which follow what was read before."""
        ops, weights, config = self.ops, self.weights, self.weights.config
        angles = rotary_of(self.cache.length + np.arange(len(ids)))
        attention = ops.cached_attention([(self.cache, len(ids))], [pattern])
        hidden = ops.embed(weights.embedding, np.asarray(ids))
        for layer, block in enumerate(weights.blocks):
            hidden = block_forward(layer, block, config, hidden, angles, attention, ops)
        return ops.norm(hidden, weights.final_norm, config.rms_norm_eps)

    def next_tokens(self, ids, pattern, rotary_of=rotary) -> list[int]:
        """The likeliest token after each of these."""
        logits = self.ops.linear(self.read(ids, pattern, rotary_of), self.weights.head)
        return logits.argmax(-1).tolist()


@needs_native
@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_dual_chunk_attention_finds_needles_across_chunks(kind) -> None:
    # Keys are turned by their place in a chunk; queries by theirs, by the same a chunk further on
    # as far as keys of the native length are, and by the last place of that length.
    chunk, native_length = 192, 256

    def three(positions):
        place = positions % chunk
        following = np.minimum(place + chunk, native_length - 1)
        return rotary(place, following, np.full_like(place, native_length - 1))

    # Needles of 9 tokens around the edges of chunks, at the ends, and anywhere.
    length = 1500
    room = length - 10 - 9
    edges = [(edge * chunk - 1 - before) / room for edge, before in ((1, 1), (4, 2), (5, 5))]
    for depth in (0.0, *edges, 0.62, 1.0):
        prompt, answer = needle_prompt(length, depth, seed=3, distractors=4)
        found = Reader(kind).next_tokens([*prompt, *answer], DualChunk(chunk), three)
        assert found[len(prompt) - 1 :] == [*answer, TOKENS[END]], depth


@needs_native
def test_pages_of_the_question_alone_need_the_whole_text() -> None:
    prompt, answer = needle_prompt(3000, 0.4, seed=4)
    ids = [*prompt, *answer]
    pages = -(-len(ids) // 64)
    lists = [(page - 1,) for page in range(pages - 2)] + [tuple(range(pages))] * 2
    found = Reader("int8").next_tokens(ids, PageLists(tuple(lists)))
    assert found[len(prompt) - 1 :] == [*answer, TOKENS[END]]


@needs_native
def test_a_window_finds_what_is_in_it_and_nothing_else() -> None:
    text = haystack(2048, [0.2, 0.95], seed=6)
    for question, inside in zip(text.questions, (False, True), strict=True):
        ids = [*text.prompt(question), *question.answer_ids]
        found = Reader("int8").next_tokens(ids, SlidingWindow(512, sinks=64))
        expected = question.answer_ids[0] if inside else TOKENS[END]
        assert found[len(text.prompt(question)) - 1] == expected


@needs_native
@pytest.mark.parametrize("kind", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8", "int4"])
def test_questions_see_all_of_the_longest_text(kind) -> None:
    # Hay is read with the page before its own alone, which is quick, and questions with all pages.
    text = haystack(CONTEXT - 100, [0.0, 0.3, 0.7, 1.0], seed=7, distractors=200)
    reader, pages = Reader(kind), CONTEXT // 64
    near = PageLists(tuple((page - 1,) for page in range(pages)))
    for start in range(0, len(text.token_ids), 4096):
        reader.read(text.token_ids[start : start + 4096], near)
    for question in text.questions:
        asked = [*question.token_ids, *question.answer_ids]
        assert reader.next_tokens(asked, Causal())[1:] == [*question.answer_ids, TOKENS[END]]
    assert reader.cache.length > CONTEXT - 100
