"""Qwen3Config: the shape of one dense Qwen3 model, read from and written to config.json.

Not here: sampling defaults (generation_config.json belongs to the tokenizer's folder and the
engine). A field whose value would change the network and that is not implemented is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import ModelFileError
from fourbee.foundation.json_files import read_json_object
from fourbee.model import fp8, groups, int8, packed_format
from fourbee.model.packing import Packing, Settings

# Fields that must be absent or have one of these values: anything else is another network.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
}
# Fields that a checkpoint may leave out: they do not change what the network computes.
_OPTIONAL = ("initializer_range", "torch_dtype", "quantization")
# What a field's value must be, by the field's annotation: Python's types, and in words.
_FORMS: Mapping[str, tuple[tuple[type[Any], ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
}
# The packed formats that are read, by `quant_method`.
_PACKINGS: Mapping[str, Callable[[Settings], Packing]] = {
    fp8.METHOD: fp8.Fp8Packing.parse,
    groups.AWQ: groups.AwqPacking.parse,
    groups.GPTQ: groups.GptqPacking.parse,
    packed_format.METHOD: packed_format.PackedFormat.parse,
    int8.METHOD: lambda settings: int8.INT8,
}


@dataclass(frozen=True)
class Qwen3Config:
    """The numbers that fix a dense Qwen3 network; names as in the checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    torch_dtype: str = "bfloat16"
    # How the files are packed, if they are; weights in memory never are.
    quantization: Packing | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and not 0 < value < math.inf:
                raise ModelFileError(f"config.json: {field.name} = {value}: expected more than 0")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFileError(
                f"config.json: num_attention_heads = {self.num_attention_heads}: expected a "
                f"multiple of num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ModelFileError(
                f"config.json: head_dim = {self.head_dim}: expected an even number"
            )

    @property
    def query_size(self) -> int:
        """Width of all query heads together; not the hidden width in Qwen3."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole network; a tied head counts once."""
        layer = (
            self.hidden_size * (2 * self.query_size + 2 * self.key_value_size)
            + 3 * self.hidden_size * self.intermediate_size
            + 2 * self.hidden_size
            + 2 * self.head_dim
        )
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    @property
    def packed(self) -> str:
        """What a `fourbee-packed` checkpoint's layers are in, "int8" or "int4"; else "none"."""
        form = self.quantization
        kind = form.kind if isinstance(form, packed_format.PackedFormat) else None
        return "int4" if kind == "int4c" else kind if kind in ("int8", "int4") else "none"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "config.json") -> Qwen3Config:
        """From the parsed config.json; ModelFileError for what is missing, mistyped or not ours.

        Every field that the network depends on must be there: defaults are not guessed.
        """
        _refuse_other_networks(values, source)
        given = dict(values) | {
            "rope_theta": _rope_theta(values, source),
            "torch_dtype": values.get("torch_dtype") or values.get("dtype"),
        }
        given.pop("quantization", None)  # not a key of config.json
        known: dict[str, Any] = {"quantization": _quantization(values, source)}
        for field in dataclasses.fields(cls):
            value = given.get(field.name)
            if value is not None:
                known[field.name] = _typed(str(field.type), field.name, value, source)
            elif field.name not in _OPTIONAL:
                raise ModelFileError(f"{source}: missing key {field.name!r}")
        return cls(**known)

    @classmethod
    def load(cls, folder: Path) -> Qwen3Config:
        """From `folder`/config.json."""
        path = folder / "config.json"
        try:
            values = read_json_object(path)
        except FileNotFoundError:
            raise ModelFileError(f"{folder}: no config.json; expected a Qwen3 folder") from None
        return cls.from_json(values, str(path))

    def to_json(self) -> dict[str, Any]:
        """The config.json that transformers and `load` read."""
        values = dataclasses.asdict(self) | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "rope_scaling": None,
            "sliding_window": None,
            "use_sliding_window": False,
            "use_cache": True,
        }
        del values["quantization"]
        if self.quantization is not None:
            values["quantization_config"] = self.quantization.to_json()
        return values


def _refuse_other_networks(values: Mapping[str, Any], source: str) -> None:
    model_type = values.get("model_type")
    if model_type != "qwen3":
        raise ModelFileError(f"{source}: model_type = {model_type!r}: expected 'qwen3'")
    architectures = values.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if str(name).endswith("ForSequenceClassification"):
            raise ModelFileError(
                f"{source}: architectures = {name!r}: a reward model, which scores texts and "
                "writes none; expected 'Qwen3ForCausalLM'"
            )
    for key, allowed in _FIXED.items():
        if key in values and values[key] not in allowed:
            raise ModelFileError(f"{source}: {key} = {values[key]!r}: expected {allowed[0]!r}")
    for kind in values.get("layer_types") or ():
        if kind != "full_attention":
            raise ModelFileError(f"{source}: layer_types has {kind!r}: expected 'full_attention'")


def _rope_theta(values: Mapping[str, Any], source: str) -> Any:
    """Theta from either place that transformers has kept it; refuses scaled rotary positions."""
    scaling = _table(values, "rope_scaling", source) or _table(values, "rope_parameters", source)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ModelFileError(f"{source}: rope_scaling type {kind!r}: expected null (plain RoPE)")
    return values.get("rope_theta", scaling.get("rope_theta"))


def _quantization(values: Mapping[str, Any], source: str) -> Packing | None:
    settings = Settings(_table(values, "quantization_config", source), source)
    if not settings.values:
        return None
    method = settings.values.get("quant_method")
    if not isinstance(method, str) or method not in _PACKINGS:
        known = ", ".join(map(repr, _PACKINGS))
        raise settings.wrong("quant_method", f"one of {known}, or no quantization_config")
    return _PACKINGS[method](settings)


def _table(values: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    table = values.get(key) or {}
    if not isinstance(table, Mapping):
        raise ModelFileError(f"{source}: {key} = {table!r}: expected an object or null")
    return table


def _typed(type_name: str, key: str, value: Any, source: str) -> Any:
    expected, form = _FORMS[type_name]
    if not isinstance(value, expected) or (isinstance(value, bool) and type_name != "bool"):
        raise ModelFileError(f"{source}: {key} = {value!r}: expected {form}")
    try:
        return float(value) if type_name == "float" else value
    except OverflowError:
        raise ModelFileError(f"{source}: {key} = {value!r}: expected {form}") from None
