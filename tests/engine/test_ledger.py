"""The ledger's bytes are those of real matrices, pools and plans; and what fits, fits."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fourbee.engine import ledger as ledger_module
from fourbee.engine.ledger import (
    KEYS,
    KV_TYPES,
    PAGE_KEYS,
    SMALL_CONTEXT,
    WEIGHTS,
    Setup,
    activation_bytes,
    kv_pages,
    ledger,
    logit_bytes,
    page_bytes,
    reserve_bytes,
    weight_bytes,
)
from fourbee.engine.model_runner import new_storage
from fourbee.foundation.errors import CapacityError, UsageError
from fourbee.kernels.backends import native_built, open_operations
from fourbee.model.config import Qwen3Config
from fourbee.model.packed_format import PackedFormat
from fourbee.model.qwen3 import forward
from fourbee.model.weights import tensor_shapes, weights_tree

GB = 1_000_000_000
SIZES_4B = {
    "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 262_144,
}  # fmt: skip
BIG = Qwen3Config(**SIZES_4B)
needs_native = pytest.mark.skipif(not native_built(), reason="native operations were not built")


def random_config(random: np.random.Generator, **more: object) -> Qwen3Config:
    """Any shape that the native operations run, with widths in multiples of 128."""
    kv_heads = int(random.integers(1, 5))
    return Qwen3Config(**{
        "vocab_size": int(random.integers(20, 300)),
        "hidden_size": 128 * int(random.integers(1, 4)),
        "intermediate_size": 128 * int(random.integers(1, 6)),
        "num_hidden_layers": int(random.integers(1, 4)),
        "num_attention_heads": kv_heads * int(random.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": bool(random.integers(2)),
        "torch_dtype": str(random.choice(["bfloat16", "float32", "float16"])),
    } | more)  # fmt: skip


def loaded(config: Qwen3Config, ops) -> dict[str, object]:
    """Tensors of zeros as the operations keep them, a tied head once."""
    return {
        name: ops.from_numpy(np.zeros(shape, np.float32), "embed" in name or "lm_head" in name)
        for name, shape in tensor_shapes(config).items()
    }


def size(array) -> int:
    return array.packed.data.nbytes if hasattr(array, "packed") else array.nbytes


# ---- bytes


@needs_native
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_matrices(quantize: str, dtype: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(6):
        config = random_config(random)
        ops = open_operations("native", "cpu", dtype, config.torch_dtype, quantize)
        found = sum(map(size, loaded(config, ops).values()))
        assert weight_bytes(Setup(config, dtype=dtype, quantize=quantize)) == found


@needs_native
def test_matrices_that_keep_their_format_count_in_it(tmp_path) -> None:
    config = random_config(np.random.default_rng(2), num_hidden_layers=2)
    dense = weight_bytes(Setup(config))
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    formats = {name: PackedFormat("int4a", 32), other: PackedFormat("int8", 64)}
    rows, columns = tensor_shapes(config)[name]
    item = 2 if config.torch_dtype == "bfloat16" else 4
    saved = rows * columns * (2 * item) - rows * columns * (5 + 8.25) / 8
    assert weight_bytes(Setup(config, formats=formats)) == dense - saved
    # Quantising makes them dense first.
    quantised = Setup(config, quantize="int4")
    assert weight_bytes(replace(quantised, formats=formats)) == weight_bytes(quantised)


def test_our_own_format_stays_whatever_is_asked_for() -> None:
    form = PackedFormat("int8", 64)
    config = random_config(np.random.default_rng(3), quantization=form)
    formats = {name: form for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    sizes = {
        weight_bytes(Setup(config, quantize=kind, formats=formats)) for kind in ("none", "int4")
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_and_numpy_have_dense_weights(dtype: str) -> None:
    config = random_config(np.random.default_rng(4), torch_dtype=dtype)
    item = 4 if dtype == "float32" else 2
    setup = Setup(config, "torch", dtype=dtype)
    assert weight_bytes(setup) == config.num_parameters * item
    assert weight_bytes(Setup(config, "numpy")) == config.num_parameters * 4
    assert page_bytes(config, setup.kept_keys) == (
        2 * 64 * config.num_hidden_layers * config.key_value_size * item
    )


@needs_native
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_pages_are_those_of_the_pool(kv_type: str) -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        config = random_config(random, head_dim=16 * int(random.integers(1, 17)))
        assert page_bytes(config, kv_type) == real_page_bytes(config, kv_type)


def real_page_bytes(config: Qwen3Config, kv_type: str) -> int:
    ops = open_operations("native", "cpu", "float32", "float32", kv_type=kv_type)
    return new_storage(config, ops, 1).page_bytes


@needs_native
@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16"])
def test_types_are_what_the_operations_choose(stored: str) -> None:
    kinds = {"f32": "float32", "bf16": "bfloat16"}
    names = product(
        ["auto", "float32", "bfloat16"], ["none", "int8", "int4"], ["auto", *KV_TYPES],
        [None, PackedFormat("int4c", 64), PackedFormat("f32")],
    )  # fmt: skip
    for dtype, quantize, kv_type, form in names:
        config = random_config(np.random.default_rng(6), torch_dtype=stored, quantization=form)
        setup = Setup(config, dtype=dtype, quantize=quantize, kv_type=kv_type)
        ops = open_operations("native", "cpu", dtype, stored, quantize, 128, config.packed, kv_type)
        assert setup.kept_keys == kinds.get(ops.kv_kind, ops.kv_kind)
        if quantize == "none" and config.packed == "none":
            assert setup.compute_type == kinds[ops.packing.layers]


def test_types_of_torch_and_numpy() -> None:
    config = random_config(np.random.default_rng(7), torch_dtype="float16")
    assert Setup(config, "torch").compute_type == "float32"
    assert Setup(config, "torch", on_gpu=True).compute_type == "float16"
    assert Setup(replace(config, torch_dtype="bfloat16"), "torch").kept_keys == "bfloat16"
    assert Setup(replace(config, torch_dtype="bfloat16"), "numpy").kept_keys == "float32"


def test_choices_are_checked() -> None:
    with pytest.raises(UsageError, match="quantize = 'int5': expected one of none, int8, int4"):
        Setup(BIG, quantize="int5")
    with pytest.raises(UsageError, match="needs the native backend, this is torch"):
        Setup(BIG, "torch", kv_type="int8")


@needs_native
def test_activations_hold_the_buffers_of_the_recorded_plan() -> None:
    from fourbee.kernels.native_plan import Recorder, _compile

    class Counted:
        """A native plan of which the buffers are added up."""

        def __init__(self) -> None:
            self.widths = {False: 0, True: 0}

        def buffer(self, width: int, kept: bool) -> int:
            self.widths[kept] += width
            return sum(self.widths.values())

        def __getattr__(self, name: str):
            return lambda *arguments: None

    random = np.random.default_rng(8)
    for _ in range(20):
        config = random_config(random, num_hidden_layers=3)
        ops = open_operations("native", "cpu", "float32", "float32")
        weights = weights_tree(config, loaded(config, ops))
        recorder, row = Recorder(), np.zeros(1, np.int64)
        result = forward(weights, row, row, recorder.attention, recorder, rows=row).final
        counted = Counted()
        _compile(tuple(recorder.instructions), result, counted)
        setup = Setup(config, dtype="float32", max_step_tokens=100, max_running=7)
        buffers = 4 * (100 * counted.widths[False] + 7 * counted.widths[True])
        # Beside the plan's own: both halves of the MLP, and inputs of the widest product.
        columns = max(config.hidden_size, config.intermediate_size, config.query_size)
        scratch = 4 * 100 * (2 * config.intermediate_size + columns)
        found = activation_bytes(setup, 1)
        # Where two widths happen to be the same the plan has a buffer less.
        spared = 4 * 100 * (config.hidden_size + config.query_size + 2 * config.key_value_size)
        assert buffers + scratch <= found <= buffers + scratch + spared + 7 * 8 * config.query_size


def test_entries_add_up() -> None:
    setup = Setup(BIG, quantize="int4")
    found = ledger(setup, 1000)
    assert found.total == sum(entry.bytes for entry in found.entries)
    assert found.bytes_of(KEYS) == 16 * page_bytes(BIG, "int8")
    assert found.bytes_of(WEIGHTS) == weight_bytes(setup)
    assert found.bytes_of("logits") == logit_bytes(setup) == 2 * 16 * 151_936 * 4
    names = [entry.name for entry in ledger(Setup(BIG, "torch", on_gpu=True), 0).entries]
    assert names == [WEIGHTS, KEYS, "activations", "logits", "CUDA"]
    more = ledger(Setup(BIG, "torch"), 0).bytes_of("program")
    assert more == found.bytes_of("program") + ledger_module.TORCH_BYTES


# ---- what fits


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_what_fits_is_within_the_memory_and_a_page_more_is_not(kv_type: str) -> None:
    random = np.random.default_rng(9)
    setup = Setup(BIG, quantize="int4", kv_type=kv_type)
    page = page_bytes(BIG, kv_type)
    for memory in (int(random.integers(4 * GB, 30 * GB)) for _ in range(30)):
        fitted = kv_pages(setup, memory)
        free = memory - fitted.reserve - fitted.ledger.total
        assert free >= 0 and fitted.reserve == reserve_bytes(memory)
        assert fitted.context_length <= fitted.pages * PAGE_KEYS
        if fitted.context_length < 262_144:
            # The next context that is a multiple of 1,024 would not.
            assert free < 16 * page and fitted.context_length % 1024 == 0
            assert fitted.pages * PAGE_KEYS == fitted.context_length
        else:
            assert free < page or fitted.pages == 16 * 262_144 // PAGE_KEYS


def test_without_a_named_memory_the_pool_takes_half_of_what_is_left(monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "usable_bytes", lambda: 16 * GB)
    setup = Setup(BIG, quantize="int4")
    whole, half = kv_pages(setup, 16 * GB), kv_pages(setup)
    assert abs(whole.pages / half.pages - 2) < 0.001
    # A context that was asked for may have more.
    asked = kv_pages(setup, max_context=half.context_length + 10_000)
    assert asked.context_length == half.context_length + 10_000 and not asked.others


def test_attention_may_reach_beyond_the_model() -> None:
    short = Setup(replace(BIG, max_position_embeddings=2048), quantize="int4")
    fitted = kv_pages(replace(short, longest=8192), 24 * GB)
    assert fitted.context_length == fitted.limit == 8192
    assert kv_pages(replace(short, longest=8192), 24 * GB, 4096).context_length == 4096


def test_a_limit_that_fits_is_kept_exactly() -> None:
    setup = Setup(BIG, quantize="int4")
    for limit in (1, 63, 100, 1023, 1025, 5000, 40_961):
        fitted = kv_pages(setup, 24 * GB, limit)
        assert fitted.context_length == fitted.limit == limit and not fitted.others
    short = Setup(replace(BIG, max_position_embeddings=2048), quantize="int4")
    fitted = kv_pages(short, 24 * GB, 9999)
    assert fitted.context_length == fitted.limit == 2048
    # As many as all that run can use, and no more.
    assert fitted.pages == 16 * 2048 // PAGE_KEYS


def test_what_does_not_fit_is_fitted_and_never_refused() -> None:
    fitted = kv_pages(Setup(BIG, quantize="int4"), 5 * GB)
    assert SMALL_CONTEXT <= fitted.context_length < fitted.limit == 262_144
    kind, more = fitted.others[0]
    assert kind == "int4" and 1.8 < more / fitted.context_length < 1.9
    assert fitted.sentence == (
        f"context of {fitted.context_length:,} tokens (of 262,144): "
        f"{fitted.ledger.bytes_of(KEYS) / GB:.1f} GB of keys and values in int8; "
        f"--kv-type int4 would fit {more:,}"
    )


def test_the_sentence_says_what_is_beyond_one_context() -> None:
    fitted = kv_pages(Setup(BIG, quantize="int4"), 24 * GB, 40_960)
    assert fitted.sentence == (
        f"context of 40,960 tokens: {fitted.ledger.bytes_of(KEYS) / GB:.1f} GB of keys and values "
        f"in int8, room for {fitted.pages * PAGE_KEYS:,} tokens in all"
    )


def test_other_types_are_told_up_to_one_that_fits_all() -> None:
    fitted = kv_pages(Setup(replace(BIG, max_position_embeddings=65_536)), 16 * GB)
    assert [kind for kind, _ in fitted.others] == ["int8"]
    assert fitted.others[0][1] == 65_536 > fitted.context_length
    assert kv_pages(Setup(BIG, quantize="int4", kv_type="int4"), 5 * GB).others == ()
    assert kv_pages(Setup(BIG, "torch", on_gpu=True), 12 * GB).others == ()


def test_less_than_a_small_context_is_one_line_with_the_numbers() -> None:
    with pytest.raises(CapacityError) as told:
        kv_pages(Setup(BIG), 5 * GB)
    assert re.fullmatch(
        r"not enough memory: a context of 1,024 tokens needs 8\.5 GB \(weights 8\.0 GB, keys and "
        r"values 151\.0 MB, the rest \d+\.\d MB\) and 512\.0 MB are kept free, but 5\.0 GB may be "
        r"used; try --quantize int4", str(told.value),
    )  # fmt: skip
    with pytest.raises(CapacityError, match=r"but 0 B may be used; try a smaller model"):
        kv_pages(Setup(BIG, quantize="int4"), 0)


def test_the_least_memory_for_a_small_context() -> None:
    setup = Setup(BIG, quantize="int4")
    need = ledger(setup, SMALL_CONTEXT, 262_144).total
    memory = need + 512_000_000
    assert kv_pages(setup, memory).context_length == SMALL_CONTEXT
    with pytest.raises(CapacityError):
        kv_pages(setup, memory - 1_000)
    with pytest.raises(CapacityError, match="--kv-type int4"):
        kv_pages(setup, memory - 10_000_000)


def test_the_reserve() -> None:
    assert reserve_bytes(24 * GB) == 2.4 * GB
    assert reserve_bytes(4 * GB) == 512_000_000
    # The embedded model still runs in a container of half a gigabyte.
    assert reserve_bytes(512_000_000) == 128_000_000
