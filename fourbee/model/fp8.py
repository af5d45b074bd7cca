"""The packed checkpoint format `fp8`: e4m3 matrices with a scale for each block, as Qwen publishes.

`X.weight` `[N, K]` is float8, `X.weight_scale_inv` `[ceil(N / 128), ceil(K / 128)]` what a block is
multiplied by, its name notwithstanding. Read only, into dense weights; `activation_scheme` speaks
of computing in float8, which we do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourbee.kernels.operations import FloatArray
from fourbee.model.packing import Part, Settings, is_packed
from fourbee.model.tensor_file import NumpyArray

METHOD = "fp8"
_SCALE = "_scale_inv"


@dataclass(frozen=True)
class Fp8Packing:
    """Rows and columns of a block, and the modules that stay dense."""

    block: tuple[int, int]
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, settings: Settings) -> Fp8Packing:
        """ModelFileError for what is not block-wise e4m3."""
        settings.one_of("fmt", ("e4m3",), "e4m3")  # transformers leaves it out
        settings.one_of("activation_scheme", ("dynamic",), "dynamic")
        return cls(settings.block_size(), settings.kept_modules())

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        if not is_packed(name, shape, self.kept):
            return {name: Part(shape)}
        # Blocks at the lower and right edge may be cut.
        blocks = tuple(-(-size // step) for size, step in zip(shape, self.block, strict=True))
        return {name: Part(shape, ("F8_E4M3",)), name + _SCALE: Part(blocks)}

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        if name + _SCALE not in arrays:
            return arrays[name]
        return unpack_blocks(arrays[name], arrays[name + _SCALE], self.block)

    def to_json(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
            "modules_to_not_convert": list(self.kept),
        }


def unpack_blocks(values: NumpyArray, scales: NumpyArray, block: tuple[int, int]) -> FloatArray:
    """The float32 matrix `[N, K]` of float8 values and one scale for each block."""
    rows, columns = block
    dense: FloatArray = values.astype(np.float32)
    for index, row_of_scales in enumerate(scales.astype(np.float32)):
        factors = np.repeat(row_of_scales, columns)[: dense.shape[1]]
        dense[index * rows : (index + 1) * rows] *= factors
    return dense
