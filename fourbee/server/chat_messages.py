"""The messages and tools of a chat request, checked and in the form that chat templates read.

A tool's answer has to belong to a call before it. `developer` is another word for `system`. The
parts of a content are joined by line feeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fourbee.foundation.errors import UsageError
from fourbee.server.errors import shown
from fourbee.server.wire import ChatMessage, ChatRequest, MessageToolCall


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, object]]:
    """Messages as templates read them. UsageError names the message that is not in order."""
    called: set[str] = set()
    result: list[dict[str, object]] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        _check_role(message, path, called)
        called |= {call.id for call in message.tool_calls or []}
        converted: dict[str, object] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": _content(message),
        }
        for key in ("name", "tool_call_id"):
            if getattr(message, key) is not None:
                converted[key] = getattr(message, key)
        if message.tool_calls:
            converted["tool_calls"] = [
                _template_call(call, f"{path}.tool_calls[{number}]")
                for number, call in enumerate(message.tool_calls)
            ]
        result.append(converted)
    return result


def template_tools(request: ChatRequest) -> list[dict[str, object]] | None:
    """The tools that the model may call, None when there are none or none is wanted."""
    tools = request.tools or []
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError(
                f"tools[{index}].function.name = {shown(name)}: expected another name than those "
                "of the tools before it",
                f"tools[{index}].function.name",
            )
    if not tools or request.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content or ""


def _check_role(message: ChatMessage, path: str, called: set[str]) -> None:
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise UsageError(
            f"{path}.content = null: expected a string or a list of text parts",
            f"{path}.content",
        )
    if message.tool_calls and message.role != "assistant":
        raise UsageError(
            f"{path}.tool_calls: expected only in messages of the assistant", f"{path}.tool_calls"
        )
    if message.role == "tool" and message.tool_call_id not in called:
        raise UsageError(
            f"{path}.tool_call_id = {shown(message.tool_call_id)}: expected the id of a tool call "
            "in a message before it",
            f"{path}.tool_call_id",
        )
    if message.role != "tool" and message.tool_call_id is not None:
        raise UsageError(
            f"{path}.tool_call_id: expected only in messages with the role tool",
            f"{path}.tool_call_id",
        )


def _template_call(call: MessageToolCall, path: str) -> dict[str, object]:
    """A call with its arguments as an object, which every template can write."""
    text = call.function.arguments
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(
            f"{path}.function.arguments = {shown(text)}: expected the text of a JSON object",
            f"{path}.function.arguments",
        )
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
