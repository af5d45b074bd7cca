"""LLM: a model in this process, text in and text out.

For scripts, the command line and evaluation; the server runs `Engine` in a process of its own.
One thread at a time. Chat history, tools' execution and choices beyond one are the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from fourbee.engine.checkpoint import load_quantized, open_checkpoint
from fourbee.engine.engine import Engine
from fourbee.engine.request import Event, Finished, FinishReason, Request, TokenGenerated
from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.engine.text_stream import TextDelta, TextStream, TextToken
from fourbee.foundation.errors import FourbeeError, UsageError
from fourbee.kernels.backends import open_operations
from fourbee.kernels.operations import Operations
from fourbee.model.checkpoint_files import Progress
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.text.chat_format import ChatFormat, Message, Tool
from fourbee.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; an answer's count holds those of a stop string, which its text lacks."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """A finished answer. `logprobs` where they were asked for, a token each."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TextToken, ...] | None = None
    error: str | None = None  # one line, for finish_reason "error" alone


class LLM:
    """A model, its tokenizer and an engine."""

    def __init__(
        self,
        weights: Qwen3Weights,
        ops: Operations,
        tokenizer: Tokenizer,
        defaults: SamplingDefaults | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        """`defaults` are the checkpoint's: what is sampled with where no parameters are given."""
        self.tokenizer = tokenizer
        self.num_parameters = weights.config.num_parameters
        self.defaults = defaults or SamplingDefaults()
        eos_ids = {*tokenizer.eos_token_ids, *self.defaults.eos_token_ids}
        self.engine = Engine(weights, ops, tuple(sorted(eos_ids)), settings)
        self._answers: dict[str, _Answer] = {}
        self._numbers = count()

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        settings: EngineSettings | None = None,
        backend: str = "auto",
        quantize: str = "none",
        kv_type: str = "auto",
        progress: Progress | None = None,
    ) -> LLM:
        """From a checkpoint folder or a GGUF file.

        Raises ModelFileError or UsageError for what cannot be loaded. `device`, `dtype`,
        `backend`, `quantize` and `kv_type` as in `open_operations`. What `quantize` packs is kept
        for the next time (`load_quantized`); `progress` is told of the packing.
        """
        files = open_checkpoint(Path(model))
        # What is wrong with the files is said before anything that takes seconds begins.
        files.check()
        tokenizer, defaults = files.tokenizer, files.defaults
        config = files.config
        ops = open_operations(
            backend, device, dtype, config.torch_dtype, quantize, config.head_dim, config.packed,
            kv_type,
        )  # fmt: skip
        weights = (
            files.load_weights(ops)
            if quantize == "none"
            else load_quantized(files, quantize, ops, progress)
        )
        return cls(weights, ops, tokenizer, defaults, settings)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """An answer to each prompt, text (control tokens are parsed) or token ids, in order.

        `params` are for all prompts or one a prompt. UsageError before anything is computed.
        """
        if isinstance(prompts, str):
            raise UsageError("prompts: expected a list of prompts, not one string")
        requests = [
            self._request(prompt, one)
            for prompt, one in zip(prompts, self._params(params, len(prompts)), strict=True)
        ]
        answers = [_Answer(self.tokenizer, request) for request in requests]
        waiting = deque(answers)
        try:
            while any(answer.reason is None for answer in answers):
                while waiting and self.engine.has_room:
                    self._submit(waiting.popleft())
                self._step()
        finally:
            self._abort(answers)
        return [answer.completion() for answer in answers]

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> Completion:
        """The assistant's answer to a conversation; tool calls are in its text."""
        return self.generate([self.chat_format.encode(messages, tools)], params)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextDelta]:
        """The answer as it grows; the last delta has a finish reason. Closing it aborts.

        UsageError at once for what cannot work; FourbeeError where the text ends in an error.
        """
        request = self._request(prompt, params or self.defaults.params)
        return self._deltas(_Answer(self.tokenizer, request))

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> Iterator[TextDelta]:
        """The assistant's answer as it grows, as `stream`."""
        return self.stream(self.chat_format.encode(messages, tools), params)

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The checkpoint's chat format; ModelFileError when it has none."""
        return ChatFormat(self.tokenizer)

    def _params(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.defaults.params] * num_prompts
        if len(params) != num_prompts:
            raise UsageError(
                f"params: expected one for all or {num_prompts}, one a prompt, not {len(params)}"
            )
        return list(params)

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, control_tokens=True)
        request = Request(f"llm-{next(self._numbers)}", tuple(prompt), params)
        self.engine.check(request)
        return request

    def _deltas(self, answer: _Answer) -> Iterator[TextDelta]:
        try:
            self._submit(answer)
            told = 0
            # Steps taken for other streams may have told this one more than one delta.
            while answer.reason is None or told < len(answer.deltas):
                if told == len(answer.deltas):
                    self._step()
                    continue
                told += 1
                yield answer.deltas[told - 1]
            if answer.error is not None:
                raise FourbeeError(answer.error)
        finally:
            self._abort([answer])

    def _submit(self, answer: _Answer) -> None:
        self.engine.add(answer.request)
        self._answers[answer.request.id] = answer

    def _step(self) -> None:
        """One step of the engine, told to all answers in progress: streams may be interleaved."""
        for event in self.engine.step():
            answer = self._answers.get(event.request_id)
            if answer is None:
                continue
            answer.take(event)
            if answer.reason is not None:
                self._abort([answer])

    def _abort(self, answers: Sequence[_Answer]) -> None:
        """Forgets answers, finished or not."""
        for answer in answers:
            self._answers.pop(answer.request.id, None)
            self.engine.abort(answer.request.id)


class _Answer:
    """A request and what has become of it."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.request = request
        self.deltas: list[TextDelta] = []
        self._stream = TextStream(tokenizer, request.params)
        self.error: str | None = None  # one line, for reason "error" alone

    @property
    def reason(self) -> FinishReason | None:
        return self._stream.finish_reason

    def take(self, event: Event) -> None:
        """Adds what an event tells; empty deltas are left out."""
        if isinstance(event, TokenGenerated):
            delta = self._stream.push(event.token)
        elif isinstance(event, Finished):
            self.error = event.error
            delta = self._stream.finish(event.reason)
        else:
            return
        if delta != TextDelta("", ()):
            self.deltas.append(delta)

    def completion(self) -> Completion:
        """The whole answer, once it is finished."""
        assert self.reason is not None
        tokens = tuple(token for delta in self.deltas for token in delta.tokens)
        return Completion(
            text="".join(delta.text for delta in self.deltas),
            token_ids=tuple(token.scored.token_id for token in tokens),
            finish_reason=self.reason,
            usage=Usage(len(self.request.prompt_ids), self._stream.num_tokens),
            logprobs=None if self.request.params.logprobs is None else tokens,
            error=self.error,
        )
