"""What passages state of their subjects: attributes, each with its sentences and its questions.

Three sources: relations of the lexicon (paraphrased both ways), generic attributes ("the {n} of
{s}"), and the sentence grammar of `grammar.py`. It makes templates; `passages.py` fills them.
"""

from __future__ import annotations

import random

from fourbee.training.generators.grammar import GRAMMARS, Attribute
from fourbee.training.generators.lexicon import Language, Lexicon
from fourbee.training.generators.names import Names

_VALUES = ("number", "year", "date", "person", "place", "thing", "word", "color", "number", "money")


def draw_attribute(rng: random.Random, lexicon: Lexicon, kind: str, names: Names) -> Attribute:
    """An attribute that suits this kind of subject."""
    language = names.language
    relations = [one for one in lexicon.relations if one.subject == kind]
    roll = rng.random()
    if relations and roll < 0.42:
        one = rng.choice(relations)
        return Attribute(one.id, one.value, one.statements[language], one.questions[language])
    if roll < 0.62:
        return _generic(rng, lexicon, language, names)
    return GRAMMARS[language](rng, lexicon.grammar[language], names, kind).clause()


def _generic(rng: random.Random, lexicon: Lexicon, language: Language, names: Names) -> Attribute:
    noun = rng.choice((*lexicon.attributes[language], *lexicon.grammar[language]["properties"]))
    if rng.random() < 0.15:
        noun = names.noun()
    statements = [s.replace("{n}", noun) for s in lexicon.attributes[f"statements_{language}"]]
    questions = [q.replace("{n}", noun) for q in lexicon.attributes[f"questions_{language}"]]
    return Attribute(f"n:{noun}", rng.choice(_VALUES), statements, questions)
