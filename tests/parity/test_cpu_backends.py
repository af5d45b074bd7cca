"""The native and the NumPy backend against transformers, and native results bit for bit."""

import subprocess
import sys

import numpy as np
import pytest

from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.paged_cache import own_caches
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.checkpoint_files import load_weights, save_weights
from fourbee.model.quantize import FORMATS, quantize_model
from fourbee.model.qwen3 import forward
from fourbee.model.weights import weights_tree

from .conftest import tensors_of, theirs
from .test_transformers import (
    QUICK,
    SMALL,
    greedy,
    new_cache,
    random_ids,
    sized,
    their_greedy,
    their_logits,
)

needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


def loaded(model, config, backend: str, dtype: str = "auto"):
    ops = open_operations(backend, "cpu", dtype, "float32")
    arrays = {name: ops.from_numpy(tensor.numpy()) for name, tensor in tensors_of(model).items()}
    return weights_tree(config, arrays), ops


def hidden_rows(weights, ops, ids, counts) -> np.ndarray:
    """Final states of a sequence that is read in chunks of `counts` rows."""
    cache, start, rows = new_cache(weights.config, ops), 0, []
    for count in counts:
        positions = np.arange(start, start + count)
        attention = ops.cached_attention([(cache, count)])
        chunk = ids[start : start + count]
        rows.append(forward(weights, chunk, positions, attention, ops).final)
        start += count
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("backend", "name", "tokens"),
    [
        pytest.param("native", "0.6B", 64, marks=needs_native),
        pytest.param("native", "4B", 0, marks=needs_native),
        pytest.param("native", "untied", 64, marks=needs_native),
        ("numpy", "0.6B", 16),
    ],
)
def test_logits_and_greedy_tokens_are_those_of_transformers(backend, name, tokens) -> None:
    config = sized(name, QUICK)
    model = theirs(config)
    weights, ops = loaded(model, config, backend)
    ids = random_ids(config, 48)
    expected = their_logits(model, ids).numpy()
    logits = ops.linear(hidden_rows(weights, ops, ids, [16, 32]), weights.head)
    difference = np.abs(logits - expected).max()
    print(f"{backend} {name}: largest difference {difference:.1e}")
    assert difference <= 1e-4
    if tokens:
        assert greedy(weights, ops, ids, tokens) == their_greedy(model, ids, tokens)


@needs_native
def test_bfloat16_weights_stay_near_float32() -> None:
    model = theirs(SMALL)
    exact, rounded = (loaded(model, SMALL, "native", dtype) for dtype in ("float32", "bfloat16"))
    ids = random_ids(SMALL, 40)
    a, b = (hidden_rows(*one, ids, [40]) for one in (exact, rounded))
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.02


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rows_bits_depend_on_its_own_tokens_alone(dtype) -> None:
    model = theirs(SMALL)
    weights, ops = loaded(model, SMALL, "native", dtype)
    ids = random_ids(SMALL, 600)
    whole = hidden_rows(weights, ops, ids, [600])
    for counts in ([1] * 20 + [580], [250, 350], [599, 1]):
        assert hidden_rows(weights, ops, ids, counts).tobytes() == whole.tobytes()
    # Beside another sequence, in one step.
    heads, size = SMALL.num_key_value_heads, SMALL.head_dim
    caches = own_caches(ops, SMALL.num_hidden_layers, heads, size, [77, 130])
    attention = ops.cached_attention([(caches[0], 77), (caches[1], 130)])
    both = forward(
        weights,
        np.concatenate([ids[300:377], ids[:130]]),
        np.concatenate([np.arange(77), np.arange(130)]),
        attention,
        ops,
    )
    assert both.final[77:].tobytes() == whole[:130].tobytes()


@needs_native
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_packed_folder_is_computed_with_as_it_lies_on_the_disk(tmp_path, name) -> None:
    model = theirs(SMALL)
    source = tmp_path / "dense"
    save_weights(source, weights_tree(SMALL, tensors_of(model)), TorchOperations())
    quantize_model(source, tmp_path / "packed", FORMATS[name])
    ids, rows = random_ids(SMALL, 40), []
    for backend in ("native", "numpy"):  # NumPy has the same weights, made dense
        ops = open_operations(backend, "cpu")
        rows.append(hidden_rows(load_weights(tmp_path / "packed", ops), ops, ids, [40]))
    assert np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[1]) < 0.05


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_nothing_of_serving_needs_torch(backend: str) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from fourbee.cli import run\n"
        f"words = ['generate', 'hello', '--temperature', '0', '--backend', {backend!r}]\n"
        "sys.exit(run(words))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello")
