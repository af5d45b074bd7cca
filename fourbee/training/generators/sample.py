"""Sample: one training or test example, as the generators write it and the trainer reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A conversation (`messages`, `tools`) or a raw text (`prompt`, `completion`), never both.

    `expect` says what a right last answer is, for evaluation: see `evaluation/scoring.py`.
    `template` groups samples of one origin, whose results are not independent.
    """

    skill: str
    language: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    expect: dict[str, Any] | None = None
    template: str = ""

    def to_json(self) -> str:
        """One JSON line; what is empty is left out."""
        values = {key: value for key, value in vars(self).items() if value}
        return json.dumps(values, ensure_ascii=False)


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """The model's turn."""
    return {"role": "assistant", "content": text}
