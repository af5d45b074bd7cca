"""config.json: what is read, what is written, and what is refused and how."""

import json
from dataclasses import replace

import pytest

from fourbee.foundation.errors import ModelFileError
from fourbee.model.config import Qwen3Config
from fourbee.model.int8 import INT8

from .conftest import CONFIG, message


def changed(**values) -> dict:
    """The tiny config.json with some keys changed; None removes a key."""
    result = CONFIG.to_json() | values
    return {key: value for key, value in result.items() if value is not None}


def test_what_is_written_is_read_back_equal() -> None:
    for config in (CONFIG, replace(CONFIG, quantization=INT8, tie_word_embeddings=False)):
        assert Qwen3Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_published_configurations_load_with_their_true_sizes(test_data) -> None:
    parameters = {
        "Qwen3-0.6B": 596_049_920,
        "Qwen3-1.7B": 1_720_574_976,
        "Qwen3-4B": 4_022_468_096,
        "Qwen3-4B-Instruct-2507": 4_022_468_096,
        "Qwen3-8B": 8_190_735_360,
    }
    for name, expected in parameters.items():
        config = Qwen3Config.load(test_data / "qwen3_configs" / name)
        assert config.num_parameters == expected
    instruct = Qwen3Config.load(test_data / "qwen3_configs" / "Qwen3-4B-Instruct-2507")
    assert (instruct.rope_theta, instruct.max_position_embeddings) == (5_000_000.0, 262_144)
    assert instruct.tie_word_embeddings
    assert instruct.torch_dtype == "bfloat16"


def test_newer_spellings_of_transformers_are_read() -> None:
    values = changed(rope_theta=None, torch_dtype=None) | {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
        "layer_types": ["full_attention", "full_attention"],
    }
    config = Qwen3Config.from_json(values)
    assert (config.rope_theta, config.torch_dtype) == (5e6, "bfloat16")


def test_a_whole_number_is_taken_for_a_float() -> None:
    assert Qwen3Config.from_json(changed(rope_theta=10_000)).rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(model_type="llama"), "model_type = 'llama': expected 'qwen3'"),
        (changed(model_type=None), "model_type = None: expected 'qwen3'"),
        (changed(attention_bias=True), "attention_bias = True: expected False"),
        (changed(hidden_act="gelu"), "hidden_act = 'gelu': expected 'silu'"),
        (changed(use_sliding_window=True), "use_sliding_window = True: expected False"),
        (
            changed(layer_types=["full_attention", "sliding_attention"]),
            "layer_types has 'sliding_attention': expected 'full_attention'",
        ),
        (changed(head_dim=None), "missing key 'head_dim'"),
        (changed(rope_theta=None), "missing key 'rope_theta'"),
        (changed(rms_norm_eps=10**400), f"rms_norm_eps = {10**400}: expected a number"),
        (changed(vocab_size="48"), "vocab_size = '48': expected a whole number"),
        (changed(vocab_size=True), "vocab_size = True: expected a whole number"),
        (changed(tie_word_embeddings=1), "tie_word_embeddings = 1: expected true or false"),
        (changed(vocab_size=0), "vocab_size = 0: expected more than 0"),
        (changed(rms_norm_eps=float("nan")), "rms_norm_eps = nan: expected more than 0"),
        (
            changed(num_key_value_heads=3),
            "num_attention_heads = 4: expected a multiple of num_key_value_heads = 3",
        ),
        (changed(head_dim=7), "head_dim = 7: expected an even number"),
        (
            changed(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "rope_scaling type 'yarn': expected null (plain RoPE)",
        ),
        (changed(rope_scaling=4), "rope_scaling = 4: expected an object or null"),
        (
            changed(quantization_config={"quant_method": "bitsandbytes", "bits": 4}),
            "quantization_config.quant_method = 'bitsandbytes': expected one of 'fp8', 'awq', "
            "'gptq', 'fourbee-packed', 'fourbee-int8', or no quantization_config",
        ),
    ],
)
def test_another_network_is_refused_by_key_and_value(values, expected) -> None:
    assert message(Qwen3Config.from_json, values) == f"config.json: {expected}"


def test_files_that_are_no_configuration_are_named(tmp_path) -> None:
    assert message(Qwen3Config.load, tmp_path) == (
        f"{tmp_path}: no config.json; expected a Qwen3 folder"
    )
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ModelFileError, match="not valid JSON: Expecting property name"):
        Qwen3Config.load(tmp_path)
    path.write_text("[]")
    assert message(Qwen3Config.load, tmp_path) == f"{path}: expected a JSON object"
    path.unlink()
    path.mkdir()
    assert message(Qwen3Config.load, tmp_path) == f"{path}: cannot be read: Is a directory"
