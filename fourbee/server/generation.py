"""From a client's request to the engine's requests, and from events to the pieces of its answers.

What both endpoints share. Streams and whole answers are made of the same pieces.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from uuid import uuid4

from fourbee.engine.request import (
    Event,
    Finished,
    PromptScored,
    Request,
    ScoredToken,
    TokenGenerated,
)
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.text_stream import TextDelta, TextStream
from fourbee.foundation.errors import UsageError
from fourbee.server.answers import Finish, PromptTokensDetails, Usage
from fourbee.server.errors import context_length_exceeded, internal_error, model_not_found, shown
from fourbee.server.request_events import Generation
from fourbee.server.served_model import ServedModel
from fourbee.server.wire import GenerationRequest
from fourbee.text.tokenizer import Tokenizer

# Prompts times choices of one request.
MAX_ANSWERS = 256


class Answer:
    """One choice: its engine request and its text so far."""

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer, only_prompt: bool = False
    ) -> None:
        """`only_prompt` ends it where the answer would begin: the prompt is scored, that is all."""
        self.index = index
        self.request = request
        self.prompt_scores: tuple[ScoredToken, ...] = ()
        self.cached_tokens = 0  # of the prompt; known at the end
        self._only_prompt = only_prompt
        self._text = TextStream(tokenizer, request.params)

    @property
    def finish_reason(self) -> Finish | None:
        """Why it ended, when it has."""
        return cast("Finish | None", self._text.finish_reason)

    @property
    def num_tokens(self) -> int:
        """Generated tokens, those of a stop string included."""
        return self._text.num_tokens

    def take(self, event: Event) -> TextDelta | None:
        """What an event adds; None for nothing. ApiError when the engine gave the request up."""
        if isinstance(event, PromptScored):
            self.prompt_scores = event.tokens
            return self._text.finish("length") if self._only_prompt else None
        if isinstance(event, TokenGenerated):
            delta = self._text.push(event.token)
        else:
            self.cached_tokens = event.cached_tokens
            if event.reason not in ("stop", "length"):
                raise internal_error(event.error or "the engine ended the request")
            delta = self._text.finish(event.reason)
        return delta if delta.text or delta.tokens or delta.finish_reason else None


@dataclass(frozen=True)
class Job:
    """A client's request, made ready for the engine."""

    id: str
    model: ServedModel
    prompts: Sequence[Sequence[int]]
    answers: Sequence[Answer]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def requests(self) -> list[Request]:
        """For the engine."""
        return [answer.request for answer in self.answers]

    def usage(self) -> Usage:
        """The counts so far."""
        prompt = sum(len(prompt) for prompt in self.prompts)
        completion = sum(answer.num_tokens for answer in self.answers)
        # Of the first choice of each prompt: the others find what it has read.
        choices = len(self.answers) // max(1, len(self.prompts))
        cached = sum(answer.cached_tokens for answer in self.answers[:: max(1, choices)])
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    async def pieces(self, generation: Generation) -> AsyncIterator[list[tuple[Answer, TextDelta]]]:
        """What all answers add, as often as something is new, until the last has ended.

        ApiError when one of them cannot go on.
        """
        answers: Mapping[str, Answer] = {answer.request.id: answer for answer in self.answers}
        while any(answer.finish_reason is None for answer in self.answers):
            pieces: list[tuple[Answer, TextDelta]] = []
            for event in await generation.next_events():
                answer = answers[event.request_id]
                if answer.finish_reason is not None:
                    continue
                delta = answer.take(event)
                if delta is None:
                    continue
                pieces.append((answer, delta))
                if delta.finish_reason is not None and not isinstance(event, Finished):
                    generation.abort(event.request_id)
            if pieces:
                yield pieces


def new_id(prefix: str) -> str:
    """An id such as OpenAI's, different each time."""
    return prefix + uuid4().hex


def check_model(model: ServedModel, name: str | None) -> None:
    """ApiError 404 when another model than the served one is asked for."""
    if name is not None and name != model.name:
        raise model_not_found(name, model.name)


def check_stream_options(request: GenerationRequest) -> None:
    """UsageError for options of a stream that was not asked for."""
    if request.stream_options is not None and not request.stream:
        raise UsageError("stream_options: expected only with stream = true", "stream_options")


def check_length(
    model: ServedModel, request: GenerationRequest, prompt: Sequence[int], max_tokens: int | None
) -> None:
    """ApiError 400 when prompt and answer do not fit into the context together.

    What other attention than dense allows, the engine knows.
    """
    if request.attention not in (None, "dense"):
        return
    if len(prompt) + max(1, max_tokens or 1) > model.max_context:
        raise context_length_exceeded(len(prompt), max_tokens or 1, model.max_context)


def sampling_params(
    model: ServedModel,
    request: GenerationRequest,
    max_tokens: int | None,
    logprobs: int | None,
    ignore_eos: bool = False,
) -> SamplingParams:
    """How to sample: what the request says, else what the checkpoint recommends."""
    defaults = model.defaults
    given = {
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
    }
    recommended = {name: getattr(defaults, name) for name in given}
    return SamplingParams(
        **(recommended | {name: value for name, value in given.items() if value is not None}),
        max_tokens=max_tokens,
        stop=request.stop_strings,
        seed=request.seed,
        logprobs=logprobs,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request, model.tokenizer.vocab_size),
        ignore_eos=ignore_eos or bool(request.ignore_eos),
    )


def engine_requests(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    request: GenerationRequest,
    owner: str,
    prompt_logprobs: int | None = None,
) -> list[Request]:
    """As many requests for each prompt as choices were asked for, each with a seed of its own.

    `owner`: nothing that is kept of them is shared with anybody else.
    """
    num_choices = request.num_choices
    if request.context_id is not None and len(prompts) * num_choices > 1:
        raise UsageError(
            f"context_id = {shown(request.context_id)}: expected one prompt and n = 1, as a "
            "conversation goes on from one answer",
            "context_id",
        )
    if len(prompts) * num_choices > MAX_ANSWERS:
        raise UsageError(
            f"n = {num_choices} for {len(prompts)} prompts: expected at most {MAX_ANSWERS} "
            "answers in one request",
            "n",
        )
    return [
        Request(
            new_id("req_"), tuple(prompt), params.for_choice(choice), prompt_logprobs,
            priority=request.priority or 0, namespace=owner,
            attention=request.attention or "dense", context_id=request.context_id,
        )
        for prompt in prompts
        for choice in range(num_choices)
    ]  # fmt: skip


def _logit_bias(request: GenerationRequest, vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, bias in (request.logit_bias or {}).items():
        # Nine digits are beyond any vocabulary, and int() of a very long text is an error.
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token_id < vocab_size:
            raise UsageError(
                f"logit_bias has the key {shown(key)}: expected a token id from 0 to "
                f"{vocab_size - 1}",
                "logit_bias",
            )
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not number or not -100 <= bias <= 100:
            raise UsageError(
                f"logit_bias[{shown(key)}] = {shown(bias)}: expected a number from -100 to 100",
                "logit_bias",
            )
        pairs.append((token_id, float(bias)))
    return tuple(pairs)
