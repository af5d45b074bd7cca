"""The engine with a tiny random model: the same text alone and in any batch, and every end."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from fourbee.engine.engine import Engine
from fourbee.engine.request import (
    Event,
    Finished,
    PromptScored,
    Request,
    ScoredToken,
    TokenGenerated,
)
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.kernels import numpy_ops, torch_ops
from fourbee.kernels.backends import open_operations
from fourbee.kernels.operations import WIDE_POSITIONS, Linear
from fourbee.kernels.paged_cache import own_cache
from fourbee.model.attention_modes import MODES
from fourbee.model.packing import TABLES
from fourbee.model.qwen3 import forward
from fourbee.model.weights import tensor_shapes, weights_tree

GREEDY = SamplingParams(temperature=0, max_tokens=24)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 300, length).tolist())


def tokens_of(events: list[Event], request_id: str) -> list[int]:
    return [
        event.token.token_id
        for event in events
        if isinstance(event, TokenGenerated) and event.request_id == request_id
    ]


def ends_of(events: list[Event], request_id: str) -> list[Finished]:
    """Without the counts of tokens."""
    return [
        Finished(e.request_id, e.reason, e.error)
        for e in events
        if isinstance(e, Finished) and e.request_id == request_id
    ]


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def answer(engine: Engine, token_ids, params: SamplingParams) -> list[int]:
    engine.add(Request("only", token_ids, params))
    return tokens_of(drain(engine), "only")


@pytest.fixture
def engine(weights, ops) -> Engine:
    return Engine(weights, ops)


@pytest.fixture
def logits(weights, ops):
    """Logits of every row by a plain forward over the whole text, in float32."""

    def call(token_ids) -> np.ndarray:
        cache = own_cache(ops, 2, 2, 16)
        ids = np.asarray(token_ids, dtype=np.int64)
        attention = ops.cached_attention([(cache, len(ids))])
        hidden = forward(weights, ids, np.arange(len(ids)), attention, ops).final
        return ops.to_numpy(ops.linear(hidden, weights.head))

    return call


@pytest.fixture
def greedy_text(logits):
    """Greedy tokens by computing the whole text again for each."""

    def call(token_ids, count: int) -> list[int]:
        ids = list(token_ids)
        for _ in range(count):
            ids.append(int(logits(ids)[-1].argmax()))
        return ids[len(token_ids) :]

    return call


def test_greedy_equals_computing_everything_again(engine, greedy_text) -> None:
    for seed in range(3):
        token_ids = prompt(seed, 5 + 30 * seed)
        assert answer(engine, token_ids, GREEDY) == greedy_text(token_ids, 24)


def test_a_prompt_read_in_chunks_gives_the_same_text(weights, ops, greedy_text) -> None:
    small = Engine(weights, ops, settings=EngineSettings(max_running=2, max_step_tokens=7))
    token_ids = prompt(1, 40)
    assert answer(small, token_ids, GREEDY) == greedy_text(token_ids, 24)


def many_params() -> list[SamplingParams]:
    shapes = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.3, "min_p": 0.05, "presence_penalty": 1.0},
        {"temperature": 0.9, "frequency_penalty": 0.7, "logit_bias": {5: 3.0}},
    ]
    return [
        SamplingParams(**shapes[i % len(shapes)], seed=i, max_tokens=3 + 5 * (i % 4))
        for i in range(15)
    ]


@pytest.mark.parametrize("top_k", [2**31, 2**63, 10**30])
def test_a_top_k_of_any_size_is_no_limit(weights, ops, top_k) -> None:
    limited, plain = (
        answer(
            Engine(weights, ops),
            prompt(1, 5),
            SamplingParams(temperature=1.0, seed=3, max_tokens=8, top_k=k),
        )
        for k in (top_k, 0)
    )
    assert limited == plain


def test_the_same_seed_gives_the_same_text_alone_and_in_any_batch(weights, ops) -> None:
    requests = [
        Request(f"r{i}", prompt(i, 3 + 7 * (i % 6)), params)
        for i, params in enumerate(many_params())
    ]
    alone = {r.id: answer(Engine(weights, ops), r.prompt_ids, r.params) for r in requests}
    for trace in range(6):
        chance = random.Random(trace)
        running = chance.randint(2, 16)
        settings = EngineSettings(
            max_running=running, max_step_tokens=running + chance.randint(1, 60)
        )
        engine, events = Engine(weights, ops, settings=settings), []
        for request in chance.sample(requests, len(requests)):
            engine.add(request)
            for _ in range(chance.randint(0, 4)):  # they join between steps, and leave
                events += engine.step()
        events += drain(engine)
        for request in requests:
            assert tokens_of(events, request.id) == alone[request.id]
            assert ends_of(events, request.id) == [Finished(request.id, "length")]
        engine.check_pages()


def test_choices_of_one_prompt_are_those_of_their_seeds_alone(weights, ops) -> None:
    params, token_ids = SamplingParams(seed=3, max_tokens=12), prompt(4, 20)
    engine = Engine(weights, ops)
    for index in range(3):
        engine.add(Request(f"{index}", token_ids, params.for_choice(index)))
    events = drain(engine)
    texts = [tokens_of(events, f"{index}") for index in range(3)]
    assert texts[0] != texts[1] != texts[2]
    for index, text in enumerate(texts):
        assert answer(Engine(weights, ops), token_ids, params.for_choice(index)) == text


def test_without_a_seed_texts_differ(engine) -> None:
    params = SamplingParams(max_tokens=20)
    assert answer(engine, prompt(1, 4), params) != answer(engine, prompt(1, 4), params)


def test_the_next_turn_reads_only_what_is_new_and_says_the_same(weights, ops) -> None:
    first, rows = prompt(1, 50), []
    texts = []
    said = answer(Engine(weights, ops), first, GREEDY)
    second = (*first, *said, *prompt(2, 6))
    for engine in (Engine(weights, ops), Engine(weights, ops)):
        if not rows:
            answer(engine, first, GREEDY)
        engine.add(Request("next", second, GREEDY))
        step = engine.launch()
        rows.append(step.step.parts[0].chunk.count)
        events = [*step.result(), *drain(engine)]
        texts.append(tokens_of(events, "next"))
        [end] = [event for event in events if isinstance(event, Finished)]
        assert (end.prompt_tokens, end.cached_tokens) == (80, 80 - rows[-1])
    # The answer's last token was sampled but never computed.
    assert rows == [7, 80]
    assert texts[0] == texts[1]


def test_a_branch_of_a_kept_text_reads_from_where_it_differs(weights, ops, greedy_text) -> None:
    engine, first = Engine(weights, ops), prompt(1, 50)
    answer(engine, first, GREEDY)
    branch = (*first[:30], *prompt(2, 10))
    assert answer(engine, branch, GREEDY) == greedy_text(branch, 24)
    # The branch has left the kept text as it was.
    assert answer(engine, first, GREEDY) == greedy_text(first, 24)


def test_end_tokens_end_the_answer_and_are_not_reported(weights, ops, greedy_text) -> None:
    token_ids = prompt(3, 10)
    text = greedy_text(token_ids, 24)
    end = text[5]
    cut = text[: text.index(end)]
    for eos, params in (((end,), GREEDY), ((), dataclasses.replace(GREEDY, stop_token_ids=(end,)))):
        engine = Engine(weights, ops, eos)
        engine.add(Request("a", token_ids, params))
        events = drain(engine)
        assert tokens_of(events, "a") == cut
        assert ends_of(events, "a") == [Finished("a", "stop")]
    ignoring = dataclasses.replace(GREEDY, ignore_eos=True)
    assert answer(Engine(weights, ops, (end,)), token_ids, ignoring) == text


def test_without_max_tokens_the_answer_fills_the_context(weights, ops) -> None:
    engine = Engine(weights, ops, settings=EngineSettings(context_length=40))
    engine.add(Request("a", prompt(1, 30), SamplingParams(seed=1)))
    events = drain(engine)
    assert len(tokens_of(events, "a")) == 10
    assert ends_of(events, "a") == [Finished("a", "length")]


def test_log_probabilities_are_those_of_the_whole_text(engine, logits) -> None:
    token_ids = prompt(5, 90)
    wide = SamplingParams(seed=1, max_tokens=3, logprobs=2)
    engine.add(Request("other", prompt(6, 20), dataclasses.replace(wide, logprobs=5)))
    engine.add(Request("plain", prompt(6, 20), dataclasses.replace(wide, logprobs=None)))
    engine.add(Request("a", token_ids, wide, prompt_logprobs=1))
    events = [event for event in drain(engine) if event.request_id == "a"]
    assert isinstance(events[0], PromptScored)
    answered = [e.token for e in events if isinstance(e, TokenGenerated)]
    scored = [*events[0].tokens, *answered]
    whole = [*token_ids, *(token.token_id for token in answered)]
    assert [token.token_id for token in scored] == whole[1:]
    plain = logits(whole)
    expected = plain - np.log(np.exp(plain).sum(-1, keepdims=True))
    for row, token in enumerate(scored):
        assert token.logprob == pytest.approx(expected[row, whole[row + 1]], abs=1e-4)
        best = np.argsort(-expected[row])[: len(token.top)]
        assert [token_id for token_id, _ in token.top] == best.tolist()
        assert [value for _, value in token.top] == pytest.approx(expected[row, best], abs=1e-4)
    assert {len(token.top) for token in events[0].tokens} == {1}
    assert {len(token.top) for token in answered} == {2}


def test_a_prompt_is_scored_in_chunks_and_after_a_kept_cache(weights, ops) -> None:
    token_ids, params = prompt(5, 60), SamplingParams(temperature=0, max_tokens=1)
    scores = []
    for settings in (EngineSettings(), EngineSettings(max_running=2, max_step_tokens=9)):
        engine = Engine(weights, ops, settings=settings)
        answer(engine, token_ids, GREEDY)
        engine.add(Request("a", token_ids, params, prompt_logprobs=0))
        scored = next(event for event in drain(engine) if isinstance(event, PromptScored))
        assert [token.token_id for token in scored.tokens] == list(token_ids[1:])
        scores.append([token.logprob for token in scored.tokens])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_penalties_and_bias_reach_the_head(engine, greedy_text) -> None:
    token_ids = prompt(7, 12)
    banned = {token_id: -100.0 for token_id in greedy_text(token_ids, 1)}
    assert (
        answer(engine, token_ids, dataclasses.replace(GREEDY, logit_bias=banned))[0] not in banned
    )
    wanted = dataclasses.replace(GREEDY, logit_bias={17: 100})
    assert answer(engine, token_ids, wanted) == [17] * 24
    varied = dataclasses.replace(wanted, frequency_penalty=2.0, logit_bias={17: 30})
    assert 1 < answer(engine, token_ids, varied).count(17) < 24


def test_aborting_ends_once_and_leaves_nothing_behind(engine) -> None:
    for name in ("a", "b", "c"):
        engine.add(Request(name, prompt(1, 10), GREEDY))
    events = engine.step()
    pending = engine.launch()
    engine.abort("b")  # while its step is under way
    engine.abort("b")
    engine.abort("unknown")
    events += [*pending.result(), *drain(engine)]
    assert len(tokens_of(events, "b")) == 1
    assert [len(ends_of(events, name)) for name in ("a", "b", "c")] == [1, 1, 1]
    assert ends_of(events, "b") == [Finished("b", "abort")]
    assert (engine.num_running, engine.num_waiting, engine.pages.referenced) == (0, 0, 0)
    assert engine.step() == []


def test_logits_that_are_not_finite_end_their_request_alone(weights, ops) -> None:
    # A token whose embedding is broken: requests that hold it, and no others, are lost. The head
    # is another array, so that the token's logit stays right.
    embedding = ops.to_numpy(weights.embedding)
    head = Linear(ops.from_numpy(embedding))
    embedding[299] = np.nan
    broken = dataclasses.replace(weights, embedding=ops.from_numpy(embedding), head=head)
    engine, healthy = Engine(broken, ops), Engine(weights, ops)
    token_ids = (1, 2, 3)
    params = dataclasses.replace(GREEDY, logit_bias={299: -100})
    engine.add(Request("bad", (*range(30), 299), params))
    engine.add(Request("scored", (4, 299, 5), params, prompt_logprobs=0))
    engine.add(Request("good", token_ids, params))
    events = drain(engine)
    message = "the model's logits are not finite: check its weights"
    for name in ("bad", "scored"):
        assert ends_of(events, name) == [Finished(name, "error", message)]
        assert not tokens_of(events, name)
    assert tokens_of(events, "good") == answer(healthy, token_ids, params)
    # Its pages are not kept for others, however many they were.
    before = engine.pages
    engine.add(Request("long", (*range(100), 299, *range(100)), params))
    assert ends_of(drain(engine), "long")[0].reason == "error"
    assert engine.pages == before and not before.referenced


class Interrupting:
    """Operations that raise at one of the calls of the head."""

    def __init__(self, ops, error: BaseException) -> None:
        self._ops, self._error = ops, error
        self.armed = False

    def __getattr__(self, name):
        return getattr(self._ops, name)

    def head(self, *arguments):
        if self.armed:
            self.armed = False
            raise self._error
        return self._ops.head(*arguments)


def test_a_step_that_raises_ends_its_requests_and_the_engine_lives_on(weights, ops) -> None:
    failing = Interrupting(ops, MemoryError())
    engine = Engine(weights, failing, settings=EngineSettings(max_running=2))
    for name in ("a", "b", "c"):
        engine.add(Request(name, prompt(1, 20), GREEDY))
    events = engine.step()
    failing.armed = True
    with pytest.raises(MemoryError):
        engine.step()
    events += drain(engine)
    message = "the step that computed it was interrupted"
    assert [ends_of(events, name) for name in ("a", "b", "c")] == [
        [Finished("a", "error", message)],
        [Finished("b", "error", message)],
        [Finished("c", "length")],
    ]
    assert tokens_of(events, "c") == answer(Engine(weights, ops), prompt(1, 20), GREEDY)


REFUSED = [
    ((), {}, "prompt is empty: expected at least one token", "prompt"),
    ((1, 300), {}, "prompt holds token id 300: expected from 0 to 299", "prompt"),
    ((-1, 5), {}, "prompt holds token id -1: expected from 0 to 299", "prompt"),
    (
        (1,) * 400,
        {"max_tokens": 3},
        "prompt has 400 tokens, but this model's context is 256: shorten the prompt or max_tokens",
        "prompt",
    ),
    (
        (1,) * 256,
        {},
        "prompt has 256 tokens, but this model's context is 256: shorten the prompt or max_tokens",
        "prompt",
    ),
    (
        (1,) * 250,
        {"max_tokens": 7},
        "prompt has 250 tokens and max_tokens = 7, but this model's context is 256: "
        "shorten the prompt or max_tokens",
        "max_tokens",
    ),
    (
        (1,),
        {"logit_bias": {300: 1}},
        "logit_bias holds token id 300: expected from 0 to 299",
        "logit_bias",
    ),
]


@pytest.mark.parametrize(("token_ids", "values", "message", "parameter"), REFUSED)
def test_a_request_that_cannot_work_is_refused(
    engine, error_of, token_ids, values, message, parameter
) -> None:
    request = Request("a", token_ids, SamplingParams(**values))
    assert error_of(engine.add, request) == (message, parameter)
    assert not engine.has_work


def test_a_prompt_and_max_tokens_that_just_fit_are_served(engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    assert len(answer(engine, (1,) * 250, params)) == 6


def test_prompt_logprobs_and_ids_are_checked(engine, error_of) -> None:
    assert error_of(engine.add, Request("a", (1,), GREEDY, prompt_logprobs=21)) == (
        "prompt_logprobs = 21: expected from 0 to 20",
        "prompt_logprobs",
    )
    engine.add(Request("a", (1,), GREEDY))
    message, _ = error_of(engine.add, Request("a", (1,), GREEDY))
    assert message == "id = 'a': another request with this id is living"


def test_streaming_goes_on_for_ever_in_a_few_pages(weights, ops) -> None:
    settings = EngineSettings(kv_pages=8, window=100, max_step_tokens=90)
    engine = Engine(weights, ops, settings=settings)
    text, params = prompt(1, 1500), dataclasses.replace(GREEDY, max_tokens=300)
    engine.add(Request("a", text, params, attention="streaming"))
    engine.add(Request("b", text, params, attention="streaming"))
    most, events = 0, []
    while engine.has_work:
        events += engine.step()
        most = max(most, engine.pages.referenced)
        engine.check_pages()
    assert most <= 8 and engine.pages.free == 8
    assert tokens_of(events, "a") == tokens_of(events, "b")
    assert ends_of(events, "a") == [Finished("a", "length")]
    # Short texts are those of dense attention.
    short = Request("s", text[:50], GREEDY, attention="streaming")
    engine.add(short)
    assert tokens_of(drain(engine), "s") == answer(Engine(weights, ops), text[:50], GREEDY)


def test_dual_chunks_go_beyond_the_trained_length(weights, ops) -> None:
    engine = Engine(weights, ops, settings=EngineSettings(kv_pages=20))
    text = prompt(1, 700)
    engine.add(Request("a", text, GREEDY, attention="dual-chunk"))
    events = drain(engine)
    assert len(tokens_of(events, "a")) == 24
    # Its keys are not those of dense attention: nothing is shared.
    engine.add(Request("b", text[:200], GREEDY))
    [end] = [event for event in drain(engine) if isinstance(event, Finished)]
    assert end.cached_tokens == 0
    engine.add(Request("c", text, GREEDY, attention="dual-chunk"))
    again = drain(engine)
    assert tokens_of(again, "c") == tokens_of(events, "a")
    assert next(e for e in again if isinstance(e, Finished)).cached_tokens == 699
    engine.check_pages()


def test_what_an_attention_cannot_hold_is_refused_with_the_numbers(weights, ops, error_of) -> None:
    engine = Engine(weights, ops, settings=EngineSettings(kv_pages=3))
    assert engine.context_length == 192
    long = Request("a", prompt(1, 192), GREEDY)
    assert "context is 192" in error_of(engine.add, long)[0]
    beyond = dataclasses.replace(long, attention="dual-chunk")
    assert "context is 192" in error_of(engine.add, beyond)[0]
    other = dataclasses.replace(long, attention="sideways")
    assert error_of(engine.add, other) == (
        "attention = 'sideways': expected one of dense, dual-chunk, sparse, streaming", "attention",
    )  # fmt: skip


@pytest.mark.parametrize("wide", [WIDE_POSITIONS, 200])
@pytest.mark.parametrize("backend", ["native", "numpy", "torch"])
def test_a_request_knows_nothing_of_how_others_attend(config, monkeypatch, backend, wide) -> None:
    """Tokens and log-probabilities alone and beside all other modes, some of them far on.

    Native ones bit for bit. Others multiply several rows in another order than one: the last bits
    of any two requests differ there, and `kernels/test_rotary.py` asks about bits of angles.
    """
    for module in (numpy_ops, torch_ops):
        monkeypatch.setattr(module, "WIDE_POSITIONS", wide)
    ops = open_operations(backend, "cpu", "float32", "float32", head_dim=config.head_dim)
    random = np.random.default_rng(7)
    tensors = {
        name: ops.from_numpy(
            (random.normal(0, 0.15, shape) if len(shape) == 2 else np.ones(shape)).astype(
                np.float32
            ),
            table=name in TABLES,
        )
        for name, shape in tensor_shapes(config).items()
    }
    weights = weights_tree(config, tensors)
    requests = [  # of unlike lengths, so that they are at unlike positions
        Request(
            mode,
            prompt(5 + number, 220 - 30 * (number % 2)),
            dataclasses.replace(GREEDY, logprobs=3),
            attention=mode,
        )
        for number, mode in enumerate(MODES)
    ]

    def answers(several: list[Request]) -> dict[str, list[ScoredToken]]:
        engine = Engine(weights, ops, settings=EngineSettings(kv_pages=64, window=128))
        for request in several:
            engine.add(request)
        found: dict[str, list[ScoredToken]] = {}
        for event in drain(engine):
            if isinstance(event, TokenGenerated):
                found.setdefault(event.request_id, []).append(event.token)
        return found

    together = answers(requests)
    assert len(together) == len(MODES)
    for request in requests:
        alone, beside = answers([request])[request.id], together[request.id]
        if backend == "native":
            assert alone == beside, request.id
        else:
            assert [one.token_id for one in alone] == [one.token_id for one in beside]
            assert [one.logprob for one in alone] == pytest.approx(
                [one.logprob for one in beside], abs=1e-4
            )
