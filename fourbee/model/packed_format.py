"""The checkpoint format `fourbee-packed`: matrices byte for byte as the native kernels read them.

A matrix is stored as uint8 `[blocks, block_bytes]` under its own name (`kernels/packed.py` has the
layout), a vector as float32. Operations that compute with packed matrices get a map of the file;
others dense weights. Made by `quantize.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.kernels.packed import (
    BLOCK_ROWS,
    GROUPS,
    Kind,
    PackedMatrix,
    block_bytes,
    check_columns,
)
from fourbee.model.packing import TABLES, Part, Settings
from fourbee.model.tensor_file import NumpyArray

METHOD = "fourbee-packed"
VERSION = 1
_KINDS: tuple[Kind, ...] = ("f32", "bf16", "int8", "int4", "int4c")
Rounding = Literal["plain", "search", "gptq"]
_METHODS: tuple[Rounding, ...] = ("plain", "search", "gptq")


@dataclass(frozen=True)
class PackedFormat:
    """How every matrix of a checkpoint is packed; embedding and head as `tables`, if it says."""

    kind: Kind
    group: int = 0
    rotated: bool = False
    method: Rounding = "plain"
    tables: Kind | None = None  # never rotated; None: as the layers

    @classmethod
    def parse(cls, settings: Settings) -> PackedFormat:
        """ModelFileError for another version and for what no kernel reads."""
        settings.one_of("version", (VERSION,))
        kind = settings.one_of("kind", _KINDS)
        return cls(
            kind,
            settings.one_of("group", (0,) if kind in ("f32", "bf16") else GROUPS),
            settings.one_of("rotated", (False, True)),
            settings.one_of("method", _METHODS),
            settings.one_of("tables", _KINDS) if settings.values.get("tables") else None,
        )

    def of(self, name: str) -> PackedFormat:
        """How the matrix of this name is packed."""
        if self.tables is None or name not in TABLES:
            return self
        return PackedFormat(self.tables, self.group)

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        if len(shape) != 2:
            return {name: Part(shape, ("F32",))}
        form, (rows, columns) = self.of(name), shape
        try:
            check_columns(columns, form.kind, form.group, form.rotated)
        except UsageError as error:
            raise ModelFileError(f"{name}: {error}") from None
        blocks = -(-rows // BLOCK_ROWS)
        return {name: Part((blocks, block_bytes(form.kind, columns, form.group)), ("U8",))}

    def dense(self, name: str, arrays: Mapping[str, NumpyArray]) -> NumpyArray:
        return arrays[name]  # a vector: matrices are read by `matrix`

    def matrix(self, shape: tuple[int, ...], data: NumpyArray) -> PackedMatrix:
        """The matrix of this shape over its stored bytes."""
        rows, columns = shape
        return PackedMatrix(self.kind, rows, columns, self.group, self.rotated, data)

    def to_json(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "kind": self.kind,
            "group": self.group,
            "rotated": self.rotated,
            "method": self.method,
            "version": VERSION,
            **({"tables": self.tables} if self.tables else {}),
        }
