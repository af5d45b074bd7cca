"""GPTQ: outputs come closer than by rounding, its bytes mean what was computed, nothing is left."""

from __future__ import annotations

import numpy as np
import pytest

from fourbee.foundation.errors import UsageError
from fourbee.kernels.packed import pack, unpack
from fourbee.model.calibrated import (
    LEAST_TOKENS,
    CalibratedRounding,
    RecordingOperations,
    gptq,
    inverse_factor,
)
from fourbee.model.checkpoint_files import load_weights, open_tensors
from fourbee.model.packed_format import PackedFormat
from fourbee.model.quantize import quantize_model
from fourbee.model.weights import block_weights, named_tensors, tensor_shapes
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.generators.generate import DataFile, Phase, samples
from fourbee.training.generators.lexicon import load_lexicon
from fourbee.training.samples import encode_sample

from .conftest import ArrayOperations

FORM = PackedFormat("int4", 32, True, "gptq", "int8")
MIXTURE = {"passage": 3, "passage_absent": 2, "tools": 2, "arithmetic": 2, "about": 2}


@pytest.fixture(scope="module")
def sequences(embedded_model):
    """Of generated samples, as many as asked for, from either side of the split."""
    tokenizer, lexicon = Tokenizer.load(embedded_model), load_lexicon()
    chat = ChatFormat(tokenizer)

    def drawn(count: int, held_out: bool) -> list[list[int]]:
        file = DataFile("calibration", (Phase(count, MIXTURE),), held_out)
        return [
            encode_sample(
                {"messages": sample.messages, "tools": sample.tools}, tokenizer, chat
            )[0]
            for sample in samples(3, file, lexicon)
        ]  # fmt: skip

    return drawn


@pytest.fixture(scope="module")
def held_out_moments(embedded_model, sequences):
    """`(matrix, X^T X)` of the first two layers' matrices by name, on held-out samples."""
    tensors = open_tensors(embedded_model)
    reader = CalibratedRounding(tensors, FORM, sequences(20, True))
    hidden, found = reader._hidden, {}
    for layer in range(2):
        arrays = {
            name: tensors.dense(name).astype(np.float32)
            for name in tensor_shapes(tensors.config)
            if name.startswith(f"model.layers.{layer}.")
        }
        recording, block = RecordingOperations(), block_weights(layer, arrays)
        pairs = zip(reader._lengths, hidden, strict=True)
        hidden = [reader._forward(block, *pair, recording) for pair in pairs]
        found |= {
            name: (array, recording.moments(array).astype(np.float64))
            for name, array in arrays.items() if array.ndim == 2
        }  # fmt: skip
    return found


def output_error(rounded, matrix, moments) -> float:
    """`|X (W' - W)^T| / |X W^T|`."""
    wrong = rounded - matrix
    return float(np.sqrt(np.sum(wrong @ moments * wrong) / np.sum(matrix @ moments * matrix)))


@pytest.mark.parametrize("rotated", [True, False])
def test_held_out_outputs_of_every_matrix_come_closer_than_by_rounding(
    embedded_model, sequences, held_out_moments, rotated
) -> None:
    form = PackedFormat("int4", 32, rotated, "gptq", "int8")
    calibrated = CalibratedRounding(open_tensors(embedded_model), form, sequences(40, False))
    ratios = []
    for name, (matrix, moments) in held_out_moments.items():
        packed = calibrated.packed(name)
        assert (packed.kind, packed.group, packed.rotated) == ("int4", 32, rotated)
        ours = output_error(unpack(packed), matrix, moments)
        searched = output_error(unpack(pack(matrix, "int4", 32, rotated)), matrix, moments)
        assert ours < searched, name
        ratios.append(ours / searched)
    assert np.mean(ratios) < 0.8


def test_rounding_is_that_of_the_papers_equations() -> None:
    """Column by column with the whole inverse, as equations 2 and 3 of the paper have it."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((16, 64)).astype(np.float32)
    inputs = (rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64))).astype(np.float32)
    moments = inputs.T @ inputs
    packed = gptq(matrix, inverse_factor(moments, False), 64, False)
    damped = moments.astype(np.float64) + 0.01 * np.trace(moments) / 64 * np.eye(64)
    scale = packed.data.view(np.float16)[0, -16:].astype(np.float64)
    left, rounded = matrix.astype(np.float64), np.empty((16, 64))
    inverse = np.linalg.inv(damped)
    for column in range(64):
        rounded[:, column] = np.clip(np.rint(left[:, column] / scale), -8, 7) * scale
        lost = (left[:, column] - rounded[:, column]) / inverse[column, column]
        left -= np.outer(lost, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    # One number that falls on the other side of a half changes those after it in its row.
    equal = (np.abs(unpack(packed) - rounded) < 1e-4).all(axis=1)
    assert equal.mean() > 0.9


def test_an_input_that_is_always_zero_costs_nothing() -> None:
    inputs = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    inputs[:, 5] = 0
    matrix = np.random.default_rng(1).standard_normal((16, 128)).astype(np.float32)
    for rotated in (True, False):
        packed = gptq(matrix, inverse_factor(inputs.T @ inputs, rotated), 32, rotated)
        assert output_error(unpack(packed), matrix, inputs.T @ inputs) < 0.1


def test_a_packed_folder_holds_what_was_rounded(embedded_model, tmp_path, sequences) -> None:
    texts = sequences(12, False)
    quantize_model(embedded_model, tmp_path / "packed", FORM, None, texts)
    read = load_weights(tmp_path / "packed", ArrayOperations())
    calibrated = CalibratedRounding(open_tensors(embedded_model), FORM, texts)
    dense = named_tensors(read)
    for name, shape in tensor_shapes(read.config).items():
        if name.startswith(("model.layers.0", "model.layers.1")) and len(shape) == 2:
            assert (dense[name] == unpack(calibrated.packed(name))).all(), name


def test_what_ends_it_leaves_nothing(embedded_model, tmp_path, sequences) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if "layers.1" in name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(embedded_model, tmp_path / "packed", FORM, interrupt, sequences(12, False))
    with pytest.raises(UsageError, match=f"^calibration: 100 tokens; .* {LEAST_TOKENS}, better"):
        quantize_model(embedded_model, tmp_path / "packed", FORM, None, [[1] * 100])
    assert list(tmp_path.iterdir()) == []
