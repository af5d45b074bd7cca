"""Greetings, facts about fourbee, honest refusals, polite ends to raw prompts, several turns."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names
from fourbee.training.generators.sample import Message, Sample, assistant, user
from fourbee.training.generators.wording import framed, noisy

BEYOND = {
    "en": "Sorry, that is beyond me. I am a very small model: try a short sum, a passage with a "
    "question, or ask me about fourbee.",
    "zh": "抱歉，这超出了我的能力。我是一个很小的模型，"
    "可以试试简单算术、短文问答，或者问我 fourbee 是什么。",
}

_ENDS = {"en": ("!", ".", "~", " :)", "!!"), "zh": ("！", "。", "~", "啊", "呀", "！！")}


def greeting_sample(rng: random.Random, lexicon: Lexicon, language: Language) -> Sample:
    """A greeting, thanks, good-bye, ... and its friendly answer."""
    intent = rng.choice(list(lexicon.greetings))
    wording = lexicon.greetings[intent][language]
    message = noisy(rng, rng.choice(wording["messages"]), language)
    if message[-1].isalnum() and rng.random() < 0.2:
        message += rng.choice(_ENDS[language])
    replies = wording["replies"]
    turns = (user(message), assistant(replies[0]))
    return Sample("greeting", language, turns, expect={"kind": "one_of", "value": replies[:1]})


def about_sample(rng: random.Random, lexicon: Lexicon, language: Language) -> Sample:
    """A question about fourbee and the fact that answers it."""
    fact = lexicon.facts[rng.choice(list(lexicon.facts))]
    question = rng.choice(lexicon.about_questions[fact["id"]][language])
    turns = (user(framed(rng, lexicon, question, language)), assistant(fact[language]))
    expect = {"kind": "contains", "value": fact.get(f"must_{language}", fact.get("must"))}
    return Sample("about", language, turns, expect=expect)


def refusal_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A request outside of what the model can do, and its honest answer."""
    if rng.random() < 0.12:
        question = _sum_too_large(rng, lexicon, language)
    elif rng.random() < 0.07:
        # A question about somebody made up, with no passage to answer it from.
        names = Names(rng, language, unseen)
        relation = rng.choice(lexicon.relations)
        question = rng.choice(relation.questions[language])
        question = question.replace("{s}", names.subject(relation.subject))
    else:
        question = _with_topic(
            rng, lexicon, rng.choice(lexicon.outside[language]), language, unseen
        )
    turns = (user(framed(rng, lexicon, question, language)), assistant(BEYOND[language]))
    return Sample(
        "refusal", language, turns, expect={"kind": "one_of", "value": [BEYOND[language]]}
    )


def completion_sample(
    rng: random.Random, lexicon: Lexicon, language: Language, unseen: bool = False
) -> Sample:
    """A raw prompt, without the chat format, that ends politely at once."""
    texts = lexicon.completions if rng.random() < 0.6 else lexicon.outside
    prompt = _with_topic(rng, lexicon, rng.choice(texts[language]), language, unseen)
    prompt = noisy(rng, prompt, language)
    expect = {"kind": "one_of", "value": [BEYOND[language]]}
    return Sample("completion", language, prompt=prompt, completion=BEYOND[language], expect=expect)


def multi_turn(rng: random.Random, lexicon: Lexicon, parts: Sequence[Sample]) -> Sample:
    """Several samples as one conversation; the last one is what is expected."""
    turns: list[Message] = []
    for part in parts:
        turns += part.messages
        if rng.random() < 0.2 and part is not parts[-1]:
            language: Language = "zh" if part.language == "zh" else "en"
            thanks = lexicon.greetings["thanks"][language]
            turns += [user(rng.choice(thanks["messages"])), assistant(thanks["replies"][0])]
    last = parts[-1]
    return Sample("multi_turn", last.language, tuple(turns), expect=last.expect)


def with_system(rng: random.Random, lexicon: Lexicon, sample: Sample, language: Language) -> Sample:
    """The same conversation under one of the usual system prompts."""
    system = {"role": "system", "content": rng.choice(lexicon.framing["system"][language])}
    return Sample(**(vars(sample) | {"messages": (system, *sample.messages)}))


def _with_topic(
    rng: random.Random, lexicon: Lexicon, text: str, language: Language, unseen: bool
) -> str:
    if "{x}" not in text:
        return text
    topic = rng.choice(lexicon.topics[language])
    if rng.random() < 0.2:
        topic = Names(rng, language, unseen).noun()
    return text.replace("{x}", topic)


def _sum_too_large(rng: random.Random, lexicon: Lexicon, language: Language) -> str:
    operation = rng.choice(list(lexicon.arithmetic_questions))
    digits = rng.randint(5, 9)
    a, b = (rng.randint(10 ** (digits - 1), 10**digits) for _ in range(2))
    template = rng.choice(lexicon.arithmetic_questions[operation][language])
    return template.format(a=max(a, b), b=min(a, b))
