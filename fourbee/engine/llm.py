"""LLM: a model in this process, text in and text out.

For scripts, the command line and evaluation; the server runs `Engine` in a process of its own.
One thread at a time. Chat history, tools' execution and choices beyond one are the caller's.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path

from fourbee.engine.checkpoint import Checkpoint, load_quantized, open_checkpoint
from fourbee.engine.context_store import ContextStore
from fourbee.engine.contexts import Contexts
from fourbee.engine.engine import Engine
from fourbee.engine.ledger import Setup, kv_pages
from fourbee.engine.request import Event, Finished, FinishReason, Request, TokenGenerated
from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.engine.text_stream import TextDelta, TextStream, TextToken
from fourbee.foundation.errors import FourbeeError, UsageError
from fourbee.kernels.backends import open_operations
from fourbee.kernels.operations import Operations
from fourbee.model.attention_modes import ModeName
from fourbee.model.checkpoint_files import Progress
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.weights_digest import weights_digest
from fourbee.text.chat_format import ChatFormat, Message, Tool
from fourbee.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; an answer's count holds those of a stop string, which its text lacks."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, whose keys and values were there already


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
        store: ContextStore | None = None,
        weights_digest: str = "",
    ) -> None:
        """`defaults` are the checkpoint's: what is sampled with where no parameters are given.

        `store` keeps keys and values on a disk, under the digest of the weights.
        """
        self.tokenizer = tokenizer
        self.num_parameters = weights.config.num_parameters
        self.defaults = defaults or SamplingDefaults()
        eos_ids = {*tokenizer.eos_token_ids, *self.defaults.eos_token_ids}
        # Only on a disk may keys and values of another tokenizer lie.
        named = _digest(tokenizer) if store else ""
        contexts = Contexts(weights_digest, named, partial(_piece, tokenizer), store)
        self.engine = Engine(weights, ops, tuple(sorted(eos_ids)), settings, contexts)
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
        max_context: int | None = None,
        context_store: str | Path | None = None,
        context_store_bytes: int | None = None,
    ) -> LLM:
        """From a checkpoint folder or a GGUF file.

        Raises ModelFileError or UsageError for what cannot be loaded. `device`, `dtype`,
        `backend`, `quantize` and `kv_type` as in `open_operations`. What `quantize` packs is kept
        for the next time (`load_quantized`); `progress` is told of the packing.

        The context is as long as the memory holds (`engine/ledger.py`), at most `max_context`; with
        `settings`, what they say. A `context_store` keeps keys and values in this folder, at most
        so many bytes of them.
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
        if settings is None:
            settings = _fitted(files, ops, dtype, quantize, kv_type, max_context)
        store, digest = None, ""
        if context_store is not None:
            store = ContextStore(Path(context_store), context_store_bytes)
            digest = weights_digest(files.weight_files, store.folder / "weights.json")
        weights = (
            files.load_weights(ops)
            if quantize == "none"
            else load_quantized(files, quantize, ops, progress)
        )
        return cls(weights, ops, tokenizer, defaults, settings, store, digest)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        context_id: str | None = None,
        attention: ModeName = "dense",
    ) -> list[Completion]:
        """An answer to each prompt, text (control tokens are parsed) or token ids, in order.

        `params` are for all prompts or one a prompt. A `context_id` names the conversation that
        all go on from; `attention` is as in `Request`. UsageError before anything is computed.
        """
        if isinstance(prompts, str):
            raise UsageError("prompts: expected a list of prompts, not one string")
        requests = [
            self._request(prompt, one, context_id, attention)
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
        context_id: str | None = None,
    ) -> Completion:
        """The assistant's answer to a conversation; tool calls are in its text."""
        return self.generate([self.chat_format.encode(messages, tools)], params, context_id)[0]

    def close(self) -> None:
        """Writes what the store does not have yet. The model is not to be used any more."""
        self.engine.close()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, context_id: str | None = None
    ) -> Iterator[TextDelta]:
        """The answer as it grows; the last delta has a finish reason. Closing it aborts.

        UsageError at once for what cannot work; FourbeeError where the text ends in an error.
        """
        request = self._request(prompt, params or self.defaults.params, context_id)
        return self._deltas(_Answer(self.tokenizer, request))

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        tools: Sequence[Tool] | None = None,
        context_id: str | None = None,
    ) -> Iterator[TextDelta]:
        """The assistant's answer as it grows, as `stream`."""
        return self.stream(self.chat_format.encode(messages, tools), params, context_id)

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

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        context_id: str | None = None,
        attention: ModeName = "dense",
    ) -> Request:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, control_tokens=True)
        name = f"llm-{next(self._numbers)}"
        request = Request(name, tuple(prompt), params, context_id=context_id, attention=attention)
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


def _fitted(
    files: Checkpoint, ops: Operations, dtype: str, quantize: str, kv_type: str,
    max_context: int | None,
) -> EngineSettings:  # fmt: skip
    """Settings with the context and the pages that this machine's memory holds; told in the log."""
    memory, config = ops.gpu_bytes, files.config
    on_gpu = memory is not None
    setup = Setup(config, ops.backend, dtype, quantize, kv_type, files.formats, on_gpu)
    fitted = kv_pages(setup, memory, max_context)
    if fitted.context_length < config.max_position_embeddings:
        logger.info("%s", fitted.sentence)
    return EngineSettings(context_length=fitted.context_length, kv_pages=fitted.pages)


def _digest(tokenizer: Tokenizer) -> str:
    text = tokenizer.to_json() + (tokenizer.chat_template or "")
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _piece(tokenizer: Tokenizer, token_id: int) -> bytes | None:
    """A token's bytes; None for a control token."""
    return None if token_id in tokenizer.control_token_ids else tokenizer.piece(token_id)


class _Answer:
    """A request and what has become of it."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.request = request
        self.deltas: list[TextDelta] = []
        self._stream = TextStream(tokenizer, request.params)
        self.error: str | None = None  # one line, for reason "error" alone
        self._prompt_tokens, self._cached_tokens = len(request.prompt_ids), 0

    @property
    def reason(self) -> FinishReason | None:
        return self._stream.finish_reason

    def take(self, event: Event) -> None:
        """Adds what an event tells; empty deltas are left out."""
        if isinstance(event, TokenGenerated):
            delta = self._stream.push(event.token)
        elif isinstance(event, Finished):
            self.error = event.error
            self._prompt_tokens = event.prompt_tokens
            self._cached_tokens = event.cached_tokens
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
            usage=Usage(self._prompt_tokens, self._stream.num_tokens, self._cached_tokens),
            logprobs=None if self.request.params.logprobs is None else tokens,
            error=self.error,
        )
