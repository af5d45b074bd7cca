"""What a sample may be, and its tokens: which of them are learned, and what is wrong with it.

The forms, told apart by their keys (other people's are brought into these by `formats.py`):

- a conversation `{"messages": [...], "tools": [...]}`: what the assistant says is learned;
- a raw text and its continuation `{"prompt": ..., "completion": ...}`: the completion is learned;
- a plain text `{"text": ...}`: all of it is learned;
- a preference pair `{"prompt": ..., "chosen": ..., "rejected": ...}`, or two whole conversations
  that share their beginning `{"chosen": [...], "rejected": [...]}`;
- an unpaired preference `{"prompt": ..., "completion": ..., "label": true}`;
- a task `{"prompt": ..., "answer": "..."}`; a conversation too is one up to its last answer.

A prompt and an answer are strings, which are raw text, or lists of messages; an answer that is a
string after messages is what the assistant says. Raw text ends with `<|endoftext|>`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fourbee.foundation.errors import TrainingError
from fourbee.foundation.json_files import parse_json
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer

# What a stage makes of samples: every token is learned; what the assistant says; pairs; samples
# with a label; prompts alone.
Loss = Literal["all", "assistant", "pair", "label", "prompt"]
Form = Literal["conversation", "completion", "text", "pair", "label", "task"]
Document = tuple[list[int], list[bool]]  # token ids, and which of them are learned

_FORMS: Mapping[Form, tuple[str, ...]] = {
    "pair": ("chosen", "rejected"),
    "label": ("prompt", "completion", "label"),
    "conversation": ("messages",),
    "completion": ("completion",),
    "task": ("prompt", "answer"),
    "text": ("text",),
}
_WANTED: Mapping[Loss, str] = {
    "all": "messages, completion, text",
    "assistant": "messages, completion, text",
    "pair": "chosen and rejected",
    "label": "prompt, completion and label",
    "prompt": "prompt and answer, messages, completion",
}
# Keys by which other people's samples are known, and the format to ask for.
_FOREIGN = {
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "question": "gsm8k",
}


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens: one document, or the chosen and the rejected one of a pair."""

    documents: tuple[Document, ...]
    cuttable: bool = False  # a text that may be cut where it is too long
    label: bool = False  # of an unpaired preference
    answer: str = ""  # of a task


def form_of(sample: Mapping[str, Any]) -> Form | None:
    """Which form the keys of a sample tell; None for none."""
    for form, keys in _FORMS.items():
        if all(key in sample for key in keys):
            return form
    return None


def encode(
    sample: Mapping[str, Any], loss: Loss, tokenizer: Tokenizer, chat: ChatFormat
) -> Encoded:
    """The tokens of a sample as a stage learns them; a FourbeeError says what is wrong with it."""
    _check_numbers(sample)
    if loss == "pair":
        return Encoded(encode_pair(sample, tokenizer, chat))
    if loss == "prompt":
        ids = encode_prompt(sample, tokenizer, chat)
        return Encoded(((ids, [False] * len(ids)),), answer=_string(sample, "answer", ""))
    if loss == "label":
        return _encode_labelled(sample, tokenizer, chat)
    ids, learned = encode_sample(sample, tokenizer, chat)
    if loss == "all":
        learned = [True] * len(ids)
    _check_learned(learned)
    return Encoded(((ids, learned),), cuttable=loss == "all" or form_of(sample) == "text")


def encode_sample(sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat) -> Document:
    """Token ids of a conversation or text, and which of them the assistant says."""
    form = form_of(sample)
    if form == "conversation":
        check_messages(sample["messages"], answered=True)
        return chat.encode_with_mask(sample["messages"], _tools(sample))
    if form == "completion":
        return _encode_answer(sample, "completion", tokenizer, chat)
    if form == "text":
        ids = _encode_raw(_string(sample, "text"), tokenizer, end=True)
        return ids, [True] * len(ids)
    raise _wrong_form(sample, "assistant")


def encode_pair(
    sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat
) -> tuple[Document, Document]:
    """The chosen and the rejected document: the same prompt, not learned, and an answer."""
    if form_of(sample) != "pair":
        raise _wrong_form(sample, "pair")
    if "prompt" not in sample:
        sample = _with_shared_prompt(sample)
    if sample["chosen"] == sample["rejected"]:
        raise TrainingError("chosen and rejected are equal, so there is nothing to prefer")
    chosen = _encode_answer(sample, "chosen", tokenizer, chat)
    rejected = _encode_answer(sample, "rejected", tokenizer, chat)
    prompts = [ids[: learned.index(True)] for ids, learned in (chosen, rejected)]
    if prompts[0] != prompts[1]:
        raise TrainingError(
            "chosen and rejected: the chat template writes their prompt differently"
        )
    return chosen, rejected


def chosen_side(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was preferred of a pair, as an example to learn; TrainingError for no pair."""
    if form_of(sample) != "pair":
        raise _wrong_form(sample, "pair")
    rest = {key: value for key, value in sample.items() if key not in ("chosen", "rejected")}
    key = "completion" if "prompt" in sample else "messages"
    return {**rest, key: sample["chosen"]}


def encode_prompt(sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat) -> list[int]:
    """What an answer is to be generated to; of a conversation, all before its last answer."""
    form = form_of(sample)
    if form == "conversation":
        messages = sample["messages"]
        check_messages(messages, answered=None)
        prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif "prompt" in sample:
        prompt = sample["prompt"]
    else:
        raise _wrong_form(sample, "prompt")
    if isinstance(prompt, str):
        return _encode_raw(prompt, tokenizer, end=False)
    where = "messages" if form == "conversation" else "prompt"
    check_messages(prompt, answered=False, where=where)
    return chat.encode(prompt, _tools(sample))


def check_messages(messages: Any, answered: bool | None, where: str = "messages") -> None:
    """TrainingError for content that is no string and for roles out of order.

    An optional system message, then a user's; no two users in a row; a tool only after a call. The
    assistant has the last word if `answered`, not if False, either way if None.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise TrainingError(f"{where}: expected a list of at least one message")
    before, called = "", False
    for index, message in enumerate(messages):
        place = f"{where}[{index}]"
        if not isinstance(message, Mapping):
            raise TrainingError(f"{place}: expected an object")
        role = message.get("role")
        content = message.get("content")
        calls = role == "assistant" and _has_calls(message, place)
        if message.get("weight", 1) != 1:
            raise TrainingError(
                f"{place}.weight is {_short(message['weight'])}; expected 1, as all that the "
                "assistant says is learned"
            )
        if not isinstance(content, str) and not (content is None and calls):
            raise TrainingError(f"{place}.content is {_short(content)}; expected a string")
        _check_role(place, role, before, called)
        called = calls or (role == "tool" and called)
        before = str(role)
    if answered is not None and (before == "assistant") != answered:
        needed = "an answer of the assistant" if answered else "what the assistant is to answer"
        raise TrainingError(f"{where}: the last message is the {before}'s; expected {needed}")


def _has_calls(message: Mapping[str, Any], place: str) -> bool:
    """Whether it calls tools. TrainingError for a call without a name or without arguments."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        raise TrainingError(f"{place}.tool_calls is {_short(calls)}; expected a list")
    for index, call in enumerate(calls):
        where = f"{place}.tool_calls[{index}]"
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise TrainingError(f"{where} is {_short(call)}; expected an object with a function")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            raise TrainingError(f"{where}: name is {_short(name)}; expected a tool's name")
        if not isinstance(_parsed(arguments), Mapping):
            raise TrainingError(
                f"{where}: arguments is {_short(arguments)}; expected an object, or its JSON"
            )
    return bool(calls)


def _parsed(arguments: Any) -> Any:
    """What arguments are that may be written as JSON; None for what is none."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return parse_json(arguments)
    except ValueError:
        return None


def _check_role(place: str, role: Any, before: str, called: bool) -> None:
    if role not in ("system", "user", "assistant", "tool"):
        raise TrainingError(
            f"{place}.role is {role!r}; expected one of system, user, assistant, tool"
        )
    if role == "system" and before:
        raise TrainingError(f"{place}: a system message after others; expected it first")
    if role == "user" and before == "user":
        raise TrainingError(f"{place}: two user messages in a row")
    if role in ("assistant", "tool") and before in ("", "system"):
        raise TrainingError(f"{place}: the first message is the {role}'s; expected a user's")
    if role == "tool" and not called:
        raise TrainingError(f"{place}: a tool message without a tool call before it")


def _encode_answer(
    sample: Mapping[str, Any], key: str, tokenizer: Tokenizer, chat: ChatFormat
) -> Document:
    """Prompt and answer as one document, of which the answer alone is learned."""
    prompt, answer = sample.get("prompt", ""), sample[key]
    if isinstance(prompt, str) and isinstance(answer, str):
        before = _encode_raw(prompt, tokenizer, end=False)
        after = _encode_raw(answer, tokenizer, end=True)
        return before + after, [False] * len(before) + [True] * len(after)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(answer, str | Mapping):
        answer = [{"role": "assistant", "content": answer} if isinstance(answer, str) else answer]
    check_messages(prompt, answered=False, where="prompt")
    if not isinstance(answer, list) or not answer:
        raise TrainingError(f"{key} is {_short(answer)}; expected a string or a list of messages")
    messages = [*prompt, *answer]
    check_messages(messages, answered=True, where=f"prompt + {key}")
    if messages[len(prompt)]["role"] != "assistant":
        raise TrainingError(f"{key}[0]: expected what the assistant answers to the prompt")
    ids, learned = chat.encode_with_mask(messages, _tools(sample))
    return ids, _without_turns(learned, sum(one["role"] == "assistant" for one in prompt))


def _without_turns(learned: list[bool], turns: int) -> list[bool]:
    """The mask without its first `turns` runs: those that the prompt holds."""
    mask = list(learned)
    for _ in range(turns):
        start = mask.index(True)
        stop = mask.index(False, start)
        mask[start:stop] = [False] * (stop - start)
    return mask


def _encode_labelled(sample: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat) -> Encoded:
    if form_of(sample) != "label":
        raise _wrong_form(sample, "label")
    if not isinstance(sample["label"], bool):
        raise TrainingError(f"label is {_short(sample['label'])}; expected true or false")
    return Encoded((_encode_answer(sample, "completion", tokenizer, chat),), label=sample["label"])


def _with_shared_prompt(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """A pair of whole conversations as the beginning that they share, and two answers."""
    chosen, rejected = sample["chosen"], sample["rejected"]
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise TrainingError(
            "chosen and rejected without a prompt: expected two lists of messages"
            + _foreign(sample)
        )
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    if shared in (0, len(chosen), len(rejected)):
        raise TrainingError(
            "chosen and rejected are equal or one is the beginning of the other"
            if shared
            else "chosen and rejected share no beginning"
        )
    return {
        **sample,
        "prompt": chosen[:shared],
        "chosen": chosen[shared:],
        "rejected": rejected[shared:],
    }


def _encode_raw(text: str, tokenizer: Tokenizer, end: bool) -> list[int]:
    ids = tokenizer.encode(text, control_tokens=True)
    return [*ids, tokenizer.token_id("<|endoftext|>")] if end else ids


def _check_learned(learned: Sequence[bool]) -> None:
    if not any(learned[1:]):
        raise TrainingError("nothing to learn: no assistant turn or completion")


def _check_numbers(value: Any, path: str = "") -> None:
    """JSON has no NaN and no Infinity, but Python reads and writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"{path or 'sample'} is {value}; expected a finite number")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_numbers(item, f"{path}[{index}]")


def _tools(sample: Mapping[str, Any]) -> list[Any] | None:
    tools = sample.get("tools")
    if tools is not None and not isinstance(tools, list | tuple):
        raise TrainingError(f"tools is {_short(tools)}; expected a list")
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping):
            raise TrainingError(f"tools[{index}] is {_short(tool)}; expected an object")
    return list(tools) if tools else None


def difficulty_of(sample: Mapping[str, Any], tokens: int) -> float:
    """What a sample says of itself, else its tokens."""
    value = sample.get("difficulty", tokens)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TrainingError(f"difficulty is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise TrainingError("difficulty is too large; expected a number") from None


def _string(sample: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = sample.get(key, default)
    if not isinstance(value, str):
        raise TrainingError(f"{key} is {_short(value)}; expected a string")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong_form(sample: Mapping[str, Any], loss: Loss) -> TrainingError:
    form = form_of(sample)
    found = f"; found a {form}" if form else _foreign(sample)
    return TrainingError(f"expected one of the keys {_WANTED[loss]}{found}")


def _foreign(sample: Mapping[str, Any]) -> str:
    """Whose form it may be, as the end of a message."""
    for key, name in _FOREIGN.items():
        if key in sample:
            return f"; found {key!r}: is it format = {name!r}?"
    if "\n\nHuman:" in str(sample.get("chosen")):
        return "; found '\\n\\nHuman:': is it format = 'hh'?"
    return ""
