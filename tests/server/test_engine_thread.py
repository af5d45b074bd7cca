"""Between the event loop and the engine: no idle work, commands before steps, clean ends."""

import asyncio
import time

import pytest

from fourbee.engine.request import Finished, Request, TokenGenerated
from fourbee.engine.sampling import SamplingParams
from fourbee.server.engine_thread import EngineThread, Generation
from fourbee.server.errors import ApiError

from .fakes import FakeEngine


def request(tokenizer, text: str, number: int = 0) -> Request:
    ids = tokenizer.encode(f"say {text}", True)
    return Request(f"r{number}", tuple(ids), SamplingParams(max_tokens=400))


async def read_all(generation: Generation) -> list:
    events = []
    while not any(isinstance(event, Finished) for event in events):
        events += await generation.next_events()
    return events


def with_thread(tokenizer, test):
    """Runs `test(engine, thread)` on an event loop and ends the thread after it."""

    async def main():
        engine = FakeEngine(tokenizer)
        thread = EngineThread(engine)
        thread.start()
        try:
            return await test(engine, thread)
        finally:
            await thread.stop(0, lambda: False)
            assert not thread._thread.is_alive()

    return asyncio.run(main())


def test_events_come_in_order_and_end_with_finished(tokenizer):
    async def test(engine, thread):
        generation = thread.submit([request(tokenizer, "hello world")])
        await generation.accepted()
        return await read_all(generation)

    *tokens, last = with_thread(tokenizer, test)
    assert all(isinstance(token, TokenGenerated) for token in tokens)
    assert tokenizer.decode(token.token.token_id for token in tokens) == "hello world"
    assert last == Finished("r0", "stop")


def test_an_idle_engine_takes_no_steps_and_no_time(tokenizer):
    async def test(engine, thread):
        await read_all(thread.submit([request(tokenizer, "hello")]))
        steps, used = engine.steps, time.process_time()
        await asyncio.sleep(0.3)
        assert engine.steps == steps
        assert time.process_time() - used < 0.1

    with_thread(tokenizer, test)


def test_an_abort_is_obeyed_before_the_next_step(tokenizer):
    async def test(engine, thread):
        generation = thread.submit([request(tokenizer, "forever")])
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
        assert engine.aborted == ["r0"] and thread.num_living == 0

    with_thread(tokenizer, test)


def test_a_step_s_events_cross_in_one_call(tokenizer):
    async def test(engine, thread):
        calls = []
        deliver = thread._deliver
        thread._deliver = lambda events: (calls.append(len(events)), deliver(events))
        generation = thread.submit([request(tokenizer, "hello", number) for number in range(5)])
        while generation.living:
            await generation.next_events()
        assert max(calls) == 5 and len(calls) <= engine.steps

    with_thread(tokenizer, test)


def test_a_failed_engine_refuses_what_comes_later(tokenizer):
    async def test(engine, thread):
        engine.crash = RuntimeError("broken")
        generation = thread.submit([request(tokenizer, "hello")])
        with pytest.raises(ApiError) as caught:
            await read_all(generation)
        assert (caught.value.status, thread.state) == (500, "failed")
        with pytest.raises(ApiError) as caught:
            thread.submit([request(tokenizer, "hello")])
        assert (caught.value.status, caught.value.code) == (503, "engine_failed")

    with_thread(tokenizer, test)


def test_stopping_waits_for_what_ends_soon_and_ends_the_rest(tokenizer):
    async def test(engine, thread):
        engine.step_seconds = 0.01
        short = thread.submit([request(tokenizer, "hello", 1)])
        endless = thread.submit([request(tokenizer, "forever", 2)])
        await thread.stop(0.4, lambda: False)
        assert (await read_all(short))[-1] == Finished("r1", "stop")
        with pytest.raises(ApiError, match="the server is shutting down"):
            await read_all(endless)
        with pytest.raises(ApiError, match="the server is shutting down"):
            thread.submit([request(tokenizer, "hello", 3)])
        assert "r2" in engine.aborted

    with_thread(tokenizer, test)


def test_stopping_in_a_hurry_does_not_wait(tokenizer):
    async def test(engine, thread):
        thread.submit([request(tokenizer, "forever")])
        began = time.monotonic()
        await thread.stop(60, lambda: True)
        assert time.monotonic() - began < 5

    with_thread(tokenizer, test)
