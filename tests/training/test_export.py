"""What is trained is what transformers computes and what is served: one model, three readers."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fourbee.engine.llm import LLM
from fourbee.foundation.errors import ModelFileError, TrainingError, UsageError
from fourbee.kernels.backends import native_built, open_operations
from fourbee.kernels.paged_cache import own_cache
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.model.checkpoint_files import load_weights
from fourbee.model.config import Qwen3Config
from fourbee.model.qwen3 import forward
from fourbee.training import lora
from fourbee.training.export import export_model, initial_weights
from fourbee.training.learner import Learner
from fourbee.training.lora import LoraSettings, save_adapter
from fourbee.training.network import TrainableQwen3
from fourbee.training.operations import TrainingOperations
from fourbee.training.recipe import Positions, TrainRecipe

# Heads of 128 and widths of as much, as the native kernels have them.
CONFIG = Qwen3Config(
    vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=128, max_position_embeddings=256,
    initializer_range=0.3, torch_dtype="float32",
)  # fmt: skip
LORA = LoraSettings(4, 8.0)
IDS = np.random.default_rng(0).integers(0, 320, 40)
PROMPT = "say red 3 times"
BACKENDS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(not native_built(), reason="kernels were not built")
    ),
    "torch",
    "numpy",
]
# The others have no choice: keys and values are in the compute type.
KV_TYPE = {"native": "float32", "torch": "auto", "numpy": "auto"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(settings: LoraSettings | None, config: Qwen3Config = CONFIG) -> TrainableQwen3:
    """A network whose every parameter has moved."""
    model = TrainableQwen3(config, 3, settings)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for one in model.trained_tensors().values():
            one.add_(torch.empty_like(one).normal_(0, 0.05, generator=generator))
    return model


@pytest.fixture
def start(tmp_path: Path, tokenizer_folder: Path) -> TrainRecipe:
    return TrainRecipe(output=tmp_path / "run", tokenizer=tokenizer_folder)


@pytest.fixture(params=[None, LORA], ids=["whole", "adapter"])
def exported(request, start, tmp_path) -> tuple[TrainableQwen3, Path]:
    model = trained(request.param)
    export_model(tmp_path / "model", model, start)
    return model, tmp_path / "model"


def trainers_logits(model: TrainableQwen3) -> np.ndarray:
    ops = TrainingOperations("cpu", torch.float32)
    with torch.no_grad():
        positions = torch.arange(len(IDS))
        hidden = model(torch.from_numpy(IDS), positions, DocumentAttention([len(IDS)]), ops)
        return ops.linear(hidden, model.head()).numpy()


def their_model(folder: Path) -> transformers.Qwen3ForCausalLM:
    return transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype="auto").eval()


def their_logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return their_model(folder)(torch.from_numpy(IDS)[None]).logits[0].float().numpy()


def engines_logits(folder: Path, backend: str) -> np.ndarray:
    """Of the operations that serve, through their cache, in two chunks."""
    ops = open_operations(
        backend, "cpu", "float32", kv_type="float32" if backend == "native" else "auto"
    )
    weights, config = load_weights(folder, ops), CONFIG
    cache = own_cache(ops, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    rows = []
    with torch.no_grad():
        for chunk in (slice(0, 16), slice(16, len(IDS))):
            attention = ops.cached_attention([(cache, chunk.stop - chunk.start)])
            positions = np.arange(chunk.start, chunk.stop)
            hidden = forward(weights, IDS[chunk], positions, attention, ops).final
            rows.append(ops.to_numpy(ops.linear(hidden, weights.head)))
    return np.concatenate(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_trained_exported_and_served_are_the_same_network(exported, backend):
    model, folder = exported
    expected = trainers_logits(model)
    assert expected.std() > 1  # not degenerate
    found = {"transformers": their_logits(folder), backend: engines_logits(folder, backend)}
    for name, logits in found.items():
        difference = np.abs(logits - expected).max()
        print(f"{name}: largest difference {difference:.1e} of deviation {expected.std():.1f}")
        assert difference <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_served_text_is_that_of_transformers(exported, backend):
    _, folder = exported
    llm = LLM.load(
        folder, "cpu", "float32", backend=backend, kv_type=KV_TYPE[backend], max_context=256
    )
    params = replace(llm.defaults.params, temperature=0, max_tokens=24, ignore_eos=True)
    ids = torch.tensor([llm.tokenizer.encode(PROMPT, control_tokens=False)])
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=24, min_new_tokens=24, pad_token_id=0
    )
    theirs = their_model(folder).generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )
    answer = theirs[0, ids.shape[1] :].tolist()
    assert len(set(answer)) > 3
    text = llm.tokenizer.decode(answer, skip_control_tokens=True)
    assert llm.generate([PROMPT], params)[0].text == text


def test_an_export_is_a_start(exported):
    model, folder = exported
    again = TrainableQwen3(CONFIG, seed=9)
    initial_weights(again, folder)
    merged = model.merged_tensors()
    assert all(torch.equal(merged[name], one) for name, one in again.named_tensors().items())


def test_an_export_in_bfloat16_is_the_same_rounded(start, tmp_path):
    for settings in (None, LORA):
        model, folder = trained(settings), tmp_path / "model"
        export_model(folder, model, replace(start, export_type="bfloat16"))
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
        stored = load_file(folder / "model.safetensors")
        for name, one in model.merged_tensors().items():
            assert torch.equal(stored[name], one.bfloat16())
        expected, found = trainers_logits(model), their_logits(folder)
        assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


@pytest.mark.parametrize(
    ("export_type", "value"), [("float32", "nan"), ("float32", "inf"), ("float16", "1e5")]
)
def test_weights_that_are_not_finite_are_not_exported(start, tmp_path, export_type, value):
    model = trained(None)
    with torch.no_grad():
        model.named_tensors()["model.norm.weight"][1] = float(value)
    with pytest.raises(TrainingError) as error:
        export_model(tmp_path / "model", model, replace(start, export_type=export_type))
    assert str(error.value) == (
        f"export_type = {export_type}: model.norm.weight holds NaN or infinity; expected a type "
        "that holds the weights, or a lower optimizer.learning_rate, in another output"
    )
    assert not (tmp_path / "model").exists()


def test_the_tokenizer_goes_with_an_export(start, tokenizer_folder, tmp_path):
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "own"))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    export_model(tmp_path / "model", trained(None), replace(start, tokenizer=folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes()


def test_an_adapter_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lora, "save_file", full)
    with pytest.raises(ModelFileError, match=r"cannot be written: .*No space left on device"):
        save_adapter(tmp_path, trained(LORA).adapter_tensors(), LORA, None)


# ---- other positions


def test_other_positions_hold_from_the_start_and_are_written(start, tmp_path):
    export_model(tmp_path / "base", trained(None), start)
    positions = Positions(rope_theta=5e6, max_position_embeddings=1024)
    longer = replace(start, init_from=tmp_path / "base", positions=positions)
    model = Learner.from_recipe(longer).model
    assert (model.config.rope_theta, model.config.max_position_embeddings) == (5e6, 1024)
    export_model(tmp_path / "longer", model, longer)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "longer")
    assert theirs.rope_parameters["rope_theta"] == 5e6
    assert theirs.max_position_embeddings == 1024
    before, found = trainers_logits(trained(None)), trainers_logits(model)
    assert np.abs(their_logits(tmp_path / "longer") - found).max() <= 1e-4
    assert np.abs(before - found).max() > 0.1  # the same weights, turned otherwise


def test_positions_out_of_range_or_without_a_model_are_one_line(start):
    with pytest.raises(UsageError, match=r"positions.rope_theta = -1: expected at least 1"):
        Positions(rope_theta=-1)
    with pytest.raises(UsageError, match="positions without init_from: expected them in"):
        replace(start, positions=Positions(rope_theta=5e6))
