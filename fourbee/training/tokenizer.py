"""`fourbee train tokenizer`: a byte-level BPE tokenizer from the samples that a model will read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import fourbee.text
from fourbee.foundation.errors import FourbeeError, TrainingError, UsageError
from fourbee.text.bpe import QWEN_CONTROL_TOKENS, save_tokenizer, train_bpe
from fourbee.text.chat_template import ChatTemplate
from fourbee.training.checks import at_least
from fourbee.training.generators.lexicon import han_characters
from fourbee.training.samples import check_messages
from fourbee.training.sources import Sample, Source, no_samples, read_samples


@dataclass(frozen=True)
class TokenizerRecipe:
    """One tokenizer; every key of a recipe file is a field here."""

    output: Path
    data: tuple[Path, ...]
    vocab_size: int = 4096
    max_samples: int = 40_000
    han: bool = True  # a token for each of the commonest Han characters
    context_length: int = 2048
    # Greedy by default: what a small model answers best.
    temperature: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, self, "max_samples", "context_length")
        at_least(0, self, "temperature")
        if not self.data:
            raise UsageError("data: expected at least one file of samples")


def train_tokenizer(recipe: TokenizerRecipe) -> Path:
    """Learns, and writes tokenizer.json, tokenizer_config.json, generation_config.json."""
    template = chat_template()
    guaranteed = [*han_characters(), *"，。？！：；、（）“”"] if recipe.han else []
    tokenizer = train_bpe(
        _texts(recipe, ChatTemplate(template)), recipe.vocab_size, QWEN_CONTROL_TOKENS, guaranteed
    )
    save_tokenizer(recipe.output, tokenizer, template, context_length=recipe.context_length)
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {
        "do_sample": recipe.temperature > 0,
        "eos_token_id": ends,
        "pad_token_id": ends[1],
        "temperature": recipe.temperature,
        "top_k": 0,
        "top_p": 1.0,
    }
    text = json.dumps(generation, indent=2) + "\n"
    (recipe.output / "generation_config.json").write_text(text, encoding="utf-8")
    return recipe.output


def chat_template() -> str:
    """fourbee's own template: renders what Qwen3-Instruct-2507's does."""
    return (resources.files(fourbee.text) / "qwen3_instruct.jinja").read_text("utf-8")


def _texts(recipe: TokenizerRecipe, template: ChatTemplate) -> Iterator[str]:
    """Samples as they will be read, spread evenly over the files' lines."""
    lines = [one for path in recipe.data for one in _lines(Source(path))]
    for where, sample in lines[:: max(1, len(lines) // recipe.max_samples)]:
        try:
            text = _text(sample, template)
            text.encode()
        except UnicodeEncodeError:
            raise TrainingError(f"{where}: holds half of a surrogate pair") from None
        except FourbeeError as error:
            raise TrainingError(f"{where}: {error}") from None
        yield text


def _lines(source: Source) -> list[tuple[str, Sample]]:
    lines = list(read_samples(source))
    if not lines:
        raise no_samples(source)
    return lines


def _text(sample: Sample, template: ChatTemplate) -> str:
    """A conversation as its template writes it, or raw text."""
    if "messages" in sample:
        check_messages(sample["messages"], answered=None)
        return template.render({"messages": sample["messages"], "tools": sample.get("tools")})
    parts = [sample[key] for key in ("text", "prompt", "completion") if key in sample]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise TrainingError("expected messages, or strings: text, or prompt and completion")
    return "".join(parts)
