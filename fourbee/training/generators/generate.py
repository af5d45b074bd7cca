"""`fourbee data generate`: samples from the generators into JSON lines, by one recipe, by seed.

Sample i of a file depends on (seed, file, i) alone. Prompts are split by checksum: those that fall
into the held-out sixteenth are never written to a training file, and test files hold only those.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fourbee.foundation.errors import UsageError
from fourbee.foundation.settings import nearest
from fourbee.training.checks import at_least, expect
from fourbee.training.generators.arithmetic import arithmetic_sample, sums_sample
from fourbee.training.generators.conversation import (
    about_sample,
    completion_sample,
    greeting_sample,
    multi_turn,
    refusal_sample,
    with_system,
)
from fourbee.training.generators.copying import copy_sample, repeat_sample
from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.mentions import mark_sample, mention_sample
from fourbee.training.generators.passages import passage_sample, passage_talk
from fourbee.training.generators.sample import Sample
from fourbee.training.generators.tool_use import calculator_tool, other_tools, tool_sample

# Share of Chinese samples: less where the language hardly matters.
_CHINESE = {"tools": 0.25, "arithmetic": 0.3}
_CHINESE_ELSEWHERE = 0.42

# Skills that join several samples of these kinds, and how many they join.
_TURN_KINDS = ("greeting", "about", "arithmetic", "refusal", "passage", "passage_absent")
_TURNS: Mapping[str, tuple[int, int]] = {"multi_turn": (2, 3), "long_chat": (6, 12)}

Maker = Callable[[random.Random, Lexicon, Language, bool], Sample]

SKILLS: Mapping[str, Maker] = {
    "copy": copy_sample,
    "repeat": repeat_sample,
    "passage": lambda rng, lex, lang, unseen: passage_sample(rng, lex, lang, True, unseen),
    "passage_absent": lambda rng, lex, lang, unseen: passage_sample(rng, lex, lang, False, unseen),
    "passage_talk": passage_talk,
    "mention": mention_sample,
    "mark": mark_sample,
    "tools": lambda rng, lex, lang, _: tool_sample(rng, lex, lang),
    "arithmetic": lambda rng, lex, lang, _: arithmetic_sample(rng, lex, lang),
    "sums": lambda rng, lex, lang, _: sums_sample(rng, lex, lang),
    "greeting": lambda rng, lex, lang, _: greeting_sample(rng, lex, lang),
    "about": lambda rng, lex, lang, _: about_sample(rng, lex, lang),
    "refusal": refusal_sample,
    "completion": completion_sample,
}


@dataclass(frozen=True)
class Phase:
    """A run of samples in random order: `mixture` maps a skill to its weight."""

    samples: int
    mixture: Mapping[str, float]

    def __post_init__(self) -> None:
        at_least(0, self, "samples")
        weights = self.mixture.values()
        expect(
            all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0,
            "mixture", self.mixture, "weights of 0 or more of skills, one of them above 0",
        )  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """One file of samples, phase after phase."""

    name: str
    phases: tuple[Phase, ...]
    held_out: bool = False  # draw from the prompts that training never sees
    unseen: bool = False  # draw names from the pool that training never sees


@dataclass(frozen=True)
class DataRecipe:
    """What `fourbee data generate` reads."""

    files: tuple[DataFile, ...]
    seed: int = 0
    output: Path = field(default_factory=lambda: Path("runs/mini/data"))

    def __post_init__(self) -> None:
        for file in self.files:
            for phase in file.phases:
                for skill in phase.mixture:
                    if skill not in (*SKILLS, *_TURNS):
                        hint = nearest(skill, [*SKILLS, *_TURNS])
                        raise UsageError(f"files {file.name!r}: unknown skill {skill!r}{hint}")


def write_samples(path: Path, drawn: Iterable[Sample]) -> Path:
    """Writes JSON lines, whole or not at all; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as output:
        output.writelines(sample.to_json() + "\n" for sample in drawn)
    return partial.replace(path)


def samples(seed: int, file: DataFile, lexicon: Lexicon) -> Iterator[Sample]:
    """The samples of one file, in order."""
    for number, phase in enumerate(file.phases):
        for index in range(phase.samples):
            rng = random.Random(f"{seed}/{file.name}/{number}/{index}")
            while True:
                sample = _draw(rng, lexicon, phase.mixture, file.unseen)
                if fits_split(sample, file.held_out):
                    yield sample
                    break


def fits_split(sample: Sample, held_out: bool) -> bool:
    """Whether a test file's last prompt is held out, or none of a training file's prompts is."""
    asked = [m["content"] for m in sample.messages if m["role"] == "user"] or [sample.prompt]
    return is_held_out(asked[-1]) if held_out else not any(map(is_held_out, asked))


def is_held_out(prompt: str) -> bool:
    """Whether this prompt belongs to the sixteenth that training never sees."""
    return zlib.crc32(prompt.encode()) % 16 == 0


def _draw(
    rng: random.Random, lexicon: Lexicon, mixture: Mapping[str, float], unseen: bool
) -> Sample:
    skill = rng.choices(list(mixture), list(mixture.values()))[0]
    chinese = _CHINESE.get(skill, _CHINESE_ELSEWHERE)
    language: Language = "zh" if rng.random() < chinese else "en"
    if skill in _TURNS:
        chosen = [rng.choice(_TURN_KINDS) for _ in range(rng.randint(*_TURNS[skill]))]
        parts = [SKILLS[kind](rng, lexicon, language, unseen) for kind in chosen]
        sample = multi_turn(rng, lexicon, parts)
    else:
        sample = SKILLS[skill](rng, lexicon, language, unseen)
    if sample.messages and rng.random() < 0.2:
        sample = with_system(rng, lexicon, sample, language)
    if skill in ("about", "greeting", "refusal", "passage") and rng.random() < 0.06:
        # Tools that are offered and not needed.
        tools = other_tools(rng, lexicon, at_least=1)
        if rng.random() < 0.5 and skill != "refusal":
            tools.append(calculator_tool(rng, lexicon, language)[0])
        sample = Sample(**(vars(sample) | {"tools": tuple(tools)}))
    return sample
