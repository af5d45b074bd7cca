"""Other people's samples in our forms (`samples.py`); asked for by name, never guessed.

Each function takes a sample as its file has it; a missing key is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.json_files import parse_json
from fourbee.foundation.settings import nearest

Sample = Mapping[str, Any]
Message = dict[str, Any]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
_BESIDE = ("skill", "language", "difficulty")  # may stand beside a sample of any form
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def to_house(sample: Sample, format: str) -> Sample:
    """The sample in our forms. Raises TrainingError, and UsageError for an unknown format."""
    if format not in FORMATS:
        raise UsageError(
            f"format = {format!r}: expected one of {', '.join(FORMATS)}{nearest(format, FORMATS)}",
            parameter="format",
        )
    try:
        beside = {key: sample[key] for key in _BESIDE if key in sample}
        return {**FORMATS[format](sample), **beside}
    except KeyError as error:
        raise TrainingError(f"format {format!r}: expected the key {error.args[0]!r}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise TrainingError(f"not of the format {format!r}: {error}") from None


def _alpaca(sample: Sample) -> Sample:
    """Stanford Alpaca: instruction, input, output; system and history as LLaMA-Factory has them."""
    messages = [_say("system", sample["system"])] if sample.get("system") else []
    for question, answer in sample.get("history") or []:
        messages += [_say("user", question), _say("assistant", answer)]
    asked = "\n".join(filter(None, [sample["instruction"], sample.get("input")]))
    return {"messages": [*messages, _say("user", asked), _say("assistant", sample["output"])]}


def _dolly(sample: Sample) -> Sample:
    """Databricks Dolly: instruction, context, response."""
    asked = "\n\n".join(filter(None, [sample["context"], sample["instruction"]]))
    return {"messages": [_say("user", asked), _say("assistant", sample["response"])]}


def _sharegpt(sample: Sample) -> Sample:
    """ShareGPT: conversations of from and value; chosen and rejected are what may follow."""
    messages = [_sharegpt_message(turn) for turn in sample["conversations"]]
    if sample.get("system"):
        messages.insert(0, _say("system", sample["system"]))
    rest = _with_tools(sample)
    if "chosen" in sample:
        sides = {key: [_sharegpt_message(sample[key])] for key in ("chosen", "rejected")}
        return {"prompt": messages, **sides, **rest}
    if "label" in sample:
        return _labelled(messages, sample["label"], rest)
    return {"messages": messages, **rest}


def _sharegpt_message(turn: Sample) -> Message:
    speaker, said = turn["from"], turn["value"]
    if speaker == "function_call":
        calls = parse_json(said)
        return _say("assistant", "", calls if isinstance(calls, list) else [calls])
    if speaker not in _SHAREGPT_ROLES:
        raise TrainingError(
            f"from is {speaker!r}; expected one of {', '.join(_SHAREGPT_ROLES)}, function_call"
        )
    return _say(_SHAREGPT_ROLES[speaker], said)


def _hh(sample: Sample) -> Sample:
    """Anthropic's hh-rlhf: two texts of turns that begin with Human: and Assistant:."""
    return {key: _hh_messages(sample[key]) for key in ("chosen", "rejected")}


def _hh_messages(text: str) -> list[Message]:
    before, *parts = _HH_TURN.split(text)
    if before or not parts:
        raise TrainingError(r"expected text that begins with '\n\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [_say(roles[speaker], said.strip()) for speaker, said in turns]


def _kto(sample: Sample) -> Sample:
    """Messages of which the last is good or bad, as `label` says."""
    return _labelled(list(sample["messages"]), sample["label"], _with_tools(sample))


def _gsm8k(sample: Sample) -> Sample:
    """GSM8K: question, and an answer whose last line is `#### ` and the number."""
    question, answer = sample["question"], sample["answer"]
    messages = [_say("user", question), _say("assistant", answer)]
    return {"messages": messages, "answer": answer.rpartition("####")[2].strip()}


def _parts(sample: Sample) -> Sample:
    """LLaMA-Factory's second form: content is a list of text, reasoning and tool_call parts."""
    return {
        "messages": [_joined(message) for message in sample["messages"]],
        **_with_tools(sample),
    }


def _joined(message: Sample) -> Message:
    role = message["role"]
    if message.get("loss_weight", float(role == "assistant")) != float(role == "assistant"):
        raise TrainingError(
            f"loss_weight = {message['loss_weight']} of the {role}: expected 1 of the assistant "
            "and 0 of others"
        )
    said: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in message["content"]:
        said[part["type"]].append(part["value"])
    joined = _say(role, "".join(said["text"]), [parse_json(call) for call in said["tool_call"]])
    if said["reasoning"]:
        joined["reasoning_content"] = "".join(said["reasoning"])
    return joined


def _labelled(messages: list[Message], label: Any, rest: Sample) -> Sample:
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": label, **rest}


def _say(role: str, content: Any, calls: list[Any] | None = None) -> Message:
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def _with_tools(sample: Sample) -> dict[str, Any]:
    """The tools, which some write as a string of JSON or without their type."""
    tools = sample.get("tools")
    if isinstance(tools, str):
        tools = parse_json(tools) if tools.strip() else None
    if not tools:
        return {}
    wrapped = [one if "function" in one else {"type": "function", "function": one} for one in tools]
    return {"tools": wrapped}


FORMATS: Mapping[str, Callable[[Sample], Sample]] = {
    "auto": lambda sample: sample,
    "lines": lambda sample: sample,  # of a .txt: every line is a text (`sources.py`)
    "alpaca": _alpaca,
    "dolly": _dolly,
    "sharegpt": _sharegpt,
    "hh": _hh,
    "kto": _kto,
    "gsm8k": _gsm8k,
    "parts": _parts,
}
