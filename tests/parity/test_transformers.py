"""The network against transformers, in float32: logits, greedy text, and checkpoints both ways."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, GenerationConfig, Qwen3ForCausalLM

from fourbee.kernels.operations import HeadRequest
from fourbee.kernels.paged_cache import own_cache
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import load_weights, save_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import forward
from fourbee.model.weights import named_tensors

from .conftest import ours, shape, tensors_of, theirs

QUICK, FULL = 8192, 151_936
SHAPES = {
    "0.6B": (1024, 3072, 16, 3, True, 1e6),
    "4B": (2560, 9728, 32, 2, True, 5e6),
    "untied": (1024, 3072, 32, 2, False, 1e6),
}
SMALL = shape(256, 512, 16, 2, 1024, True, 1e6)


def sized(name: str, vocabulary: int) -> Qwen3Config:
    hidden, inner, heads, layers, tied, theta = SHAPES[name]
    return shape(hidden, inner, heads, layers, vocabulary, tied, theta)


def random_ids(config: Qwen3Config, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, count)


def new_cache(config: Qwen3Config, ops: TorchOperations):
    return own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)


def our_logits(weights, ops, ids: np.ndarray, first: int = 0) -> torch.Tensor:
    """Logits of every row of one sequence, prefilled in two chunks."""
    cache = new_cache(weights.config, ops)
    cut = len(ids) // 3
    hidden = []
    with torch.inference_mode():
        for rows in (slice(0, cut), slice(cut, len(ids))):
            attention = ops.cached_attention([(cache, rows.stop - rows.start)])
            positions = np.arange(first + rows.start, first + rows.stop)
            hidden.append(forward(weights, ids[rows], positions, attention, ops).final)
        return ops.linear(torch.cat(hidden), weights.head)


def their_logits(model: Qwen3ForCausalLM, ids: np.ndarray, first: int = 0) -> torch.Tensor:
    positions = torch.arange(first, first + len(ids))[None]
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None], position_ids=positions).logits[0]


def greedy(weights, ops, prompt: np.ndarray, count: int) -> list[int]:
    """Prefill, then one row a step, through the cache and the head, as an engine does it."""
    request = HeadRequest(
        temperature=np.zeros(1, np.float32),
        top_k=np.zeros(1, np.int64),
        top_p=np.ones(1, np.float32),
        min_p=np.zeros(1, np.float32),
        seed=np.zeros(1, np.uint64),
        position=np.zeros(1, np.int64),
    )
    cache = new_cache(weights.config, ops)
    answer, ids = [], prompt
    with torch.inference_mode():
        for _ in range(count):
            positions = np.arange(cache.length, cache.length + len(ids))
            attention = ops.cached_attention([(cache, len(ids))])
            last = np.array([len(ids) - 1])
            hidden = forward(weights, ids, positions, attention, ops, rows=last).final
            ids = ops.head(hidden, weights.head, request).token_ids
            answer.append(int(ids[0]))
    return answer


def their_greedy(model: Qwen3ForCausalLM, prompt: np.ndarray, count: int) -> list[int]:
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
    )
    ids = torch.from_numpy(prompt)[None]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output[0, len(prompt) :].tolist()


def assert_same_network(name: str, vocabulary: int, tokens: int) -> None:
    config = sized(name, vocabulary)
    model = theirs(config)
    weights, ops = ours(config, model)
    ids = random_ids(config, 48)
    expected = their_logits(model, ids)
    difference = (our_logits(weights, ops, ids) - expected).abs().max().item()
    print(
        f"{name}, vocabulary {vocabulary}: largest difference {difference:.1e} "
        f"of logits with deviation {expected.std():.1f}"
    )
    assert difference <= 1e-4
    assert expected.std() > 1  # not degenerate
    if tokens:
        answer = greedy(weights, ops, ids, tokens)
        assert answer == their_greedy(model, ids, tokens)
        assert len(set(answer)) > 3


@pytest.mark.parametrize(("name", "tokens"), [("0.6B", 64), ("4B", 0), ("untied", 64)])
def test_logits_and_greedy_tokens_are_those_of_transformers(name, tokens) -> None:
    assert_same_network(name, QUICK, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_full_vocabulary_is_as_exact(name) -> None:
    assert_same_network(name, FULL, 64)


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e6])
def test_deep_positions_are_turned_as_in_transformers(theta) -> None:
    config = dataclasses.replace(SMALL, rope_theta=theta)
    model = theirs(config)
    weights, ops = ours(config, model)
    ids = random_ids(config, 32)
    for first in (40_000, 262_100):
        found = our_logits(weights, ops, ids, first)
        difference = (found - their_logits(model, ids, first)).abs().max().item()
        print(f"theta {theta:.0e}, from position {first}: largest difference {difference:.1e}")
        assert difference <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 500_000], ids=["single", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_we_save_transformers_loads_with_equal_logits(
    tmp_path, dtype, max_shard_bytes, tied
) -> None:
    kind = getattr(torch, dtype)
    config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
    model = theirs(config, kind)
    weights, _ = ours(config, model)
    save_weights(tmp_path, weights, TorchOperations("cpu", kind), max_shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_bytes < 10**6)
    loaded, report = Qwen3ForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.dtype == kind
    ids = random_ids(config, 20)
    assert torch.equal(their_logits(loaded.eval(), ids), their_logits(model, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_transformers_saves_we_load_bit_equal(tmp_path, dtype) -> None:
    kind = getattr(torch, dtype)
    model = theirs(SMALL, kind)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    weights = load_weights(tmp_path, TorchOperations("cpu", kind))
    assert weights.config == dataclasses.replace(SMALL, torch_dtype=dtype)
    tensors = tensors_of(model)
    for name, tensor in named_tensors(weights).items():
        assert tensor.dtype == kind
        assert torch.equal(tensor, tensors[name]), name


def test_published_configurations_mean_the_same_to_transformers(test_data) -> None:
    folders = [path.parent for path in (test_data / "qwen3_configs").glob("*/config.json")]
    assert len(folders) >= 5
    for folder in folders:
        config, other = Qwen3Config.load(folder), AutoConfig.from_pretrained(folder)
        assert config.rope_theta == other.rope_parameters["rope_theta"]
        for field in dataclasses.fields(config):
            if field.name not in ("rope_theta", "torch_dtype", "quantization"):
                assert getattr(config, field.name) == getattr(other, field.name), field.name
        ours_written = AutoConfig.for_model(**json.loads(json.dumps(config.to_json())))
        assert ours_written.rope_parameters == other.rope_parameters
        assert ours_written.layer_types == other.layer_types
