"""What comes over the wire: the requests of OpenAI's API, strictly typed.

Nothing is coerced (`"temperature": "hot"` and `"n": true` are refused) and nothing is ignored: an
unknown field is refused with the nearest known name, a field that is known but not honoured is
refused unless its value asks for nothing. `null` always means "not given"; of a field that is
given twice the last counts. A field's `description`
is the right form that error messages name.

Accepted without effect, as they do not concern the answer: `user`, `metadata`, `store: false`,
`service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`,
`stream_options.include_obfuscation`; and `name` in messages is given to the chat template, which
may use it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fourbee.model.attention_modes import ModeName

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
MAX_PRIORITY = 100
MAX_CONTEXT_ID = 200
INT64_LIMIT = 2**63

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOPS)]
ContextId = Annotated[str, Field(min_length=1, max_length=MAX_CONTEXT_ID)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]


class Wire(BaseModel):
    """The manners of everything that is received."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool | None = Field(None, description="true or false")
    include_obfuscation: bool | None = Field(None, description="true or false")


class GenerationRequest(Wire):
    """What both endpoints understand."""

    model: str | None = Field(None, description="the name of the served model, or nothing")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object such as {"include_usage": true}'
    )
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description=f"a whole number from 1 to {MAX_CHOICES}"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="a number from 0 to 2")
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0 and not above 1")
    top_k: int | None = Field(None, ge=0, description="a whole number, 0 for no limit")
    min_p: float | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="a number from -2 to 2")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="a number from -2 to 2")
    logit_bias: dict[str, Any] | None = Field(
        None, description='an object of token ids and numbers from -100 to 100, as {"42": -100}'
    )
    seed: int | None = Field(
        None, ge=-INT64_LIMIT, lt=INT64_LIMIT, description="a whole number of 64 bits"
    )
    stop: StopString | StopStrings | None = Field(
        None,
        description=(
            f"a string of 1 to {MAX_STOP_CHARACTERS} characters or a list of up to {MAX_STOPS}"
        ),
    )
    ignore_eos: bool | None = Field(None, description="true or false")
    priority: int | None = Field(
        None, ge=-MAX_PRIORITY, le=MAX_PRIORITY,
        description=f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}; smaller goes first",
    )  # fmt: skip
    context_id: ContextId | None = Field(
        None,
        description=f"a name of 1 to {MAX_CONTEXT_ID} characters for the conversation that goes on",
    )

    attention: ModeName | None = Field(
        None,
        description='"dense", "dual-chunk" (beyond the trained length), "sparse" (prompts read '
        'faster) or "streaming" (a window)',
    )

    # Without effect on the answer.
    user: str | None = Field(None, description="a string")
    metadata: dict[str, Any] | None = Field(None, description="an object")
    store: Literal[False] | None = Field(None, description="false: nothing is stored here")
    service_tier: str | None = Field(None, description="a string")
    safety_identifier: str | None = Field(None, description="a string")
    prompt_cache_key: str | None = Field(None, description="a string")
    prompt_cache_retention: str | None = Field(None, description="a string")

    # Known elsewhere, not honoured here: only the values that ask for nothing.
    repetition_penalty: float | None = Field(
        None, ge=1, le=1, description="1 (use presence_penalty or frequency_penalty)"
    )

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as it is meant."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: a raw prompt, in which control tokens are control tokens."""

    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    ) = Field(
        description=(
            "a string, a list of strings, a list of token ids or a list of lists of token ids"
        )
    )
    max_tokens: int | None = Field(
        None, ge=0, description="a whole number from 1, or 0 together with echo"
    )
    echo: bool | None = Field(None, description="true or false")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description=f"a whole number from 0 to {MAX_TOP_LOGPROBS}",
    )
    best_of: Literal[1] | None = Field(None, description="1: candidates are not ranked here")
    suffix: Literal[""] | None = Field(None, description="nothing: this model only continues text")


class TextPart(Wire):
    """One part of a message's content."""

    type: Literal["text"] = Field(description='"text": this model reads nothing else')
    text: str = Field(description="a string")


class FunctionCall(Wire):
    """What a tool call calls."""

    name: str = Field(min_length=1, description="the name of the function")
    arguments: str = Field(description="the text of a JSON object")


class MessageToolCall(Wire):
    """A call that the assistant made earlier."""

    id: str = Field(min_length=1, description="a string")
    type: Literal["function"] = Field("function", description='"function"')
    function: FunctionCall = Field(description="an object with name and arguments")
    index: int | None = Field(None, description="a whole number")


class ChatMessage(Wire):
    """A message of any role; what a role needs is checked where messages are read."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="one of system, developer, user, assistant, tool"
    )
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, description="a string or a list of text parts"
    )
    name: str | None = Field(None, description="a string")
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = Field(
        None, description="a list of tool calls"
    )
    tool_call_id: str | None = Field(None, description="the id of a tool call before it")

    # What OpenAI's client sends back with an answer of ours.
    refusal: None = Field(None, description="null")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="null or an empty list"
    )
    audio: None = Field(None, description="null: this model has no voice")
    function_call: None = Field(None, description="null: use tool_calls")


class FunctionTool(Wire):
    """A function that the model may call."""

    name: str = Field(
        pattern=r"^[a-zA-Z0-9_-]{1,64}$",
        description="1 to 64 letters, digits, underscores or hyphens",
    )
    description: str | None = Field(None, description="a string")
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema object")
    strict: Literal[False] | None = Field(
        None, description="false: arguments are not constrained here"
    )


class Tool(Wire):
    """One of `tools`."""

    type: Literal["function"] = Field(description='"function"')
    function: FunctionTool = Field(description="an object with name, description and parameters")


class ResponseFormat(Wire):
    """`response_format`, of which plain text is honoured."""

    type: Literal["text"] = Field(description='"text": JSON is not enforced here')


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] = Field(
        description="a list of at least one message"
    )
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = Field(
        None, description=f"a list of up to {MAX_TOOLS} tools"
    )
    tool_choice: Literal["auto", "none"] | None = Field(
        None, description='"auto" or "none": a call cannot be forced here'
    )
    max_tokens: int | None = Field(None, ge=1, description="a whole number from 1")
    max_completion_tokens: int | None = Field(None, ge=1, description="a whole number from 1")
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description=f"a whole number from 0 to {MAX_TOP_LOGPROBS}",
    )

    # Known elsewhere, not honoured here: only the values that ask for nothing.
    response_format: ResponseFormat | None = Field(None, description='{"type": "text"}')
    parallel_tool_calls: Literal[True] | None = Field(
        None, description="true: the number of calls is not limited here"
    )
    modalities: list[Literal["text"]] | None = Field(None, description='["text"]')
    reasoning_effort: Literal["none"] | None = Field(
        None, description='"none": this model does not reason aloud'
    )
    verbosity: Literal["medium"] | None = Field(None, description='"medium"')
    audio: None = Field(None, description="null: this model has no voice")
    prediction: None = Field(None, description="null: predictions are not used here")
    web_search_options: None = Field(None, description="null: this server does not search")
    functions: None = Field(None, description="null: use tools")
    function_call: None = Field(None, description="null: use tool_choice")
    chat_template_kwargs: None = Field(None, description="null: the chat template is fixed")
