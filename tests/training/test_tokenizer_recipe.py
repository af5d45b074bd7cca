"""The tokenizer recipe: Qwen's chat format in fourbee's words, and a folder that others load."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.chat_template import ChatTemplate
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.generators.lexicon import han_characters
from fourbee.training.tokenizer import TokenizerRecipe, chat_template, train_tokenizer

from .conftest import conversation

TEXTS = [
    "say red 3 times",
    "Repeat:  two\n\n\tgreen  trees 12345 + 6.78?",
    "北京的房子是什么颜色？红色。",
    "é 🙂 \u0301 ﷺ",
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call><think>",
    "",
]


@pytest.fixture(scope="module")
def vectors(test_data: Path) -> list[dict[str, Any]]:
    packed = test_data / "qwen3_configs" / "chat_template_vectors.jsonl.gz"
    lines = map(json.loads, gzip.decompress(packed.read_bytes()).decode().splitlines())
    return [line for line in lines if line["template"] == "Qwen3-4B-Instruct-2507"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained by a recipe."""
    root = tmp_path_factory.mktemp("tokenizer_recipe")
    lines: list[dict[str, Any]] = [conversation(index) for index in range(60)]
    lines += [{"prompt": "red red", "completion": " red"}, {"text": "blue 北京"}]
    data = root / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = TokenizerRecipe(root / "made", (data,), vocab_size=3600, context_length=512)
    return train_tokenizer(recipe)


def test_the_template_renders_what_qwens_does(vectors):
    template = ChatTemplate(chat_template())
    assert len(vectors) == 34
    for vector in vectors:
        variables = {name: vector[name] for name in ("messages", "tools", "add_generation_prompt")}
        assert template.render(variables | vector["kwargs"]) == vector["text"], vector["name"]


def test_with_qwens_tokenizer_the_template_gives_qwens_ids(vectors, test_data, tmp_path):
    packed = (test_data / "tokenizer" / "tokenizer.json.gz").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(packed))
    tokenizer = Tokenizer.load(tmp_path)
    chat = ChatFormat(tokenizer, chat_template())
    for vector in vectors:
        parts = vector["messages"], vector["tools"], vector["add_generation_prompt"]
        rendered = chat.render(*parts, **vector["kwargs"])
        # As Qwen reads it, with control tokens in contents; fourbee's `encode` knows them apart.
        assert tokenizer.encode(rendered, control_tokens=True) == vector["ids"], vector["name"]
        if "<" not in json.dumps(vector["messages"]):
            assert chat.encode(*parts, **vector["kwargs"]) == vector["ids"], vector["name"]


def test_the_saved_folder_is_a_checkpoints_tokenizer(folder):
    tokenizer = Tokenizer.load(folder)
    ends = [tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert list(tokenizer.eos_token_ids) == ends
    assert tokenizer.chat_template == chat_template()
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1], "temperature": 0.0,
        "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 512
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, control_tokens=False)) == text


def test_every_han_character_of_the_lexicon_is_one_token(folder):
    tokenizer = Tokenizer.load(folder)
    for character in [*han_characters(), *"，。？！：；、（）“”"]:
        assert len(tokenizer.encode(character, control_tokens=False)) == 1, character


def test_words_of_the_samples_are_learned(folder):
    tokenizer = Tokenizer.load(folder)
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("say house", control_tokens=False)]
    assert pieces == [b"say", b" ", b"house"]


def test_transformers_loads_it_with_equal_ids(folder):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text, control_tokens=True), text
        assert theirs.decode(ids) == text
    messages = conversation(3)["messages"]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert rendered == ChatFormat(ours).render(messages, add_generation_prompt=False)
    assert theirs.eos_token == "<|im_end|>"


def test_what_the_recipe_lacks_is_one_line(tmp_path):
    data = tmp_path / "data.jsonl"
    with pytest.raises(TrainingError) as missing:
        train_tokenizer(TokenizerRecipe(tmp_path / "out", (data,)))
    assert str(missing.value) == f"data {data}: no such file"
    data.write_text("")
    with pytest.raises(TrainingError) as empty:
        train_tokenizer(TokenizerRecipe(tmp_path / "out", (data,)))
    assert str(empty.value) == f"{data}: holds no samples"
    data.write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match=r"^vocab_size 300 is too small: 256 bytes, "):
        train_tokenizer(TokenizerRecipe(tmp_path / "out", (data,), vocab_size=300))


FORMS = "expected messages, or strings: text, or prompt and completion"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": 3}', FORMS),
        ('{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}', FORMS),
        ('{"instruction": "a", "output": "b"}', FORMS),
        ('{"messages": ["a"]}', "messages[0]: expected an object"),
        ('{"text": "\\ud800"}', "holds half of a surrogate pair"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named_by_its_line(tmp_path, line, reason):
    data = tmp_path / "data.jsonl"
    data.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(TrainingError) as error:
        train_tokenizer(TokenizerRecipe(tmp_path / "out", (data,), vocab_size=300, han=False))
    assert str(error.value) == f"{data}:2: {reason}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ()}, "data: expected at least one file of samples"),
        ({"max_samples": 0}, "max_samples = 0: expected at least 1"),
        ({"context_length": -1}, "context_length = -1: expected at least 1"),
        ({"temperature": -1.0}, "temperature = -1.0: expected at least 0"),
    ],
)
def test_a_wrong_recipe_is_one_line(settings, message):
    with pytest.raises(UsageError) as error:
        TokenizerRecipe(**{"output": Path("out"), "data": (Path("a.jsonl"),)} | settings)
    assert str(error.value) == message
