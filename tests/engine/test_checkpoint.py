"""A model's files behind one face: folder and GGUF file of one model are the same model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from fourbee.engine.checkpoint import FolderCheckpoint, GgufCheckpoint, open_checkpoint
from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.foundation.errors import ModelFileError
from fourbee.model.checkpoint_files import save_weights
from fourbee.model.packed_format import PackedFormat
from fourbee.model.quantize import quantize_model
from fourbee.model.weights import named_tensors
from fourbee.text.bpe import save_tokenizer

from .conftest import CHATML


@pytest.fixture
def gguf_file(tmp_path, write_gguf, gguf_vocabulary, config, weights, ops, tokenizer):
    """Writes the model of these tests as model.gguf, with further metadata."""
    vocabulary = gguf_vocabulary(tokenizer._backend, config.vocab_size)

    def write(**more):
        tensors = {name: ops.to_numpy(value) for name, value in named_tensors(weights).items()}
        given = vocabulary | {"tokenizer.chat_template": CHATML} | more
        return write_gguf(tmp_path / "model.gguf", config, tensors, **given)

    return write


def test_a_path_is_opened_as_what_it_is(tmp_path) -> None:
    assert open_checkpoint(tmp_path / "a.gguf") == GgufCheckpoint(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path / "a.GGUF") == GgufCheckpoint(tmp_path / "a.GGUF")
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    assert open_checkpoint(folder) == FolderCheckpoint(folder)


def test_a_gguf_file_answers_as_the_folder_does(
    tmp_path, gguf_file, config, weights, ops, tokenizer
) -> None:
    folder = tmp_path / "folder"
    save_weights(folder, weights, ops)
    save_tokenizer(folder, tokenizer._backend, CHATML)
    path = gguf_file()
    assert open_checkpoint(path).config == open_checkpoint(folder).config == config
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    ids = tokenizer.encode("the reader of the token", control_tokens=False)
    theirs, ours = LLM.load(folder, device="cpu"), LLM.load(path, device="cpu")
    assert ours.generate([ids], params)[0].token_ids == theirs.generate([ids], params)[0].token_ids
    assert ours.num_parameters == theirs.num_parameters == config.num_parameters
    chat = [{"role": "user", "content": "reader"}]
    assert ours.chat_format.encode(chat) == theirs.chat_format.encode(chat)
    assert ours.tokenizer.eos_token_ids[0] == tokenizer.token_id("<|im_end|>")


def test_defaults_are_those_of_the_file_or_neutral(gguf_file) -> None:
    assert open_checkpoint(gguf_file()).defaults == SamplingDefaults()
    more = {"temp": 0.7, "top_p": 0.8, "top_k": 20}
    path = gguf_file(**{f"general.sampling.{key}": value for key, value in more.items()})
    assert open_checkpoint(path).defaults == SamplingDefaults(0.7, 20, 0.8)
    path = gguf_file(**{"general.sampling.top_p": 1.5})
    with pytest.raises(ModelFileError) as error:
        _ = open_checkpoint(path).defaults
    assert str(error.value) == f"{path}: top_p = 1.5: expected more than 0 and at most 1"


def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(
    gguf_file, gguf_vocabulary, tokenizer
) -> None:
    path = gguf_file(**gguf_vocabulary(tokenizer._backend, 301))
    with pytest.raises(ModelFileError) as error:
        LLM.load(path, device="cpu")
    assert str(error.value) == (
        f"{path}: tokenizer.ggml.tokens has 301 entries, expected 300, "
        "one for each row of token_embd.weight"
    )


def test_a_folder_is_read_through_the_same_face(tmp_path, weights, ops, tokenizer) -> None:
    save_weights(tmp_path, weights, ops)
    save_tokenizer(tmp_path, tokenizer._backend, CHATML)
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 3}))
    files = open_checkpoint(tmp_path)
    files.check()
    assert files.defaults == SamplingDefaults(top_k=3)
    assert files.tokenizer.vocab_size == tokenizer.vocab_size
    loaded = files.load_weights(ops)
    assert loaded.config == dataclasses.replace(weights.config, torch_dtype="float32")
    assert np.array_equal(ops.to_numpy(loaded.final_norm), ops.to_numpy(weights.final_norm))


def test_a_gguf_file_is_packed_with_its_tokenizer(tmp_path, gguf_file, tokenizer) -> None:
    path = gguf_file(**{"general.sampling.temp": 0.25})
    quantize_model(path, tmp_path / "packed", PackedFormat("f32"))
    source, packed = open_checkpoint(path), open_checkpoint(tmp_path / "packed")
    packed.check()
    text = "What is this?\n"
    assert packed.tokenizer.encode(text, True) == source.tokenizer.encode(text, True)
    assert packed.tokenizer.chat_template == source.tokenizer.chat_template
    assert packed.tokenizer.named_tokens == source.tokenizer.named_tokens
    assert packed.tokenizer.eos_token_ids == source.tokenizer.eos_token_ids
    assert packed.defaults.params.temperature == source.defaults.params.temperature == 0.25
