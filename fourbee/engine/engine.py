"""Engine: requests in, events out, a step at a time: schedule, run, sample, publish.

Synchronous and single-threaded: whoever owns it calls `launch` and `result` in turn while
`has_work`. Token ids only; text, stop strings and chat are above it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fourbee.engine.model_runner import ModelRunner, Outcome, Step
from fourbee.engine.request import (
    Event,
    Finished,
    FinishReason,
    PromptScored,
    Request,
    TokenGenerated,
)
from fourbee.engine.sampling import MAX_LOGPROBS
from fourbee.engine.scheduler import EngineSettings, Scheduler
from fourbee.engine.sequence import Sequence
from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Operations
from fourbee.model.qwen3 import Qwen3Weights


@dataclass(frozen=True)
class Pending:
    """A launched step; `result` may be taken once, before the next launch."""

    engine: Engine
    step: Step

    def result(self) -> list[Event]:
        """Waits for the step; its events, in order for each request."""
        return self.engine._finish_step(self.step)


class Engine:
    """One model's requests, batched. Every added request ends with exactly one `Finished`."""

    def __init__(
        self,
        weights: Qwen3Weights,
        ops: Operations,
        eos_token_ids: tuple[int, ...] = (),
        settings: EngineSettings | None = None,
    ) -> None:
        """`eos_token_ids` end an answer, unless its request ignores them."""
        self.settings = settings or EngineSettings()
        self.vocab_size = weights.config.vocab_size
        longest = weights.config.max_position_embeddings
        self.context_length = min(self.settings.context_length or longest, longest)
        self._eos_token_ids = eos_token_ids
        self._runner = ModelRunner(weights, ops, self.settings.max_idle_tokens)
        self._scheduler = Scheduler(self.settings, self._runner.start)
        self._sequences: dict[str, Sequence] = {}
        self._events: list[Event] = []
        self._in_flight = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: requests live, or events are waiting to be told."""
        return bool(self._sequences or self._events)

    @property
    def has_room(self) -> bool:
        """Whether `add` would find a place in the queue."""
        return self._scheduler.has_room

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._scheduler.waiting)

    def check(self, request: Request) -> None:
        """UsageError for a request that `add` would refuse for what it asks. Changes nothing."""
        _check_prompt(request.prompt_ids, self.vocab_size)
        _check_params(request, self.vocab_size)
        length, limit = len(request.prompt_ids), self.context_length
        max_tokens = request.params.max_tokens
        if length >= limit:
            raise UsageError(
                f"prompt has {length} tokens, but this model's context is {limit}: "
                "shorten the prompt or max_tokens",
                parameter="prompt",
            )
        if max_tokens is not None and length + max_tokens > limit:
            raise UsageError(
                f"prompt has {length} tokens and max_tokens = {max_tokens}, but this model's "
                f"context is {limit}: shorten the prompt or max_tokens",
                parameter="max_tokens",
            )

    def add(self, request: Request) -> str:
        """Queues a request; its id. UsageError as `check`; CapacityError when the queue is full."""
        self.check(request)
        if request.id in self._sequences:
            raise UsageError(f"id = {request.id!r}: another request with this id is living")
        params = request.params
        max_length = self.context_length
        if params.max_tokens is not None:
            max_length = len(request.prompt_ids) + params.max_tokens
        eos_ids = () if params.ignore_eos else self._eos_token_ids
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        sequence = Sequence(request, max_length, {*eos_ids, *params.stop_token_ids}, seed)
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        return request.id

    def launch(self) -> Pending:
        """Schedules and starts the next step.

        Whatever a step raises ends all running requests with reason "error"; the engine lives on.
        """
        assert not self._in_flight, "take the result of the last step first"
        with self._ending_interrupted():
            step = self._runner.run(self._scheduler.schedule())
            self._in_flight = True
        return Pending(self, step)

    def step(self) -> list[Event]:
        """`launch` and `result` in one."""
        with self._ending_interrupted():
            return self.launch().result()

    def abort(self, request_id: str) -> None:
        """Ends a request; the next result tells its `Finished`. Nothing if it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, "abort")

    def _finish_step(self, step: Step) -> list[Event]:
        assert self._in_flight, "a step has one result"
        with self._ending_interrupted():
            for outcome in self._runner.sample(step):
                # One may have been aborted since the launch.
                if outcome.chunk.sequence.state == "running":
                    self._publish(outcome)
            self._in_flight = False
        events, self._events = self._events, []
        return events

    @contextmanager
    def _ending_interrupted(self) -> Iterator[None]:
        """What stops a step (Ctrl-C, no memory) ends the requests in it: their caches are torn."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self._in_flight = False
                for sequence in tuple(self._scheduler.running):
                    self._finish(sequence, "error", "the step that computed it was interrupted")

    def _publish(self, outcome: Outcome) -> None:
        sequence = outcome.chunk.sequence
        sequence.computed += outcome.chunk.count
        if not outcome.finite:
            self._finish(sequence, "error", "the model's logits are not finite: check its weights")
            return
        sequence.prompt_scores += outcome.prompt_scores
        if outcome.token is None:
            return
        if sequence.request.prompt_logprobs is not None and not sequence.generated_ids:
            self._events.append(PromptScored(sequence.id, tuple(sequence.prompt_scores)))
        reason = sequence.append(outcome.token.token_id)
        if reason != "stop":
            self._events.append(TokenGenerated(sequence.id, outcome.token))
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        self._scheduler.remove(sequence)
        self._runner.release(sequence, reusable=reason != "error")
        del self._sequences[sequence.id]
        self._events.append(Finished(sequence.id, reason, error))


def _check_prompt(prompt_ids: tuple[int, ...], vocab_size: int) -> None:
    if not prompt_ids:
        raise UsageError("prompt is empty: expected at least one token", parameter="prompt")
    for token_id in (min(prompt_ids), max(prompt_ids)):
        if not 0 <= token_id < vocab_size:
            raise UsageError(
                f"prompt holds token id {token_id}: expected from 0 to {vocab_size - 1}",
                parameter="prompt",
            )


def _check_params(request: Request, vocab_size: int) -> None:
    for token_id, _ in request.params.logit_bias:
        if token_id >= vocab_size:
            raise UsageError(
                f"logit_bias holds token id {token_id}: expected from 0 to {vocab_size - 1}",
                parameter="logit_bias",
            )
    num_top = request.prompt_logprobs
    if num_top is not None and not 0 <= num_top <= MAX_LOGPROBS:
        raise UsageError(
            f"prompt_logprobs = {num_top}: expected from 0 to {MAX_LOGPROBS}",
            parameter="prompt_logprobs",
        )
