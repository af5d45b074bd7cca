"""Contexts that outlast the engine: the same text from what came back, a miss for anything else."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from fourbee.engine.context_store import ContextStore
from fourbee.engine.contexts import Contexts
from fourbee.engine.engine import Engine
from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
IDS = itertools.count()


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 300, length).tolist())


@pytest.fixture
def start(weights, ops, tmp_path):
    """An engine over the one store, with some things changed."""

    def call(weights=weights, ops=ops, digest="w", tokenizer="t", folder="store") -> Engine:
        store = ContextStore(tmp_path / folder) if folder else None
        contexts = Contexts(digest, tokenizer, lambda one: b"%d," % one, store)
        return Engine(weights, ops, contexts=contexts)

    return call


def ask(engine: Engine, token_ids, **more) -> tuple[list[int], int]:
    """The answer, and how many tokens were there already."""
    name = f"{next(IDS)}"
    engine.add(Request(name, tuple(token_ids), PARAMS, **more))
    said, cached = [], None
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                said.append(event.token.token_id)
            elif isinstance(event, Finished):
                assert event.error is None
                cached = event.cached_tokens
    engine.check_pages()
    return said, cached


def test_a_read_text_comes_back_after_a_restart(start, caplog) -> None:
    text = prompt(1, 200)
    first = start()
    said, cached = ask(first, text)
    assert cached == 0
    first.close()
    second = start()
    with caplog.at_level(logging.INFO):
        assert ask(second, text) == (said, 192)
    assert "192 of 200 prompt tokens came back in" in caplog.text
    # In memory now, the whole of it.
    assert ask(second, (*text, *said, 7))[1] == 192 + 8 + 11
    other = prompt(2, 100)
    assert ask(second, (*text[:100], *other))[1] == 100
    second.close()


def test_nothing_else_is_taken_for_it(start, weights, ops) -> None:
    text = prompt(1, 200)
    first = start()
    said, _ = ask(first, text)
    first.close()
    theta = dataclasses.replace(weights.config, rope_theta=2 * weights.config.rope_theta)
    bfloat16 = type(ops)("cpu", __import__("torch").bfloat16)
    for changed in (
        {"digest": "other"}, {"tokenizer": "other"}, {"ops": bfloat16},
        {"weights": dataclasses.replace(weights, config=theta)},
    ):  # fmt: skip
        engine = start(**changed)
        if "ops" in changed:
            engine._runner._weights = weights  # float32 all the same: only pages are another type
            assert engine._recipe.kv_type == "bfloat16"
            assert engine._recipe_digest(Request("x", text, PARAMS)) != first._recipe_digest(
                Request("x", text, PARAMS)
            )
        else:
            assert ask(engine, text)[1] == 0
        engine.close()
    engine = start()
    assert ask(engine, text, namespace="another owner")[1] == 0
    assert ask(engine, text) == (said, 192)
    engine.close()


def test_a_conversation_goes_on_from_the_tokens_that_were_sampled(start) -> None:
    """Sent back as other tokens of the same text: each token's text is its number and a comma."""
    engine = start()
    engine._contexts._piece = lambda one: bytes([one % 256]) * (1 + one // 256)
    text = prompt(1, 100)
    said, _ = ask(engine, text, context_id="c")
    history = (*text, *said)
    # Token 256 + n writes n twice: the history is sent with such tokens cut in two.
    cut = [part for one in history for part in ([one] if one < 256 else [one % 256] * 2)]
    assert len(cut) > len(history)
    _, known = ask(engine, (*cut, 5, 6), context_id="c")
    assert known == len(history) - 1
    _, unknown = ask(engine, (*cut, 5, 6), context_id="d")
    assert unknown < 100
    _, foreign = ask(engine, (*cut, 5, 6), context_id="c", namespace="other")
    assert foreign == 0
    engine.close()
    second = start()
    second._contexts._piece = engine._contexts._piece
    assert ask(second, (*cut, 5, 6), context_id="c")[1] == len(history) // 64 * 64
    second.close()


def test_pages_that_are_evicted_come_back_from_the_disk(weights, ops, tmp_path) -> None:
    store = ContextStore(tmp_path)
    engine = Engine(
        weights, ops, (), EngineSettings(max_running=2, kv_pages=4), Contexts("w", "t", store=store)
    )
    texts = [prompt(seed, 150) for seed in range(4)]
    said = [ask(engine, text)[0] for text in texts]
    assert [ask(engine, text) for text in texts] == [(one, 128) for one in said]
    engine.close()


def test_without_a_store_nothing_is_written(start, tmp_path) -> None:
    engine = start(folder=None)
    ask(engine, prompt(1, 200), context_id="c")
    assert not engine.idle()
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_writing_behind_happens_while_idle(start, tmp_path) -> None:
    engine = start()
    ask(engine, prompt(1, 200))
    assert not list((tmp_path / "store").rglob("*.page"))
    while engine.idle():
        pass
    assert len([one for one in (tmp_path / "store").rglob("*") if one.is_file()]) >= 3
    engine.close()
