"""SamplingParams: what a request asks of sampling, checked; and the defaults of a checkpoint.

Not the sampler: that is the head of a backend (`kernels/operations.py`, `HeadRequest`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.json_files import read_json_object

# The most alternatives a token that are reported, as in OpenAI's API.
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How a request's tokens are chosen and when they end. UsageError for a value out of range.

    Lists are taken for tuples, and a mapping for `logit_bias`.
    """

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int | None = None  # None = whatever the context leaves
    stop: tuple[str, ...] = ()  # not part of the text
    stop_token_ids: tuple[int, ...] = ()  # end the text as end-of-text tokens do
    seed: int | None = None  # None = another one each time
    logprobs: int | None = None  # None = not asked, n = with the n likeliest tokens
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, low=0)
        _check_whole("top_k", self.top_k, low=0)
        _check_number("top_p", self.top_p, above=0, high=1)
        _check_number("min_p", self.min_p, low=0, high=1)
        _check_number("presence_penalty", self.presence_penalty, low=-2, high=2)
        _check_number("frequency_penalty", self.frequency_penalty, low=-2, high=2)
        if self.max_tokens is not None:
            _check_whole("max_tokens", self.max_tokens, low=1)
        if self.seed is not None:
            _check_whole("seed", self.seed, low=-(2**63), high=2**64 - 1)
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            _refuse("ignore_eos", self.ignore_eos, "true or false")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _bias_pairs(self.logit_bias))

    def for_choice(self, index: int) -> SamplingParams:
        """The parameters of choice `index` of several to one prompt: each has a seed of its own."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index) % 2**64)


@dataclass(frozen=True)
class SamplingDefaults:
    """What a checkpoint's generation_config.json recommends; taken where a request is silent."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos_token_ids: tuple[int, ...] = ()

    @property
    def params(self) -> SamplingParams:
        """A request's parameters when it asks for nothing."""
        return SamplingParams(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p
        )

    @classmethod
    def from_generation_config(cls, folder: Path) -> SamplingDefaults:
        """From `folder`/generation_config.json, where there is one; ModelFileError if damaged."""
        path = folder / "generation_config.json"
        values = read_json_object(path) if path.is_file() else {}
        eos = values.get("eos_token_id")
        eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        recommended = {key: values.get(key) for key in ("temperature", "top_k", "top_p", "min_p")}
        if values.get("do_sample") is False:
            recommended = {"temperature": 0.0}
        return cls.from_values(recommended, str(path), tuple(eos_ids))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], source: str, eos_token_ids: tuple[Any, ...] = ()
    ) -> SamplingDefaults:
        """From values by the names here, where they are not None; ModelFileError for a bad one."""
        known: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
        try:
            SamplingParams(**known, stop_token_ids=eos_token_ids)
        except UsageError as error:
            message = str(error).replace("stop_token_ids", "eos_token_id")
            raise ModelFileError(f"{source}: {message}") from None
        return cls(**known, eos_token_ids=eos_token_ids)


def _refuse(key: str, value: Any, expected: str) -> NoReturn:
    raise UsageError(f"{key} = {value!r}: expected {expected}", parameter=key)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _check_number(
    key: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> None:
    """A finite number, at least `low`, at most `high`, more than `above`."""
    if above > -math.inf:
        limits = f"more than {above} and at most {high}"
    elif high < math.inf:
        limits = f"from {low} to {high}"
    else:
        limits = f"at least {low}"
    if not _is_number(value):
        of = "of " if limits.startswith("at") else ""
        _refuse(key, value, f"a number {of}{limits}")
    if not (low <= value <= high and value > above):
        _refuse(key, value, limits)


def _check_whole(key: str, value: Any, low: int, high: int | None = None) -> None:
    """A whole number, at least `low` and at most `high`."""
    if not _is_whole(value):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        _refuse(key, value, f"a whole number {limits}")
    if high is None and value < low:
        _refuse(key, value, f"at least {low}")
    if high is not None and not low <= value <= high:
        _refuse(key, value, f"from {low} to {high}")


def _stop_strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(s, str) and s for s in value):
        _refuse("stop", value, "a list of strings that are not empty")
    return tuple(value)


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(_is_whole(i) and i >= 0 for i in value):
        _refuse("stop_token_ids", value, "a list of token ids")
    return tuple(value)


def _bias_pairs(value: Any) -> tuple[tuple[int, float], ...]:
    """Sorted pairs of a mapping or of a sequence of pairs; values from -100 to 100, as OpenAI's."""
    pairs: Sequence[Any] = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(_is_bias(pair) for pair in pairs):
        _refuse("logit_bias", value, "token ids with numbers from -100 to 100")
    unique = {int(token_id): float(bias) for token_id, bias in pairs}
    return tuple(sorted(unique.items()))


def _is_bias(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    token_id, bias = pair
    return _is_whole(token_id) and token_id >= 0 and _is_number(bias) and -100 <= bias <= 100
