"""POST /v1/completions: raw prompts, continued or scored.

Control tokens in a prompt's text are control tokens. `max_tokens` is 16 unless it is given, as in
OpenAI's API. With `echo` and `logprobs` the prompt's own tokens are scored, which is what
evaluation harnesses use; `max_tokens` 0 then gives the prompt alone, and with `max_tokens` 1 the
one token after it is reported even if it ends the text, so that the counts are always the same.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

from fourbee.engine.text_stream import TextDelta
from fourbee.foundation.errors import UsageError
from fourbee.server.answers import Completion, CompletionChoice
from fourbee.server.body import parse_request
from fourbee.server.errors import shown
from fourbee.server.generation import (
    MAX_ANSWERS,
    Answer,
    Job,
    check_length,
    check_model,
    check_stream_options,
    engine_requests,
    new_id,
    sampling_params,
)
from fourbee.server.logprobs import PlacedToken, completion_logprobs
from fourbee.server.request_events import Generation
from fourbee.server.served_model import ServedModel
from fourbee.server.streaming import DONE, event_frame
from fourbee.server.wire import CompletionRequest
from fourbee.text.detokenizer import IncrementalDetokenizer
from fourbee.text.tokenizer import Tokenizer

# OpenAI's default, short as it is.
DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True)
class CompletionJob:
    """A request for completions with everything that its answers need."""

    request: CompletionRequest
    job: Job

    @classmethod
    def prepare(cls, model: ServedModel, body: bytes, owner: str) -> CompletionJob:
        """Check and tokenise; ApiError or another FourbeeError says what is wrong. Not quick."""
        request = parse_request(CompletionRequest, body)
        check_model(model, request.model)
        check_stream_options(request)
        max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        if max_tokens == 0 and not request.echo:
            raise UsageError(
                "max_tokens = 0: expected a whole number from 1, or 0 together with echo",
                "max_tokens",
            )
        prompts = _prompts(model.tokenizer, request)
        for prompt in prompts:
            check_length(model, request, prompt, max_tokens)
        only_prompt = max_tokens == 0
        scored = bool(request.echo) and request.logprobs is not None
        params = sampling_params(
            model,
            request,
            max(1, max_tokens),
            request.logprobs,
            ignore_eos=scored and max_tokens == 1,
        )
        prompt_logprobs = (request.logprobs or 0) if scored or only_prompt else None
        requests = engine_requests(prompts, params, request, owner, prompt_logprobs)
        answers = [
            Answer(index, one, model.tokenizer, only_prompt) for index, one in enumerate(requests)
        ]
        return cls(request, Job(new_id("cmpl-"), model, prompts, answers))

    async def whole(self, generation: Generation) -> Completion:
        """The finished answer."""
        texts = self._texts()
        async for pieces in self.job.pieces(generation):
            for answer, delta in pieces:
                texts[answer.index].add(delta)
        return self._answer([text.take() for text in texts], with_usage=True)

    async def frames(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The stream's events."""
        texts = self._texts()
        async for pieces in self.job.pieces(generation):
            for answer, delta in pieces:
                texts[answer.index].add(delta)
            changed = dict.fromkeys(answer.index for answer, _ in pieces)
            yield b"".join(event_frame(self._answer([texts[index].take()])) for index in changed)
        if self.request.include_usage:
            yield event_frame(self._answer([], with_usage=True))
        yield DONE

    def _texts(self) -> list[_ChoiceText]:
        return [_ChoiceText(self.job.model.tokenizer, self.request, a) for a in self.job.answers]

    def _answer(self, choices: list[CompletionChoice], with_usage: bool = False) -> Completion:
        job = self.job
        return Completion(
            id=job.id,
            created=job.created,
            model=job.model.name,
            choices=choices,
            usage=job.usage() if with_usage else None,
        )


class _ChoiceText:
    """One choice's text and tokens: what has been added since it was taken last."""

    def __init__(self, tokenizer: Tokenizer, request: CompletionRequest, answer: Answer) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = request.logprobs is not None
        self._answer = answer
        self._text = ""
        self._tokens: list[PlacedToken] = []
        self._echo_length = 0
        self._echo_is_due = bool(request.echo)

    def add(self, delta: TextDelta) -> None:
        """One more piece; before the first, the echoed prompt."""
        if self._echo_is_due:
            self._echo_is_due = False
            self._add_prompt()
        self._text += delta.text
        self._tokens += [
            PlacedToken(token.scored.token_id, token.scored, self._echo_length + token.offset)
            for token in delta.tokens
        ]

    def take(self) -> CompletionChoice:
        """What was added, as the wire has it."""
        text, self._text = self._text, ""
        tokens, self._tokens = self._tokens, []
        return CompletionChoice(
            index=self._answer.index,
            text=text,
            logprobs=completion_logprobs(self._tokenizer, tokens) if self._wants_logprobs else None,
            finish_reason=self._answer.finish_reason,
        )

    def _add_prompt(self) -> None:
        """The prompt's text, and its tokens with their scores; the first token has none."""
        decoder = IncrementalDetokenizer(self._tokenizer)
        prompt_ids = self._answer.request.prompt_ids
        scores = (None, *self._answer.prompt_scores)
        for token_id, scored in zip_longest(prompt_ids, scores[: len(prompt_ids)]):
            self._tokens.append(PlacedToken(token_id, scored, len(self._text)))
            self._text += decoder.push(token_id)
        self._text += decoder.finish()
        self._echo_length = len(self._text)


def _prompts(tokenizer: Tokenizer, request: CompletionRequest) -> list[list[int]]:
    """The token ids of every prompt. UsageError for empty prompts and unknown tokens."""
    given = request.prompt
    prompts: Sequence[str | list[int]]
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        prompts = [given]
    else:
        prompts = cast("list[str | list[int]]", given)
    if len(prompts) > MAX_ANSWERS:
        raise UsageError(
            f"prompt has {len(prompts)} entries: expected at most {MAX_ANSWERS}", "prompt"
        )
    encoded = [
        tokenizer.encode(prompt, control_tokens=True) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    if not encoded or not all(encoded):
        raise UsageError(
            f"prompt = {shown(given)}: expected at least one token in each prompt", "prompt"
        )
    last = tokenizer.vocab_size - 1
    for token_id in (edge for prompt in encoded for edge in (min(prompt), max(prompt))):
        if not 0 <= token_id <= last:
            raise UsageError(
                f"prompt has the token id {token_id}, which is out of vocabulary: expected ids "
                f"from 0 to {last}",
                "prompt",
            )
    return encoded
