"""Scores a model on samples that say what they expect, by skill, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.evaluation.intervals import Share, clustered, wilson
from fourbee.evaluation.scoring import is_right
from fourbee.foundation.errors import UsageError
from fourbee.foundation.json_files import parse_json
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer

# Prompts answered together.
_BATCH = 16
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Answered:
    """A sample, what the model said, and whether that is right and ended by itself."""

    sample: Mapping[str, Any]
    text: str
    right: bool


def read_samples(path: Path, limit: int | None) -> list[Mapping[str, Any]]:
    """Samples that carry an expectation; at most `limit` of each skill.

    Raises UsageError naming file and line for a line that is something else.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    kept: list[Mapping[str, Any]] = []
    counts: dict[str, int] = {}
    # Bytes: `str.splitlines` also cuts at marks such as U+2028, which JSON texts may hold.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            sample = _sample(line, f"{path}:{number}")
            skill = sample.get("skill", "all")
            counts[skill] = counts.get(skill, 0) + 1
            if limit is None or counts[skill] <= limit:
                kept.append(sample)
    return kept


def _sample(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        sample = parse_json(line)
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not valid JSON: {error.msg}") from None
    if not isinstance(sample, dict) or not isinstance(sample.get("expect"), dict):
        raise UsageError(f'{where}: expected an object with the key "expect"')
    if "prompt" not in sample and not sample.get("messages"):
        raise UsageError(f'{where}: expected the key "messages" or "prompt"')
    return sample


def answer(
    llm: LLM, samples: Sequence[Mapping[str, Any]], temperature: float, seed: int
) -> Iterator[Answered]:
    """The model's answers, in order; sample i is drawn with seed `seed + i`."""
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        prompts = [prompt_ids(llm.tokenizer, llm.chat_format, sample) for sample in batch]
        room = llm.engine.context_length
        params = [
            SamplingParams(
                temperature=temperature,
                # A prompt that fills the context is the engine's error, not a limit of nothing.
                max_tokens=max(1, min(_MAX_TOKENS, room - len(prompt))),
                seed=seed + start + i,
            )
            for i, prompt in enumerate(prompts)
        ]
        for sample, completion in zip(batch, llm.generate(prompts, params), strict=True):
            right = completion.finish_reason == "stop" and is_right(
                completion.text, sample["expect"]
            )
            yield Answered(sample, completion.text, right)


def prompt_ids(tokenizer: Tokenizer, chat: ChatFormat, sample: Mapping[str, Any]) -> list[int]:
    """What the model is asked: a conversation up to its last answer, or a raw prompt."""
    if "prompt" in sample:
        return tokenizer.encode(sample["prompt"], control_tokens=True)
    messages = list(sample["messages"])
    if messages[-1]["role"] == "assistant":
        messages.pop()
    return chat.encode(messages, sample.get("tools") or None)


def shares(answers: Sequence[Answered]) -> dict[str, Share]:
    """The share of right answers of each skill; clustered where samples name their template."""
    by_skill: dict[str, dict[str, list[bool]]] = {}
    for number, one in enumerate(answers):
        template = one.sample.get("template") or str(number)
        clusters = by_skill.setdefault(one.sample.get("skill", "all"), {})
        clusters.setdefault(template, []).append(one.right)
    result: dict[str, Share] = {}
    for skill, clusters in sorted(by_skill.items()):
        rights = [right for cluster in clusters.values() for right in cluster]
        alone = len(clusters) == len(rights)
        result[skill] = (
            wilson(sum(rights), len(rights)) if alone else clustered(list(clusters.values()))
        )
    return result
