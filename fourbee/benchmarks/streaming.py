"""A text without end through a window: whether the model holds, and whether memory does.

Tokens of generated samples are read with streaming attention, and the same again, ten times; each
is scored by what was before it, and no window reaches back to the time before. Told are the
perplexity of each tenth of the text, and after it the pages in use and the process's memory. Scores
are summed as they come, as a server would forget them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fourbee.benchmarks.start import anonymous_bytes
from fourbee.engine.checkpoint import open_checkpoint
from fourbee.engine.kv_cache import KvCache
from fourbee.engine.model_runner import ModelRunner
from fourbee.engine.request import Request
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import Chunk
from fourbee.engine.sequence import Sequence
from fourbee.kernels.backends import open_operations
from fourbee.model.attention_modes import StreamingMode
from fourbee.model.hub import resolve_model
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.generators.generate import DataFile, Phase, samples
from fourbee.training.generators.lexicon import load_lexicon
from fourbee.training.samples import encode_sample

PARTS = 10
STEP_ROWS = 512
# Skills in the parts that training has them, more or less.
_MIXTURE = {"passage": 4, "passage_absent": 2, "tools": 4, "arithmetic": 3, "greeting": 1,
            "about": 1, "refusal": 1}  # fmt: skip

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Tenth:
    """A part of the text: its perplexity, and what was in use at its end."""

    perplexity: float
    pages: int
    memory_bytes: int


@dataclass(frozen=True)
class Streaming:
    """All of the text."""

    tokens: int
    window: int
    seconds: float
    tenths: tuple[Tenth, ...]

    @property
    def drift(self) -> float:
        """The last tenth's perplexity by the first's, less one."""
        return self.tenths[-1].perplexity / self.tenths[0].perplexity - 1


def measure_streaming(model: str | None, tokens: int, window: int, tell: Tell) -> Streaming:
    """Reads about so many tokens with the model as `serve` loads it; default: fourbee-mini."""
    files = open_checkpoint(resolve_model(model))
    config = files.config
    ops = open_operations(
        "auto", "cpu", "auto", config.torch_dtype, "none", config.head_dim, config.packed, "auto"
    )
    mode = StreamingMode(window)
    # The window, what is leaving it, the sinks, and a step.
    pages = (mode.held + STEP_ROWS) // 64 + 2
    runner = ModelRunner(files.load_weights(ops), ops, pages)
    kv = KvCache(runner.storage)
    part = tuple(_text(files.tokenizer, tokens // PARTS))
    text = part * PARTS
    request = Request("text", text, SamplingParams(), prompt_logprobs=0, attention="streaming")
    tokens = len(text)
    sequence = Sequence(request, tokens + 1, (), 0, mode=mode)
    began, total, scored = time.perf_counter(), 0.0, 0
    tenths: list[Tenth] = []
    for end in range(STEP_ROWS, tokens + STEP_ROWS, STEP_ROWS):
        count = min(end, tokens) - sequence.computed
        kv.reserve(sequence, sequence.computed + count)
        [outcome] = runner.sample(runner.run((Chunk(sequence, count),)))
        assert outcome.finite
        sequence.computed += count
        kv.commit(sequence)
        total -= sum(token.logprob for token in outcome.prompt_scores)
        scored += len(outcome.prompt_scores)
        if sequence.computed >= (len(tenths) + 1) * tokens // PARTS:
            used = kv.counts.referenced
            tenths.append(Tenth(math.exp(total / scored), used, anonymous_bytes(os.getpid())))
            perplexity = tenths[-1].perplexity
            tell(f"{sequence.computed:,} tokens: perplexity {perplexity:.3f}, {used} pages")
            total, scored = 0.0, 0
    return Streaming(tokens, window, time.perf_counter() - began, tuple(tenths))


def _text(tokenizer: Tokenizer, tokens: int) -> Iterator[int]:
    """Samples that training has not seen, one after the other."""
    file = DataFile("streaming", (Phase(10**9, _MIXTURE),), held_out=True)
    chat, told = ChatFormat(tokenizer), 0
    for sample in samples(0, file, load_lexicon()):
        for token_id in encode_sample(json.loads(sample.to_json()), tokenizer, chat)[0]:
            yield token_id
            told += 1
            if told == tokens:
                return
