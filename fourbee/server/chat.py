"""POST /v1/chat/completions: conversations, with tools.

`max_tokens` is what the context leaves unless it is given. Where tools are offered, calls in the
model's text become `tool_calls`; where they are not, text that looks like a call is text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fourbee.engine.request import ScoredToken
from fourbee.engine.text_stream import TextDelta
from fourbee.foundation.errors import UsageError
from fourbee.server.answers import (
    AnsweredToolCall,
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    Finish,
)
from fourbee.server.body import parse_request
from fourbee.server.chat_messages import template_messages, template_tools
from fourbee.server.generation import (
    Answer,
    Job,
    check_length,
    check_model,
    check_stream_options,
    engine_requests,
    new_id,
    sampling_params,
)
from fourbee.server.logprobs import chat_logprobs
from fourbee.server.request_events import Generation
from fourbee.server.served_model import ServedModel
from fourbee.server.streaming import DONE, event_frame
from fourbee.server.wire import ChatRequest
from fourbee.text.tokenizer import Tokenizer
from fourbee.text.tool_calls import ContentText, ToolCall, ToolCallParser


@dataclass(frozen=True)
class ChatJob:
    """A chat request with everything that its answers need."""

    request: ChatRequest
    job: Job
    has_tools: bool

    @classmethod
    def prepare(cls, model: ServedModel, body: bytes, owner: str) -> ChatJob:
        """Check, render and tokenise; ApiError or another FourbeeError says what is wrong."""
        request = parse_request(ChatRequest, body)
        check_model(model, request.model)
        check_stream_options(request)
        max_tokens = _max_tokens(request)
        tools = template_tools(request)
        if model.chat_format is None:
            raise UsageError(f"{model.name} has no chat template: use /v1/completions", "messages")
        prompt = model.chat_format.encode(template_messages(request.messages), tools)
        check_length(model, request, prompt, max_tokens)
        params = sampling_params(model, request, max_tokens, _num_top_logprobs(request))
        requests = engine_requests([prompt], params, request, owner)
        answers = [Answer(index, one, model.tokenizer) for index, one in enumerate(requests)]
        return cls(request, Job(new_id("chatcmpl-"), model, [prompt], answers), tools is not None)

    async def whole(self, generation: Generation) -> ChatCompletion:
        """The finished answer."""
        texts = self._texts()
        async for pieces in self.job.pieces(generation):
            for answer, delta in pieces:
                texts[answer.index].add(delta)
        job = self.job
        return ChatCompletion(
            id=job.id,
            created=job.created,
            model=job.model.name,
            choices=[text.choice() for text in texts],
            usage=job.usage(),
        )

    async def frames(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The stream's events."""
        texts = self._texts()
        opening = Delta(role="assistant", content="")
        yield b"".join(
            self._frame([ChunkChoice(index=index, delta=opening)]) for index in range(len(texts))
        )
        async for pieces in self.job.pieces(generation):
            for answer, delta in pieces:
                texts[answer.index].add(delta)
            changed = dict.fromkeys(answer.index for answer, _ in pieces)
            chunks = [chunk for index in changed for chunk in texts[index].chunks()]
            if chunks:
                yield b"".join(self._frame([chunk]) for chunk in chunks)
        if self.request.include_usage:
            yield self._frame([], with_usage=True)
        yield DONE

    def _texts(self) -> list[_ChoiceText]:
        return [
            _ChoiceText(self.job.model.tokenizer, answer, self.has_tools, self.request)
            for answer in self.job.answers
        ]

    def _frame(self, choices: list[ChunkChoice], with_usage: bool = False) -> bytes:
        job = self.job
        return event_frame(
            ChatChunk(
                id=job.id,
                created=job.created,
                model=job.model.name,
                choices=choices,
                usage=job.usage() if with_usage else None,
            )
        )


class _ChoiceText:
    """One choice's words, calls and tokens: what has been added since it was taken last."""

    def __init__(
        self, tokenizer: Tokenizer, answer: Answer, has_tools: bool, request: ChatRequest
    ) -> None:
        self._tokenizer = tokenizer
        self._answer = answer
        self._parser = ToolCallParser() if has_tools else None
        self._wants_logprobs = bool(request.logprobs)
        self._parts: list[ContentText | ToolCall] = []
        self._tokens: list[ScoredToken] = []
        self._num_calls = 0

    def add(self, delta: TextDelta) -> None:
        """One more piece of the answer's text."""
        self._tokens += [token.scored for token in delta.tokens]
        if self._parser is not None:
            self._parts += self._parser.feed(delta.text)
            if delta.finish_reason is not None:
                self._parts += self._parser.finish()
        elif delta.text:
            self._parts.append(ContentText(delta.text))

    def choice(self) -> ChatChoice:
        """Everything, for an answer that is not streamed."""
        parts = self._take_parts()
        words = "".join(part.text for part in parts if isinstance(part, ContentText))
        calls = [self._call(part) for part in parts if isinstance(part, ToolCall)]
        finish_reason = self._finish_reason()
        assert finish_reason is not None
        return ChatChoice(
            index=self._answer.index,
            message=AssistantMessage(
                content=words if words or not calls else None, tool_calls=calls or None
            ),
            logprobs=self._take_logprobs(),
            finish_reason=finish_reason,
        )

    def chunks(self) -> list[ChunkChoice]:
        """What was added, in order; the last one tells the end and has no content."""
        deltas = [
            Delta(content=part.text)
            if isinstance(part, ContentText)
            else Delta(tool_calls=[self._call(part, in_stream=True)])
            for part in self._take_parts()
        ]
        finish_reason = self._finish_reason()
        index = self._answer.index
        chunks = [
            ChunkChoice(index=index, delta=delta, logprobs=self._take_logprobs())
            for delta in deltas
        ]
        if finish_reason is not None:
            logprobs = self._take_logprobs()
            chunks.append(
                ChunkChoice(
                    index=index, delta=Delta(), logprobs=logprobs, finish_reason=finish_reason
                )
            )
        return chunks

    def _take_parts(self) -> list[ContentText | ToolCall]:
        parts, self._parts = self._parts, []
        return parts

    def _take_logprobs(self) -> ChatLogprobs | None:
        """Of all tokens since the last time: those of a call come with what follows them."""
        if not self._wants_logprobs:
            return None
        tokens, self._tokens = self._tokens, []
        return chat_logprobs(self._tokenizer, tokens)

    def _call(self, call: ToolCall, in_stream: bool = False) -> AnsweredToolCall:
        index = self._num_calls
        self._num_calls += 1
        return AnsweredToolCall(
            index=index if in_stream else None,
            id=new_id("call_"),
            function=CalledFunction(name=call.name, arguments=call.arguments),
        )

    def _finish_reason(self) -> Finish | None:
        reason = self._answer.finish_reason
        return "tool_calls" if reason == "stop" and self._num_calls else reason


def _max_tokens(request: ChatRequest) -> int | None:
    """The limit under either of its names; None = what the context leaves."""
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise UsageError(
            f"max_tokens = {old} and max_completion_tokens = {new}: expected one of them",
            "max_tokens",
        )
    return old if new is None else new


def _num_top_logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        raise UsageError("top_logprobs: expected only with logprobs = true", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None
