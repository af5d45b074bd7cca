"""Engine: requests in, events out, a step at a time: schedule, run, sample, publish.

Synchronous and single-threaded: whoever owns it calls `launch` and `result` in turn while
`has_work`. Token ids only; text, stop strings and chat are above it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fourbee.engine.contexts import Contexts
from fourbee.engine.kv_cache import KvCache
from fourbee.engine.kv_recipe import KvLayout, KvRecipe, page_key
from fourbee.engine.model_runner import ModelRunner, Outcome, Step
from fourbee.engine.page_pool import PageCounts
from fourbee.engine.prefix_tree import PAGE_TOKENS
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
from fourbee.engine.step_cost import StepCost
from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Operations, StepInterrupted
from fourbee.kernels.paged_cache import KvPages
from fourbee.model.attention_modes import ModeName, attention_modes
from fourbee.model.config import Qwen3Config
from fourbee.model.positions import position_scheme
from fourbee.model.qwen3 import Qwen3Weights

# Pages that are written behind between two steps, every few seconds.
SAVED_AT_ONCE = 16
# Positions of a pool whose size nobody gave.
MOST_POSITIONS = 1 << 17


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
        contexts: Contexts | None = None,
    ) -> None:
        """`eos_token_ids` end an answer, unless its request ignores them.

        `contexts`: what is needed for keys and values to last; None to keep them in memory alone.
        """
        self.settings = settings or EngineSettings()
        config = weights.config
        self.vocab_size = config.vocab_size
        trained = config.max_position_embeddings
        longest = min(self.settings.context_length or trained, trained)
        pages = self.settings.kv_pages or _pages_of_use(longest, self.settings.max_running)
        self._modes = attention_modes(config, self.settings.window, pages)
        self._eos_token_ids = eos_token_ids
        self._runner = ModelRunner(weights, ops, pages)
        self._contexts = contexts or Contexts()
        self._recipe = _recipe(config, ops, self._runner.storage, self._contexts)
        self._recipes: dict[tuple[str, str], bytes] = {}  # digests by namespace and attention
        self._kv = KvCache(self._runner.storage, self._contexts.store, page_key)
        self._scheduler = Scheduler(self.settings, self._kv, StepCost(_key_share(config)))
        # A sequence alone always has the pages that it needs.
        self.context_length = self.limit("dense")
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
    def pages(self) -> PageCounts:
        """Pages of keys and values by their state."""
        return self._kv.counts

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
        if request.attention not in self._modes:
            raise UsageError(
                f"attention = {request.attention!r}: expected one of {', '.join(self._modes)}",
                parameter="attention",
            )
        length, limit = len(request.prompt_ids), self.limit(request.attention)
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

    def limit(self, attention: ModeName) -> int:
        """Tokens that a request of this attention may have, its answer included."""
        mode = self._modes[attention]
        if mode.held is not None:
            return mode.longest
        longest = min(mode.longest, self.settings.context_length or mode.longest)
        return min(longest, self._kv.counts.total * PAGE_TOKENS)

    def add(self, request: Request) -> str:
        """Queues a request; its id. UsageError as `check`; CapacityError when the queue is full.

        The prompt of a context that is known takes the tokens back that were sampled.
        """
        request = self._contexts.resumed(request)
        self.check(request)
        if request.id in self._sequences:
            raise UsageError(f"id = {request.id!r}: another request with this id is living")
        params = request.params
        max_length = self.limit(request.attention)
        if request.attention == "streaming":  # it would never end
            max_length = len(request.prompt_ids) + self.context_length
        if params.max_tokens is not None:
            max_length = len(request.prompt_ids) + params.max_tokens
        eos_ids = () if params.ignore_eos else self._eos_token_ids
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        ends = {*eos_ids, *params.stop_token_ids}
        mode = self._modes[request.attention].for_prompt(len(request.prompt_ids))
        sequence = Sequence(request, max_length, ends, seed, self._recipe_digest(request), mode)
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        return request.id

    def launch(self) -> Pending:
        """Schedules and starts the next step.

        Whatever a step raises ends all running requests with reason "error"; the engine lives on.
        """
        assert not self._in_flight, "take the result of the last step first"
        with self._ending_interrupted():
            self._launched = time.perf_counter()
            try:
                step = self._runner.run(self._scheduler.schedule())
            except StepInterrupted:  # all of it is done again
                step = Step((), None)
            self._in_flight = True
        return Pending(self, step)

    def interrupt(self) -> None:
        """From any thread: ends the step under way early; what is left of it is done again.

        For whoever aborts a request that a long step computes.
        """
        self._runner.interrupt()

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
            outcomes = self._runner.sample(step)
            self._observe(step)
            for outcome in outcomes:
                # One may have been aborted since the launch.
                if outcome.chunk.sequence.state == "running":
                    self._publish(outcome)
            self._in_flight = False
        if self._contexts.store is not None and self._contexts.is_time(self._sequences.values()):
            self._kv.save_some(SAVED_AT_ONCE)
        events, self._events = self._events, []
        return events

    def idle(self) -> bool:
        """A little of what can wait, for whoever has no step to make; whether there is more."""
        return self._kv.save_some(1)

    def close(self) -> None:
        """Writes what is still to be written. The engine is not to be used any more."""
        while self.idle():
            pass
        self._contexts.close()

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
        self._kv.commit(sequence)
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
        self._scheduler.remove(sequence, reusable=reason != "error")
        if reason != "error":
            self._contexts.remember(sequence)
        del self._sequences[sequence.id]
        length = sequence.prompt_length
        self._events.append(Finished(sequence.id, reason, error, length, sequence.cached))

    def _recipe_digest(self, request: Request) -> bytes:
        key = (request.namespace, request.attention)
        if key not in self._recipes:
            mode = self._modes[request.attention]
            recipe = replace(self._recipe, namespace=request.namespace, attention=mode.name)
            self._recipes[key] = recipe.digest()
        return self._recipes[key]

    def _observe(self, step: Step) -> None:
        """Tells the scheduler how long a step took."""
        cost, chunks = self._scheduler.cost, [part.chunk for part in step.parts]
        rows = sum(chunk.count for chunk in chunks)
        units = sum(cost.units(chunk.sequence.computed, chunk.count) for chunk in chunks)
        cost.observe(rows, units, 1000 * (time.perf_counter() - self._launched))

    def check_pages(self) -> None:
        """Asserts that no page is lost: for tests."""
        self._kv.check(self._sequences.values())


def _recipe(config: Qwen3Config, ops: Operations, storage: KvPages, contexts: Contexts) -> KvRecipe:
    """What keys and values are made of, for no owner yet."""
    layers, kv_heads, head_dim = (
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    )  # fmt: skip
    return KvRecipe(
        weights=contexts.weights,
        packing=ops.numerics,
        adapter=None,
        rotary=tuple(position_scheme(config).inverse_frequencies.tolist()),
        attention="dense",
        kv_type=storage.kind,
        layout=KvLayout(storage.page_bytes, layers, kv_heads, head_dim, PAGE_TOKENS),
        tokenizer=contexts.tokenizer,
        namespace="",
    )


def _pages_of_use(context_length: int, max_running: int) -> int:
    """Pages for as many long sequences as can run; fewer where those are very long."""
    whole = -(-context_length // PAGE_TOKENS)
    return max(whole, min(max_running * whole, MOST_POSITIONS // PAGE_TOKENS))


def _key_share(config: Qwen3Config) -> float:
    """What a key costs a row by what the weights of the layers cost it, in multiplications."""
    heads = config.num_attention_heads * config.head_dim
    both = heads + config.num_key_value_heads * config.head_dim
    weights = config.hidden_size * (2 * both + 3 * config.intermediate_size)
    return 2 * heads / weights


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
