"""Tokenizers for the tests of `fourbee.text`: a small one trained on the spot, and Qwen's."""

import gzip
from pathlib import Path

import pytest

from fourbee.text.bpe import train_bpe
from fourbee.text.tokenizer import Tokenizer

GUARANTEED = "的一是不了人我在有他这中大来上国。，、“”（）！？…—"

SENTENCES = [
    'The token "token" is a token; the model reads the token, and the reader reads the model.',
    "Numbers such as 12, 345 and 6.78 are cut into digits. A tool call is a call of a tool.",
    "我们在中国，他有一个大的问题。龘龘龘龘龘龘",
    "Привет, мир! Мир и мир. Où est la forêt ? 🙂👩‍👩‍👧",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\nuser\nassistant\nsystem\n',
]

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """About 600 tokens of byte-level BPE with Qwen's control tokens and a ChatML template."""
    backend = train_bpe(SENTENCES * 4, 600, guaranteed=GUARANTEED)
    end = backend.token_to_id("<|im_end|>")
    assert end is not None
    return Tokenizer(backend, chat_template=CHATML, eos_token_ids=[end])


@pytest.fixture(scope="session")
def qwen(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of Qwen3-4B-Instruct-2507, loaded from a folder as a checkpoint has it."""
    folder = tmp_path_factory.mktemp("qwen")
    packed = (test_data / "tokenizer" / "tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    for file in (test_data / "qwen3_configs" / "Qwen3-4B-Instruct-2507").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Tokenizer.load(folder)
