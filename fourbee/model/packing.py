"""What a packed checkpoint format is to the loader: a frozen value that knows parts and arithmetic.

A `Packing` says which stored tensors one dense tensor is made of, and makes it. Formats: `int8.py`
(ours), `fp8.py`, `groups.py` (AWQ and GPTQ); `config.py` picks one by `quant_method`. Packing is a
matter of files: nothing computes in these formats, but for `packed_format.py`; native operations
get AWQ and GPTQ layers as packed matrices of their own kinds (`FolderTensors.repacked`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fourbee.foundation.errors import ModelFileError
from fourbee.model.tensor_file import NumpyArray

FLOATS = ("BF16", "F16", "F32")
# The matrices with a row for each token.
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
# Dense in every published format, whether or not `modules_to_not_convert` names them.
_ALWAYS_DENSE = ("model.embed_tokens", "lm_head")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Part:
    """One stored tensor: its shape, and the element types that it may have."""

    shape: tuple[int, ...]
    types: tuple[str, ...] = FLOATS
    optional: bool = False


class Packing(Protocol):
    """How the tensors of one checkpoint are stored."""

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        """The stored tensors, by name, that the dense tensor `name` of this shape is made of.

        Raises ModelFileError where the format cannot hold such a shape.
        """
        ...

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        """The dense tensor `name` of its stored parts; ModelFileError for impossible values."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config` that is read as this packing."""
        ...


@dataclass(frozen=True)
class Dense:
    """Not packed: every tensor is stored as it is, in any float type."""

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        return {name: Part(shape)}

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        return arrays[name]

    def to_json(self) -> dict[str, Any]:
        return {}


DENSE = Dense()


def is_packed(name: str, shape: tuple[int, ...], kept: tuple[str, ...]) -> bool:
    """Whether a published format packs this tensor: a layer's matrix whose module is not `kept`.

    A kept name stands for every module whose path has these parts in a row: `mlp`, `layers.0` and
    `model.layers.0.mlp.up_proj` all keep that projection; `layers.1` does not keep layer 11.
    """
    module = name.removesuffix(".weight")
    if len(shape) != 2 or module in _ALWAYS_DENSE:
        return False
    return not any(f".{parts}." in f".{module}." for parts in kept)


@dataclass(frozen=True)
class Settings:
    """The `quantization_config` of a config.json, read key by key; null is as good as absent."""

    values: Mapping[str, Any]
    source: str

    def one_of(self, key: str, allowed: tuple[Value, ...], default: Value | None = None) -> Value:
        """The value of the key, which must be one of `allowed`."""
        value = self._value(key, default)
        for option in allowed:
            # Not only equal: True is 1 and 4.0 is 4 in Python, but not in a configuration.
            if type(value) is type(option) and value == option:
                return option
        raise self.wrong(key, " or ".join(repr(option) for option in allowed))

    def absent(self, key: str) -> None:
        """Refuses a key that would make some layers unlike the others."""
        if self.values.get(key):
            raise self.wrong(key, "null: every layer packed alike")

    def group_size(self) -> int:
        """Inputs that share a scale; -1 is all of them."""
        value = self._value("group_size", None)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (value < 1 and value != -1):
            raise self.wrong("group_size", "a whole number above 0, or -1 for one group")
        return int(value)

    def block_size(self) -> tuple[int, int]:
        """Rows and columns of the blocks that share a scale."""
        value = self._value("weight_block_size", None)
        sizes = value if isinstance(value, list) and len(value) == 2 else ()
        if not sizes or not all(type(size) is int and size > 0 for size in sizes):
            raise self.wrong("weight_block_size", "two whole numbers above 0, like [128, 128]")
        return sizes[0], sizes[1]

    def kept_modules(self) -> tuple[str, ...]:
        """Names of modules that stay dense, from `modules_to_not_convert`."""
        value = self._value("modules_to_not_convert", [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong("modules_to_not_convert", "a list of module names, or null")
        return tuple(value)

    def wrong(self, key: str, expected: str) -> ModelFileError:
        """The error for a key whose value is not what it should be."""
        return ModelFileError(
            f"{self.source}: quantization_config.{key} = {self.values.get(key)!r}: "
            f"expected {expected}"
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
