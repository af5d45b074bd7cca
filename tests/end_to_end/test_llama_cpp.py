"""What `fourbee export` writes, run by llama.cpp: the same tokens of a text, the same answers.

llama.cpp is found in the interpreter that FOURBEE_LLAMA_CPP_PYTHON names, or in this one. The model
is random and small but for Qwen's vocabulary of 151,936 rows; its margins are wide, so that sums in
another order choose the same tokens.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fourbee.cli import run
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.model.config import Qwen3Config
from fourbee.text.tokenizer import Tokenizer

from .checkpoints import random_tensors

CHILD = Path(__file__).with_name("llama_cpp_child.py")
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
         "tie_word_embeddings": False}  # fmt: skip
# Composed as NFC has it: llama.cpp does not normalise.
TEXTS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs.",
    "他在这中国，有一个很大的问题：为什么天空是蓝色的？",
    'def f(x: int) -> str:\n\treturn f"{x:04d}"  # π ≈ 3.14\n\n\n'
    "if __name__ == '__main__':\n    f(1)\n",
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "Où est la forêt ? Привет, мир! 한국어 🙂👩‍👩‍👧   trailing   \r\n ",
]
ANSWER = 32  # tokens
GREEDY = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)


@pytest.fixture(scope="module")
def interpreter() -> str:
    named = os.environ.get("FOURBEE_LLAMA_CPP_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("set FOURBEE_LLAMA_CPP_PYTHON to a Python that has llama_cpp")
    return sys.executable


def in_llama_cpp(interpreter: str, path: Path, **asked: Any) -> dict[str, Any]:
    document = json.dumps({"path": str(path), **asked})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    outcome = subprocess.run(
        [interpreter, str(CHILD)], input=document, capture_output=True, text=True, env=environment
    )
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


@pytest.fixture(scope="module")
def checkpoint(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "small-qwen"
    folder.mkdir()
    for file in (test_data / "qwen3_configs" / "Qwen3-0.6B").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    packed = (test_data / "tokenizer" / "tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    values = json.loads((folder / "config.json").read_text()) | SHAPE
    (folder / "config.json").write_text(json.dumps(values))
    tensors = random_tensors(Qwen3Config.from_json(values), sixteenth)
    # Few rows are large, so that the likeliest token is seldom a near tie.
    sizes = np.exp(np.random.default_rng(1).standard_normal((151936, 1), np.float32))
    tensors["lm_head.weight"] *= sizes.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def sixteenth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of standard deviation 1/16: hidden states keep their size."""
    return (random.standard_normal(shape, np.float32) / 16).astype(ml_dtypes.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "exact", "agreement"),
    # Share of the likeliest tokens after the same beginning. Between quantised weights llama.cpp
    # rounds activations to eight bits, and beside bfloat16 to that; ours are float32.
    [("f32", True, 1.0), ("f16", True, 1.0), ("bf16", False, 0.95), ("q8_0", False, 0.9),
     ("q4_0", False, 0.9)],
)  # fmt: skip
def test_llama_cpp_says_the_same(
    interpreter, checkpoint, tmp_path, capsys, form, exact, agreement
) -> None:
    path = tmp_path / "small.gguf"
    assert run(["export", str(checkpoint), str(path), "--type", form]) == 0
    assert "warning" not in capsys.readouterr().err
    llm = LLM.load(path, dtype="float32")
    original = Tokenizer.load(checkpoint)
    ids = [original.encode(text, control_tokens=True) for text in TEXTS]
    assert [llm.tokenizer.encode(text, control_tokens=True) for text in TEXTS] == ids
    ours = llm.generate(ids, GREEDY)
    answers = [list(answer.token_ids) for answer in ours]
    theirs = in_llama_cpp(interpreter, path, texts=TEXTS, prompts=ids, answers=answers)
    assert theirs["tokens"] == ids
    assert theirs["eos"] == original.token_id("<|im_end|>")
    assert theirs["rows"] == 151936
    assert theirs["metadata"]["tokenizer.chat_template"] == original.chat_template
    pairs = list(zip(np.ravel(theirs["forced"]), np.ravel(answers), strict=True))
    same = sum(a == b for a, b in pairs) / len(pairs)
    print(f"{form}: likeliest token of the same beginning agrees in {same:.4f}")
    assert same >= agreement
    if exact:
        assert theirs["greedy"] == answers
        assert theirs["texts"] == [llm.tokenizer.decode(answer) for answer in answers]


def test_fourbee_mini_runs_and_its_other_rule_for_words_is_told(
    interpreter, embedded_model, tmp_path, capsys
) -> None:
    path = tmp_path / "mini.gguf"
    assert run(["export", str(embedded_model), str(path), "--type", "f32"]) == 0
    assert "warning: llama.cpp cuts text otherwise" in capsys.readouterr().err
    llm = LLM.load(path, dtype="float32")
    texts = ["<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
             "他在这中国，有一个大的人。", "Abacus and acacias"]  # fmt: skip
    ids = [llm.tokenizer.encode(text, control_tokens=True) for text in texts]
    ours = llm.generate(ids[:1], GREEDY)
    answers = [list(answer.token_ids) for answer in ours]
    theirs = in_llama_cpp(interpreter, path, texts=texts, prompts=ids[:1], answers=answers)
    assert theirs["greedy"] == answers
    # Whole words and characters are cut alike; words that the model's rule parts from their
    # ending are not.
    assert theirs["tokens"][:2] == ids[:2]
    assert theirs["tokens"][2] != ids[2]
