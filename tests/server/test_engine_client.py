"""Between the event loop and the engine: no idle work, commands before steps, clean ends.

The engine runs in a thread here; what becomes of processes is in `test_engine_process.py`.
"""

import asyncio
import time

import pytest

from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.foundation.errors import CapacityError, FourbeeError, ModelFileError, UsageError
from fourbee.server import engine_client
from fourbee.server.engine_client import EngineClient
from fourbee.server.engine_messages import ModelSettings
from fourbee.server.errors import ApiError
from fourbee.server.request_events import Generation

from .fakes import FakeEngine, ThreadWorker, make_model


def request(tokenizer, text: str, number: int = 0) -> Request:
    ids = tokenizer.encode(f"say {text}", True)
    return Request(f"r{number}", tuple(ids), SamplingParams(max_tokens=400))


async def read_all(generation: Generation) -> list:
    events = []
    while not any(isinstance(event, Finished) for event in events):
        events += await generation.next_events()
    return events


def with_client(tokenizer, test, engine: FakeEngine | None = None):
    """Runs `test(engine, client)` on an event loop and ends the engine after it."""

    async def main():
        model = make_model(tokenizer, engine=engine or FakeEngine(tokenizer))
        workers = []

        def spawn() -> ThreadWorker:
            workers.append(ThreadWorker(model.load))
            return workers[-1]

        client = EngineClient(spawn, ModelSettings())
        assert await client.start()
        try:
            return await test(model.engine, client)
        finally:
            await client.stop(0, lambda: False)
            assert {worker.poll() for worker in workers} <= {0, 1}

    return asyncio.run(main())


def test_events_come_in_order_and_end_with_finished(tokenizer):
    async def test(engine, client):
        generation = client.submit([request(tokenizer, "hello world")])
        await generation.accepted()
        return await read_all(generation)

    *tokens, last = with_client(tokenizer, test)
    assert all(isinstance(token, TokenGenerated) for token in tokens)
    assert tokenizer.decode(token.token.token_id for token in tokens) == "hello world"
    assert last == Finished("r0", "stop")


def test_an_idle_engine_takes_no_steps_and_no_time(tokenizer):
    async def test(engine, client):
        await read_all(client.submit([request(tokenizer, "hello")]))
        steps, used = engine.steps, time.process_time()
        await asyncio.sleep(0.3)
        assert engine.steps == steps
        assert time.process_time() - used < 0.1

    with_client(tokenizer, test)


def test_an_abort_is_obeyed_before_the_next_step(tokenizer):
    async def test(engine, client):
        generation = client.submit([request(tokenizer, "forever")])
        await generation.next_events()
        engine.running.clear()
        await asyncio.sleep(0.05)
        steps = engine.steps
        generation.close()
        engine.running.set()
        while engine.has_work:
            await asyncio.sleep(0.005)
        # One step was under way, one told the end.
        assert engine.steps - steps <= 2
        assert engine.aborted == ["r0"] and client.num_living == 0

    with_client(tokenizer, test)


def test_a_step_s_events_cross_in_one_frame(tokenizer):
    async def test(engine, client):
        frames = []
        deliver = client._deliver
        client._deliver = lambda events: (frames.append(len(events)), deliver(events))
        generation = client.submit([request(tokenizer, "hello", number) for number in range(5)])
        while generation.living:
            await generation.next_events()
        assert max(frames) == 5 and len(frames) <= engine.steps

    with_client(tokenizer, test)


def test_requests_without_a_place_are_refused_together(tokenizer):
    async def test(engine, client):
        engine.max_waiting = 2
        generation = client.submit([request(tokenizer, "forever", number) for number in range(3)])
        with pytest.raises(ApiError, match="2 requests are waiting already") as caught:
            await generation.accepted()
        assert (caught.value.status, client.num_living, engine.num_living) == (429, 0, 0)
        engine.max_waiting = 3
        assert (await read_all(client.submit([request(tokenizer, "a", 4)])))[-1].reason == "stop"

    with_client(tokenizer, test)


def test_prompts_of_a_million_tokens_and_odd_values_arrive_as_they_are(tokenizer):
    prompt = tuple(range(2**20))
    asked = [
        Request("long", prompt, SamplingParams(max_tokens=1, top_k=2**70, seed=2**64 - 1)),
        Request("same", prompt, SamplingParams(max_tokens=1, stop=("\ud83d", "量子"))),
        Request("other", (1,), SamplingParams(max_tokens=1, logit_bias={5: -100.0, 6: 3})),
    ]

    async def test(engine, client):
        await client.submit(asked).accepted()
        assert engine.added == asked
        assert engine.added[0].prompt_ids is engine.added[1].prompt_ids

    engine = FakeEngine(tokenizer)
    engine._answer = lambda request: iter([1])
    with_client(tokenizer, test, engine)


def test_a_model_that_cannot_be_loaded_is_told_with_its_own_error(tokenizer):
    errors = [
        UsageError("quantize = 'int3': expected int4", "quantize"),
        ModelFileError("/m: no config.json"),
        CapacityError("no room"),
        OSError(13, "Permission denied", "/m/model.safetensors"),
        MemoryError(),
    ]

    def load(settings: ModelSettings):
        assert settings == ModelSettings(model="/m", quantize="int3")
        raise error

    async def start() -> None:
        client = EngineClient(
            lambda: ThreadWorker(load), ModelSettings(model="/m", quantize="int3")
        )
        await client.start()

    raised = []
    for error in errors:
        with pytest.raises(FourbeeError) as caught:
            asyncio.run(start())
        raised.append((type(caught.value), str(caught.value)))
        assert getattr(caught.value, "parameter", None) == getattr(error, "parameter", None)
    assert raised == [
        (UsageError, "quantize = 'int3': expected int4"),
        (ModelFileError, "/m: no config.json"),
        (CapacityError, "no room"),
        (FourbeeError, "/m/model.safetensors: Permission denied"),
        (CapacityError, "the model does not fit into the memory of this machine"),
    ]


@pytest.mark.parametrize(
    ("error", "told", "line"),
    [
        (
            OSError(12, "Cannot allocate memory"),
            FourbeeError,
            "the engine process could not be started: Cannot allocate memory",
        ),
        (UsageError("it runs on Linux"), UsageError, "it runs on Linux"),
        (ZeroDivisionError("our own fault"), ZeroDivisionError, "our own fault"),
    ],
)
def test_an_engine_that_cannot_be_started_is_told(error, told, line):
    def spawn() -> ThreadWorker:
        raise error

    async def start() -> None:
        await EngineClient(spawn, ModelSettings()).start()

    with pytest.raises(told) as caught:
        asyncio.run(start())
    assert (type(caught.value), str(caught.value)) == (told, line)


@pytest.mark.parametrize("turns", range(5))
def test_an_end_at_any_moment_of_the_start(tokenizer, turns):
    """Also before the connection is open: nothing that is told is lost."""
    model = make_model(tokenizer)

    async def main() -> bool:
        client = EngineClient(lambda: ThreadWorker(model.load), ModelSettings())
        starting = asyncio.create_task(client.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        began = time.monotonic()
        await client.stop(60, lambda: False)
        assert time.monotonic() - began < 5
        return await starting

    assert not asyncio.run(main())


def test_a_fault_of_the_supervisor_leaves_nobody_waiting(tokenizer, caplog):
    async def test(engine, client):
        def fail(events):
            raise ZeroDivisionError

        client._deliver = fail
        with pytest.raises(ApiError) as caught:
            await read_all(client.submit([request(tokenizer, "forever")]))
        assert (caught.value.code, client.state) == ("engine_failed", "failed")

    with_client(tokenizer, test)
    assert "the engine is not supervised any more" in caplog.text


def test_an_end_while_the_engine_is_started_again(tokenizer, monkeypatch):
    monkeypatch.setattr(engine_client, "RESTART_DELAYS", (60.0,))

    async def test(engine, client):
        engine.crash = RuntimeError("broken")
        with pytest.raises(ApiError) as caught:
            await read_all(client.submit([request(tokenizer, "hello")]))
        assert caught.value.code == "engine_ended"
        assert client.state == "restarting"
        began = time.monotonic()
        await client.stop(60, lambda: False)
        assert time.monotonic() - began < 5

    with_client(tokenizer, test)


def test_stopping_waits_for_what_ends_soon_and_ends_the_rest(tokenizer):
    async def test(engine, client):
        engine.step_seconds = 0.01
        short = client.submit([request(tokenizer, "hello", 1)])
        endless = client.submit([request(tokenizer, "forever", 2)])
        await client.stop(0.4, lambda: False)
        assert (await read_all(short))[-1] == Finished("r1", "stop")
        with pytest.raises(ApiError, match="the server is shutting down"):
            await read_all(endless)
        with pytest.raises(ApiError, match="the server is shutting down"):
            client.submit([request(tokenizer, "hello", 3)])
        assert "r2" in engine.aborted

    with_client(tokenizer, test)


def test_stopping_in_a_hurry_does_not_wait(tokenizer):
    async def test(engine, client):
        client.submit([request(tokenizer, "forever")])
        began = time.monotonic()
        await client.stop(60, lambda: True)
        assert time.monotonic() - began < 5

    with_client(tokenizer, test)
