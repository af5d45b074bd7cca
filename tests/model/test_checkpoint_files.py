"""Checkpoint folders: loaded exactly, refused clearly, written so that others load them."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fourbee.model.checkpoint_files import check_weights, find_tensors, load_weights, save_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.weights import named_tensors, tensor_shapes, weights_tree

from .conftest import CONFIG, UNTIED, ArrayOperations, message, random_tensors, write_folder

OPS = ArrayOperations()
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def assert_equal(weights, tensors) -> None:
    found = named_tensors(weights)
    assert list(found) == list(tensor_shapes(weights.config))
    for name, array in found.items():
        assert np.array_equal(array, tensors[name]), name


def sharded(folder, config, tensors, places) -> None:
    """A folder of shards as `places` (name to file) says, with its index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    for file in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def two_shards(config) -> dict[str, str]:
    return {
        name: f"model-0000{1 + (number % 2)}-of-00002.safetensors"
        for number, name in enumerate(tensor_shapes(config))
    }


def reindex(folder, change) -> None:
    """Changes the weight_map of the folder's index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


# Loading.


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_a_single_file_loads_equal(tmp_path, config) -> None:
    tensors = random_tensors(config)
    weights = load_weights(write_folder(tmp_path, config, tensors), OPS)
    assert weights.config == config
    assert_equal(weights, tensors)
    assert (weights.head.weight is weights.embedding) == config.tie_word_embeddings


def test_shards_load_equal(tmp_path) -> None:
    tensors = random_tensors(UNTIED)
    sharded(tmp_path, UNTIED, tensors, two_shards(UNTIED))
    assert_equal(load_weights(tmp_path, OPS), tensors)


def test_shards_without_an_index_load_equal(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    sharded(tmp_path, CONFIG, tensors, two_shards(CONFIG))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_equal(load_weights(tmp_path, OPS), tensors)


def test_files_beside_the_model_are_not_read(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    write_folder(tmp_path, CONFIG, tensors)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not ours")
    assert_equal(load_weights(tmp_path, OPS), tensors)


def test_bfloat16_stays_bit_equal(tmp_path) -> None:
    tensors = random_tensors(CONFIG, "bfloat16")
    weights = load_weights(write_folder(tmp_path, CONFIG, tensors), ArrayOperations("bfloat16"))
    for name, array in named_tensors(weights).items():
        assert array.dtype == ml_dtypes.bfloat16
        assert array.tobytes() == tensors[name].tobytes()


def test_progress_counts_every_byte_once_and_ends_at_the_total(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    reports = []
    load_weights(
        write_folder(tmp_path, CONFIG, tensors), OPS, lambda *report: reports.append(report)
    )
    total = sum(array.nbytes for array in tensors.values())
    assert sorted(name for name, _, _ in reports) == sorted(tensors)
    assert [all_ for _, _, all_ in reports] == [total] * len(tensors)
    done = [count for _, count, _ in reports]
    assert done == sorted(done) and done[-1] == total
    assert reports[0][0] == EMBEDDING  # the largest


def test_a_tied_head_in_the_file_is_ignored_if_it_has_the_right_shape(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    head = np.zeros_like(tensors[EMBEDDING])
    weights = load_weights(write_folder(tmp_path, CONFIG, tensors | {HEAD: head}), OPS)
    assert np.array_equal(weights.head.weight, tensors[EMBEDDING])
    write_folder(tmp_path, CONFIG, tensors | {HEAD: head[:, :8].copy()})
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: tensors 1 of the wrong shape: lm_head.weight is [48, 8], expected [48, 16]"
    )


# What is wrong is named.


def test_missing_and_unexpected_tensors_are_named_at_most_three_of_each(tmp_path) -> None:
    tensors = random_tensors(UNTIED)
    del tensors[HEAD]
    write_folder(tmp_path, UNTIED, tensors)
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: tensors 1 missing: lm_head.weight"
    )
    for name in list(tensors)[:5]:
        tensors[name.replace("model.", "transformer.")] = tensors.pop(name)
    write_folder(tmp_path, CONFIG, tensors)
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: tensors 5 missing: model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight, model.layers.0.self_attn.q_proj.weight and 2 more; "
        "5 not expected: transformer.embed_tokens.weight, "
        "transformer.layers.0.input_layernorm.weight, "
        "transformer.layers.0.self_attn.k_proj.weight and 2 more"
    )


def test_more_layers_than_tensors_are_refused_before_anything_is_made_of_them(tmp_path) -> None:
    write_folder(tmp_path, replace(CONFIG, num_hidden_layers=10**30), random_tensors(CONFIG))
    assert message(check_weights, tmp_path) == (
        f"{tmp_path}/config.json: num_hidden_layers = {10**30}: more layers than tensors (24)"
    )


def test_a_tensor_of_the_wrong_shape_or_type_is_named_with_both(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    write_folder(tmp_path, CONFIG, tensors | {NORM: np.ones(17, np.float32)})
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: tensors 1 of the wrong shape: model.norm.weight is [17], expected [16]"
    )
    write_folder(tmp_path, CONFIG, tensors | {NORM: np.ones(16, np.int8)})
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: tensors 1 of the wrong type: model.norm.weight is I8, "
        "expected BF16 or F16 or F32"
    )


def test_a_truncated_file_is_named_with_its_sizes(tmp_path) -> None:
    write_folder(tmp_path, CONFIG, random_tensors(CONFIG))
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    assert message(load_weights, tmp_path, OPS) == (
        f"{path}: not a whole safetensors file: {size - 1000} bytes, expected {size}"
    )


def test_a_tensor_in_two_files_is_refused(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    sharded(tmp_path, CONFIG, tensors, two_shards(CONFIG))
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({NORM: tensors[NORM]}, tmp_path / "more.safetensors")
    place = two_shards(CONFIG)[NORM]
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: model.norm.weight is both in {place} and in more.safetensors; "
        "expected it once"
    )


def test_a_missing_shard_is_named(tmp_path) -> None:
    sharded(tmp_path, CONFIG, random_tensors(CONFIG), two_shards(CONFIG))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: missing model-00002-of-00002.safetensors, named by "
        "model.safetensors.index.json"
    )


def test_an_index_that_is_wrong_about_a_tensor_is_refused(tmp_path) -> None:
    places = two_shards(CONFIG)
    sharded(tmp_path, CONFIG, random_tensors(CONFIG), places)
    index = tmp_path / "model.safetensors.index.json"
    other = next(file for file in places.values() if file != places[NORM])
    reindex(tmp_path, lambda entries: entries.update({NORM: other}))
    wrong = f"{index}: wrong about {NORM}; expected the file that holds each tensor"
    assert message(load_weights, tmp_path, OPS) == wrong
    reindex(tmp_path, lambda entries: entries.pop(NORM))
    assert message(load_weights, tmp_path, OPS) == wrong


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path, text) -> None:
    sharded(tmp_path, CONFIG, random_tensors(CONFIG), two_shards(CONFIG))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert message(load_weights, tmp_path, OPS) == (
        f"{index}: damaged; expected a JSON object with a weight_map"
    )


def test_an_index_cannot_name_a_file_elsewhere(tmp_path) -> None:
    sharded(tmp_path, CONFIG, random_tensors(CONFIG), two_shards(CONFIG))
    reindex(tmp_path, lambda entries: entries.update({NORM: "../other.safetensors"}))
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path / 'model.safetensors.index.json'}: names '../other.safetensors'; "
        "expected a file of the same folder"
    )


def test_both_layouts_at_once_are_refused(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    sharded(tmp_path, CONFIG, tensors, two_shards(CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: both model.safetensors and model.safetensors.index.json; "
        "expected one of the two"
    )


def test_pickled_weights_are_never_opened(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: no weights; expected model.safetensors"
    )
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert message(load_weights, tmp_path, OPS) == (
        f"{tmp_path}: only pytorch_model.bin; expected model.safetensors: "
        "pickled files can run code"
    )


def test_the_published_index_names_exactly_our_tensors(test_data) -> None:
    folder = test_data / "qwen3_configs" / "Qwen3-4B"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shapes = tensor_shapes(Qwen3Config.load(folder))
    assert index["weight_map"].keys() == shapes.keys()
    assert index["metadata"]["total_size"] == 2 * sum(int(np.prod(s)) for s in shapes.values())


# Saving.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 4000])
def test_what_is_saved_loads_equal(tmp_path, dtype, max_shard_bytes) -> None:
    ops = ArrayOperations(dtype)
    tensors = random_tensors(UNTIED, dtype)
    save_weights(tmp_path, weights_tree(UNTIED, tensors), ops, max_shard_bytes)
    weights = load_weights(tmp_path, ops)
    assert weights.config == replace(UNTIED, torch_dtype=dtype)
    assert_equal(weights, tensors)
    files = sorted(path.name for path in tmp_path.iterdir())
    if max_shard_bytes > 10**6:
        assert files == ["config.json", "model.safetensors"]
        return
    shards = [file for file in files if file.endswith(".safetensors")]
    assert shards == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    assert len(shards) > 1
    for shard in shards:
        held = load_file(tmp_path / shard)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= max_shard_bytes


def test_saving_again_removes_the_old_layout_and_nothing_else(tmp_path) -> None:
    tensors = random_tensors(CONFIG)
    weights = weights_tree(CONFIG, tensors)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model_notes.safetensors").write_bytes(b"mine")
    save_weights(tmp_path, weights, OPS, max_shard_bytes=4000)
    save_weights(tmp_path, weights, OPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "model_notes.safetensors",
        "tokenizer.json",
    ]
    save_weights(tmp_path, weights, OPS, max_shard_bytes=4000)
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(load_weights(tmp_path, OPS), tensors)


def test_a_save_interrupted_at_any_rename_leaves_no_mixture(tmp_path, monkeypatch) -> None:
    old, new = random_tensors(CONFIG), random_tensors(CONFIG)
    new = {name: array + 1 for name, array in new.items()}
    outcomes = set()
    for survived in range(100):
        folder = tmp_path / str(survived)
        save_weights(folder, weights_tree(CONFIG, old), OPS, max_shard_bytes=4000)
        left = survived

        def replace_or_die(source, target, rename=os.replace) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_die)
            try:
                save_weights(folder, weights_tree(CONFIG, new), OPS, max_shard_bytes=4000)
            except KeyboardInterrupt:
                assert message(load_weights, folder, OPS) == (
                    f"{folder}: no config.json; expected a Qwen3 folder"
                )
                outcomes.add("interrupted")
                continue
        assert_equal(load_weights(folder, OPS), new)
        outcomes.add("saved")
        break
    assert outcomes == {"interrupted", "saved"}


def test_a_save_that_fails_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    old = random_tensors(CONFIG)
    weights = weights_tree(CONFIG, old)
    save_weights(tmp_path, weights, OPS)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert message(save_weights, tmp_path, weights, OPS) == (
        f"{tmp_path}: cannot be written: No space left on device"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_equal(load_weights(tmp_path, OPS), old)


# Memory.

PEAK = """
import json, re, sys
from pathlib import Path
import torch
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.weights import named_tensors

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
ratios = []
for dtype in (torch.bfloat16, torch.float32):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    weights = load_weights(Path(sys.argv[1]), TorchOperations("cpu", dtype))
    size = sum(tensor.nbytes for tensor in named_tensors(weights).values())
    ratios.append((status("VmHWM") - before) / size)
    del weights
print(json.dumps(ratios))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_peaks_below_1_2_times_the_loaded_size(tmp_path) -> None:
    config = Qwen3Config(
        vocab_size=24576,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=5,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=64,
    )
    tensors = {
        name: np.zeros(shape, dtype=ml_dtypes.bfloat16)
        for name, shape in tensor_shapes(config).items()
    }
    ops = ArrayOperations("bfloat16")
    save_weights(tmp_path, weights_tree(config, tensors), ops, max_shard_bytes=80_000_000)
    assert sum(tensor.size for tensor in find_tensors(tmp_path).values()) > 200_000_000
    answer = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    ratios = json.loads(answer.stdout)
    print(f"peak over loaded size: bfloat16 {ratios[0]:.3f}, as float32 {ratios[1]:.3f}")
    assert all(0.9 < ratio <= 1.2 for ratio in ratios), ratios
