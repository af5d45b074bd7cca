"""How people write around a question: noise, prefixes, wrappers. Never touches a passage."""

from __future__ import annotations

import random

from fourbee.training.generators.lexicon import Language, Lexicon

_FULL_WIDTH = str.maketrans("?!,.:;()", "？！，。：；（）")
_HALF_WIDTH = str.maketrans("？！，。：；（）", "?!,.:;()")
_END_MARKS = "?.!？。！"


def noisy(rng: random.Random, text: str, language: Language) -> str:
    """`text` as somebody types it: no end mark, lower case, other marks; mostly unchanged."""
    roll = rng.random()
    if roll < 0.12:
        return text.rstrip(_END_MARKS) or text
    if roll < 0.18 and language == "en":
        return text[0].lower() + text[1:]
    if roll < 0.22 and language == "en":
        return text.rstrip(_END_MARKS) + rng.choice((" ?", "??", "...", "!"))
    if roll < 0.26:
        return text.translate(_HALF_WIDTH if language == "zh" else _FULL_WIDTH)
    if roll < 0.28:
        return text + " "
    return text


def framed(rng: random.Random, lexicon: Lexicon, text: str, language: Language) -> str:
    """`text` with noise and, at times, a polite prefix or suffix."""
    return dressed(rng, lexicon, noisy(rng, text, language), language)


def dressed(rng: random.Random, lexicon: Lexicon, text: str, language: Language) -> str:
    """`text` as it is, at times with a polite prefix or suffix."""
    if rng.random() < 0.15:
        text = rng.choice(lexicon.framing["polite_prefix"][language]) + text
    if rng.random() < 0.1:
        text += rng.choice(lexicon.framing["polite_suffix"][language])
    return text


def with_passage(
    rng: random.Random, lexicon: Lexicon, passage: str, question: str, language: Language
) -> str:
    """Passage and question in one message, in one of the ways that people join them."""
    kind = "passage_then_question" if rng.random() < 0.75 else "question_then_passage"
    wrapper = rng.choice(lexicon.framing[kind][language])
    return wrapper.replace("{passage}", passage).replace("{question}", question)
