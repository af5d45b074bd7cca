"""What all tests share: one thread a library, no network, and where the real data lies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "fourbee" / "models" / "fourbee-mini"


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is pulled or packed goes into a folder of these tests, not into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOURBEE_HOME", str(tmp_path_factory.mktemp("fourbee_home")))
        yield


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of fourbee-mini, which is part of the package."""
    assert (EMBEDDED / "model.safetensors").is_file()
    return EMBEDDED


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is not named."""
    folder = os.environ.get("FOURBEE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set FOURBEE_TEST_DATA")
    return Path(folder)


def vocabulary_metadata(backend: Any, rows: int) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer, filled up to `rows` with unused tokens."""
    layout = json.loads(backend.to_str())
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = np.full(rows, 5, dtype=np.int32)
    for token, token_id in layout["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = token, 1
    for added in layout["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = 3 if added["special"] else 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in layout["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": backend.token_to_id("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": backend.token_to_id("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="session")
def gguf_vocabulary() -> Callable[..., dict[str, Any]]:
    return vocabulary_metadata


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Writes a Qwen3 as a GGUF file with llama.cpp's own Python package and its names.

    Matrices are of the type that `kind` names, norms float32. `more` is further metadata; a key
    whose value is None is left out.
    """
    gguf = pytest.importorskip("gguf")

    def write(
        path: Path, config: Any, tensors: dict[str, Any], kind: str = "F32", **more: Any
    ) -> Path:
        writer = gguf.GGUFWriter(path, "qwen3")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        for key, value in more.items():
            if isinstance(value, list | np.ndarray):
                writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
            elif value is not None:
                known = gguf.GGUFValueType
                of_float = isinstance(value, float)
                writer.add_key_value(
                    key, value, known.FLOAT32 if of_float else known.get_type(value)
                )
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
        for name, values in tensors.items():
            of = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
            raw = gguf.quants.quantize(np.asarray(values, dtype=np.float32), of)
            writer.add_tensor(
                f"{names.get_name(name.removesuffix('.weight'))}.weight", raw, raw_dtype=of
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
