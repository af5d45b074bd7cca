"""A checkpoint whose next token is looked up in a table, and a command line that is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fourbee.cli import run
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes
from fourbee.text.bpe import save_tokenizer, train_bpe
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.tokenizer import chat_template

# What follows a letter; everything else is followed by the end of the turn.
TABLE = {"\n": "o", "o": "k"}
CONFIG = Qwen3Config(
    vocab_size=265, hidden_size=272, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
    tie_word_embeddings=False, torch_dtype="float32",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def fourbee(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `fourbee` with these words."""

    def command(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that looks up TABLE: every chat is answered with "ok"."""
    folder = tmp_path_factory.mktemp("table_model")
    save_tokenizer(folder, train_bpe([], CONFIG.vocab_size), chat_template(), context_length=512)
    tokenizer = Tokenizer.load(folder)
    tensors = {
        name: np.full(shape, float("norm" in name), np.float32)
        for name, shape in tensor_shapes(CONFIG).items()
    }
    # A token's hidden state is a one at its own place: the blocks add nothing to it.
    size = CONFIG.vocab_size
    tensors["model.embed_tokens.weight"][:, :size] = np.eye(size)
    tensors["lm_head.weight"][tokenizer.token_id("<|im_end|>"), :size] = 0.5
    for letter, following in TABLE.items():
        [before] = tokenizer.encode(letter, control_tokens=False)
        [after] = tokenizer.encode(following, control_tokens=False)
        tensors["lm_head.weight"][after, before] = 1.0
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_json()))
    values = {"do_sample": False, "temperature": 0.0, "eos_token_id": list(tokenizer.eos_token_ids)}
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder
