"""A dense Qwen3 in a GGUF file: its configuration and its weights, under a checkpoint's names.

Quantised matrices are packed for operations that compute with such (`gguf_packed.py`), and become
dense for others: memory is that of a dense model then. llama.cpp keeps
Qwen3's query and key rows in Hugging Face's order (its rotary positions turn halves, NeoX's way),
so nothing is permuted. As strict as `checkpoint_files.py`. Not here: the tokenizer
(`text/gguf_vocabulary.py`) and files in parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fourbee.foundation.errors import ModelFileError
from fourbee.kernels.operations import Array, Operations, PackedOperations
from fourbee.kernels.packed import PackedMatrix
from fourbee.model import checkpoint_files
from fourbee.model.checkpoint_files import kept, refuse_other_tensors, tell_dense
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_file import GgufFile, is_gguf, read_gguf
from fourbee.model.gguf_packed import packed_matrix
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.tensor_file import NumpyArray
from fourbee.model.weights import largest_first, tensor_shapes, weights_tree

ARCHITECTURE = "qwen3"
_WHOLE: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}
_FRACTIONS: Mapping[str, str] = {
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Keys that must be absent or have this value: anything else is another network.
_FIXED: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "rope.scale_linear": 1.0,
}
_SAMPLING: Mapping[str, str] = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
}
_SCALING = "rope.scaling."
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# Names in a checkpoint and in the file; those of a layer follow `model.layers.N.` and `blk.N.`.
_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_COMPUTE_TYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_config(file: GgufFile) -> Qwen3Config:
    """From the metadata and the embedding's shape; every number must be there, none is guessed."""
    _refuse_other_networks(file)
    values: dict[str, Any] = {name: _whole(file, key) for name, key in _WHOLE.items()}
    values |= {name: _fraction(file, key) for name, key in _FRACTIONS.items()}
    _refuse_other_heads(file, values["head_dim"])
    # Before as many names are made.
    if values["num_hidden_layers"] > len(file.tensors):
        raise ModelFileError(
            f"{file.path}: qwen3.block_count = {values['num_hidden_layers']}: more layers than "
            f"tensors ({len(file.tensors)})"
        )
    embedding = file.tensors.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        found = "missing" if embedding is None else list(embedding.shape)
        raise ModelFileError(
            f"{file.path}: {_EMBEDDING} is {found}, expected a matrix of one row a token"
        )
    try:
        return Qwen3Config(
            vocab_size=embedding.shape[0],
            tie_word_embeddings=_HEAD not in file.tensors,
            torch_dtype=_compute_type(file),
            **values,
        )
    except ModelFileError as error:  # numbers that do not fit together
        raise ModelFileError(str(error).replace("config.json", str(file.path), 1)) from None


def check_weights(file: GgufFile) -> None:
    """What `load_weights` checks; reads no tensor. Raises ModelFileError."""
    _check_tensors(file, read_config(file))


def load_weights(file: GgufFile, ops: Operations) -> Qwen3Weights:
    """The weights: quantised matrices packed where `ops` compute with such, else of their type.

    Streamed tensor by tensor, the largest first, as `checkpoint_files.load_weights` does.
    """
    tensors = open_tensors(file)
    arrays: dict[str, Array] = {}
    made_dense: list[str] = []
    takes_packed = ops if isinstance(ops, PackedOperations) and ops.keeps_formats else None
    for name in largest_first(tensors.config):
        quantised = takes_packed and tensors.is_quantised(name)
        matrix = tensors.packed(name) if quantised else None
        made_dense += [name] if quantised and matrix is None else []
        if takes_packed and matrix:
            arrays[name] = takes_packed.from_packed(matrix)
        else:
            arrays[name] = kept(ops, file.path, name, tensors.dense(name))
    tell_dense(file.path, made_dense)
    return weights_tree(tensors.config, arrays)


class ModelTensors(Protocol):
    """A model's tensors by their names in a checkpoint, whatever holds them."""

    @property
    def config(self) -> Qwen3Config: ...

    def dense(self, name: str) -> NumpyArray: ...


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of a file, checked but not yet read."""

    file: GgufFile
    config: Qwen3Config

    def dense(self, name: str) -> NumpyArray:
        """One tensor of the network, by its name in a checkpoint."""
        return self.file.tensors[name_in_file(name)].read()

    def packed(self, name: str) -> PackedMatrix | None:
        """A quantised matrix as the kernels read it; None where it must be dense."""
        return packed_matrix(self.file.tensors[name_in_file(name)])

    def is_quantised(self, name: str) -> bool:
        tensor = self.file.tensors[name_in_file(name)]
        return len(tensor.shape) == 2 and tensor.type.record is not None


def open_tensors(file: GgufFile) -> GgufTensors:
    """Checks what `check_weights` checks."""
    config = read_config(file)
    _check_tensors(file, config)
    return GgufTensors(file, config)


def open_source(source: Path) -> ModelTensors:
    """The tensors of a checkpoint folder or a GGUF file, checked as either is."""
    if is_gguf(source):
        return open_tensors(read_gguf(source))
    return checkpoint_files.open_tensors(source)


def config_metadata(config: Qwen3Config) -> dict[str, Any]:
    """What `read_config` reads, and llama.cpp: the numbers of a configuration, by their keys."""
    values: dict[str, Any] = {key: getattr(config, name) for name, key in _WHOLE.items()}
    values |= {key: float(getattr(config, name)) for name, key in _FRACTIONS.items()}
    values |= {"attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim}
    values["vocab_size"] = config.vocab_size
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def sampling_metadata(recommended: Mapping[str, int | float]) -> dict[str, int | float]:
    """What `recommended_sampling` reads, of values by the names that requests use."""
    return {
        f"general.sampling.{_SAMPLING[name]}": int(value) if name == "top_k" else float(value)
        for name, value in recommended.items()
    }


def recommended_sampling(file: GgufFile) -> dict[str, int | float | None]:
    """What newer files recommend, by the names that requests use; None where they are silent."""
    found: dict[str, int | float | None] = {}
    for name, key in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is not None and type(value) not in (int, float):
            raise ModelFileError(
                f"{file.path}: general.sampling.{key} = {_shown(value)}: expected a number"
            )
        found[name] = value
    return found


def name_in_file(name: str) -> str:
    """The name in a GGUF file of a tensor that a checkpoint names like this."""
    stem = name.removesuffix(".weight")
    prefix = ""
    if stem.startswith("model.layers."):
        layer, stem = stem.removeprefix("model.layers.").split(".", 1)
        prefix = f"blk.{layer}."
    return f"{prefix}{_NAMES[stem]}.weight"


def _check_tensors(file: GgufFile, config: Qwen3Config) -> None:
    expected = {name_in_file(name): shape for name, shape in tensor_shapes(config).items()}
    found = {name: tensor.shape for name, tensor in file.tensors.items()}
    refuse_other_tensors(file.path, expected, found)


def _refuse_other_networks(file: GgufFile) -> None:
    metadata = file.metadata
    parts = metadata.get("split.count", 0)
    if type(parts) is not int or parts > 1:
        raise ModelFileError(
            f"{file.path}: one of several parts; join them with `llama-gguf-split --merge`"
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != ARCHITECTURE:
        raise ModelFileError(
            f"{file.path}: general.architecture = {_shown(architecture)}: expected 'qwen3'"
        )
    for name, expected in _FIXED.items():
        value = metadata.get(f"qwen3.{name}", expected)
        if type(value) not in (bool, int, float) or value != expected:
            raise ModelFileError(
                f"{file.path}: qwen3.{name} = {_shown(value)}: expected {expected!r}"
            )
    scaled = [key for key in metadata if key.startswith(f"qwen3.{_SCALING}")]
    kind = metadata.get(f"qwen3.{_SCALING}type")
    if scaled and not (isinstance(kind, str) and kind == "none"):
        raise ModelFileError(
            f"{file.path}: {scaled[0]} = {_shown(metadata[scaled[0]])}: expected no rope scaling "
            "(plain RoPE)"
        )


def _refuse_other_heads(file: GgufFile, head_dim: int) -> None:
    """Values as wide as keys, and all of a head rotated."""
    for name in ("attention.value_length", "rope.dimension_count"):
        if name.startswith("rope") and f"qwen3.{name}" not in file.metadata:
            continue
        size = _whole(file, name)
        if size != head_dim:
            raise ModelFileError(
                f"{file.path}: qwen3.{name} = {size}: expected "
                f"qwen3.attention.key_length = {head_dim}"
            )


def _compute_type(file: GgufFile) -> str:
    """The type that all matrices have; bfloat16, Qwen3's own, where they are quantised."""
    kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    return _COMPUTE_TYPES.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _whole(file: GgufFile, name: str) -> int:
    value = _required(file, name)
    if type(value) is not int or value < 1:
        raise ModelFileError(
            f"{file.path}: qwen3.{name} = {_shown(value)}: expected a whole number of at least 1"
        )
    return int(value)


def _fraction(file: GgufFile, name: str) -> float:
    value = _required(file, name)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ModelFileError(
            f"{file.path}: qwen3.{name} = {_shown(value)}: expected a number of more than 0"
        )
    return float(value)


def _required(file: GgufFile, name: str) -> Any:
    try:
        return file.metadata[f"qwen3.{name}"]
    except KeyError:
        raise ModelFileError(f"{file.path}: missing key 'qwen3.{name}'") from None


def _shown(value: Any) -> str:
    """A metadata value as an error line shows it: short."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    return f"an array of {len(value)}"
