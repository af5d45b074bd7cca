"""Nothing that happens beside a text, or to its pages, changes a bit of it (native kernels).

Batches, chunks, threads of other lengths, pages given back and taken again, the disk, a restart:
tokens and log-probabilities are compared as bits with those of the text alone.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from fourbee.engine.context_store import ContextStore
from fourbee.engine.contexts import Contexts
from fourbee.engine.engine import Engine
from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.kernels.backends import native_built

pytestmark = pytest.mark.skipif(not native_built(), reason="native kernels are not built")

LENGTHS = (1, 63, 64, 65, 200, 301)


@pytest.fixture(scope="module", params=["int4", "int8"])
def model(request):
    """A tiny shape in four bits, and keys and values in `request.param`."""
    from fourbee.benchmarks.shapes import random_model
    from fourbee.kernels.native_ops import open_native

    weights, _ = random_model("tiny", "int4", 2)
    return weights, open_native("float32", "int4", 2, request.param)


@pytest.fixture(scope="module")
def requests(model) -> list[Request]:
    """Texts that share beginnings and go on in their own ways."""
    vocabulary = model[0].config.vocab_size
    stem = np.random.default_rng(0).integers(0, vocabulary, max(LENGTHS))
    made = []
    for number, length in enumerate(LENGTHS * 2):
        ids = stem[:length].copy()
        if number % 2:
            ids[length // 2 :] = np.random.default_rng(number).integers(
                0, vocabulary, len(ids) - length // 2
            )
        params = SamplingParams(
            temperature=0.8 * (number % 3), seed=number, max_tokens=40, ignore_eos=True, logprobs=1
        )
        made.append(Request(f"{number}", tuple(ids.tolist()), params))
    return made


@pytest.fixture(scope="module")
def alone(model, requests) -> dict[str, list]:
    texts = {}
    for request in requests:
        texts |= run(Engine(*model), [request])
    return texts


def run(engine: Engine, requests, chance: random.Random | None = None) -> dict[str, list]:
    """What each request is told, bit for bit."""
    told: dict[str, list] = {request.id: [] for request in requests}
    waiting, ended = list(requests), 0
    while ended < len(requests):
        while waiting and (chance is None or chance.random() < 0.5):
            engine.add(waiting.pop())
        for event in engine.step():
            if isinstance(event, TokenGenerated):
                told[event.request_id].append(
                    (event.token.token_id, event.token.logprob.hex(), event.token.top[0][1].hex())
                )
            elif isinstance(event, Finished):
                assert event.error is None
                ended += 1
    engine.check_pages()
    return told


def test_batches_chunks_and_preemption_change_nothing(model, requests, alone) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        settings = EngineSettings(
            max_running=chance.randint(3, 12),
            max_step_tokens=chance.choice((13, 64, 100, 512)),
            max_step_ms=chance.choice((1, 250)),
            # The longest text needs six pages: with eight they take them from each other.
            kv_pages=chance.choice((8, 12, 200)),
        )
        engine = Engine(*model, settings=settings)
        for _ in range(2):  # once more with what was kept
            assert run(engine, chance.sample(requests, len(requests)), chance) == alone


def test_the_disk_and_restarts_change_nothing(model, requests, alone, tmp_path) -> None:
    cached = 0
    for seed in range(3):
        chance = random.Random(seed)
        contexts = Contexts("w", "t", store=ContextStore(tmp_path))
        engine = Engine(*model, (), EngineSettings(kv_pages=chance.choice((8, 200))), contexts)
        assert run(engine, chance.sample(requests, len(requests)), chance) == alone
        engine.close()
        cached += len([one for one in tmp_path.rglob("*") if one.is_file()])
    assert cached


def test_a_step_that_is_interrupted_is_made_again(model, requests, alone) -> None:
    engine = Engine(*model)
    engine.add(requests[4])
    engine.interrupt()
    assert engine.step() == []
    told = []
    while engine.has_work:
        for number, event in enumerate(engine.step()):
            if isinstance(event, TokenGenerated):
                told.append(
                    (event.token.token_id, event.token.logprob.hex(), event.token.top[0][1].hex())
                )
            if number % 7 == 0:
                engine.interrupt()
    assert told == alone[requests[4].id]
