"""`fourbee train tokenizer`: a byte-level BPE tokenizer from the samples that a model will read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import fourbee.text
from fourbee.text.bpe import QWEN_CONTROL_TOKENS, save_tokenizer, train_bpe
from fourbee.text.chat_template import ChatTemplate
from fourbee.training.generators.lexicon import han_characters
from fourbee.training.sources import Source, read_samples


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
    lines = [dict(one) for path in recipe.data for _, one in read_samples(Source(path))]
    for sample in lines[:: max(1, len(lines) // recipe.max_samples)]:
        if "messages" in sample:
            yield template.render({"messages": sample["messages"], "tools": sample.get("tools")})
        else:
            yield (
                str(sample.get("text", ""))
                + sample.get("prompt", "")
                + sample.get("completion", "")
            )
