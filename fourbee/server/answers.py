"""The answers of OpenAI's API: what is sent back, typed, so that nothing is spelled twice."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

Finish = Literal["stop", "length", "tool_calls"]


class OmitsAbsent(BaseModel):
    """Fields that are None are left out, where clients expect that."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class PromptTokensDetails(BaseModel):
    """Tokens of the prompt whose keys and values were there already."""

    cached_tokens: int


class Usage(BaseModel):
    """Counts of tokens; a prompt counts once however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """A list entry for each token, of the prompt too where it is echoed."""

    tokens: list[str]
    # None for what has nothing before it: the first token of a prompt.
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    # In characters of the choice's text.
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or in a stream one more piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(BaseModel):
    """The answer to /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class CalledFunction(BaseModel):
    """A function's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class AnsweredToolCall(OmitsAbsent):
    """A call that the model made; `index` in streams alone."""

    index: int | None = None
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class TokenLogprob(BaseModel):
    """A token as text and as bytes: it may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """A generated token with the likeliest ones at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """All tokens of an answer or of a piece of it, those of tool calls included."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(OmitsAbsent):
    """The assistant's words and calls; `content` is null only beside calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[AnsweredToolCall] | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if v is not None or k == "content"}


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answer to /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(OmitsAbsent):
    """What a stream's event adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[AnsweredToolCall] | None = None


class ChunkChoice(BaseModel):
    """One more piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """An event of a chat stream; the one with the usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class SamplingAdvice(BaseModel):
    """What the checkpoint recommends, taken where a request is silent."""

    temperature: float
    top_p: float
    top_k: int


class Fit(BaseModel):
    """A model that could be pulled, and whether this machine's memory holds it."""

    id: str
    bytes: int
    fits: bool


class ModelDetails(BaseModel):
    """What the page wants to know of a model, beyond OpenAI's fields."""

    embedded: bool
    parameters: int
    max_context: int
    defaults: SamplingAdvice
    fits: list[Fit]
    memory_bytes: int


class ModelEntry(BaseModel):
    """An entry of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fourbee"
    fourbee: ModelDetails


class ModelList(BaseModel):
    """The answer to /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
