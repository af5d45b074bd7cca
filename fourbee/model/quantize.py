"""Packs a model into a `fourbee-packed` folder, tensor by tensor, whole or not at all.

The source is anything that fourbee reads: a folder, packed by others or not, or a GGUF file. Not
here: how a matrix is packed (`kernels/packed.py`), what `--quantize` keeps (`packed_cache.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.kernels.backends import pack_fast, rel_error_fast
from fourbee.kernels.packed import GROUP, PACKINGS, Method, PackedMatrix
from fourbee.model import gguf_checkpoint
from fourbee.model.calibrated import CalibratedRounding
from fourbee.model.checkpoint_files import (
    COMPANIONS,
    Layout,
    Progress,
    write_files,
)
from fourbee.model.gguf_file import is_gguf, read_gguf
from fourbee.model.hub import refuse_full_disk
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import TABLES
from fourbee.model.tensor_file import DTYPES, NumpyArray
from fourbee.model.weights import tensor_shapes
from fourbee.text.gguf_vocabulary import gguf_tokenizer

# What `--quantize` offers, as a file has it.
FORMATS = {
    name: PackedFormat(
        packing.layers, GROUP, packing.rotated, packing.method,
        tables=None if packing.tables == packing.layers else packing.tables,
    )
    for name, packing in PACKINGS.items()
}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What became of a model; errors are relative, one a matrix."""

    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    mean_error: float
    worst_error: float
    worst_matrix: str


class NotWrittenError(ModelFileError):
    """A folder could not be written: its disk is full, read-only or gone."""


def quantize_model(
    source: Path,
    target: Path,
    form: PackedFormat,
    progress: Progress | None = None,
    calibration: Sequence[Sequence[int]] = (),
) -> Summary:
    """Writes the model of `source` to the folder `target`, which is new or empty.

    `progress` is told a tensor, and bytes written and in all. `calibration`, for the method "gptq"
    alone: token ids of texts like those that the model will see. Raises UsageError, ModelFileError,
    or CapacityError where the disk has no room. Whatever ends it, `target` is whole or as it was.
    """
    source, target = source.resolve(), target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists; expected a new or an empty folder", "output")
    tensors = gguf_checkpoint.open_source(source)
    if isinstance(tensors.config.quantization, PackedFormat):
        raise UsageError(f"{source}: already fourbee-packed; expected another checkpoint", "model")
    shapes = tensor_shapes(tensors.config)
    layout = packed_layout(shapes, form)
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in layout.items()}
    done, errors = 0, {}
    calibrated = CalibratedRounding(tensors, form, calibration) if form.method == "gptq" else None

    def packed(name: str) -> NumpyArray:
        nonlocal done
        dense = tensors.dense(name)
        if dense.ndim == 2:
            try:
                matrix = _packed(name, dense, form, calibrated)
            except UsageError as error:
                raise UsageError(f"{source}: {name}: {error}") from None
            errors[name] = rel_error_fast(dense, matrix)
        done += sizes[name]
        if progress is not None:
            progress(name, done, sum(sizes.values()))
        return matrix.data if dense.ndim == 2 else dense.astype(np.float32)

    with _appearing(target, sum(sizes.values())) as unfinished:
        config = replace(tensors.config, quantization=form)
        write_files(unfinished, config, layout, packed, sum(sizes.values()))
        _write_gguf_companions(source, unfinished) if is_gguf(source) else _copy_companions(
            source, unfinished
        )
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    worst = max(errors, key=lambda name: errors[name])
    return Summary(
        bytes_before=sum(file.stat().st_size for file in weight_files(source)),
        bytes_after=sum(file.stat().st_size for file in weight_files(target)),
        bits_per_weight=8 * sum(sizes[name] for name in matrices)
        / sum(math.prod(shapes[name]) for name in matrices),
        mean_error=sum(errors.values()) / len(errors),
        worst_error=errors[worst],
        worst_matrix=worst,
    )  # fmt: skip


def _packed(
    name: str, dense: NumpyArray, form: PackedFormat, calibrated: CalibratedRounding | None
) -> PackedMatrix:
    if calibrated is not None and name not in TABLES:
        return calibrated.packed(name)
    return packed_as(dense, form.of(name))


def packed_as(dense: NumpyArray, form: PackedFormat) -> PackedMatrix:
    """One matrix in its form, without calibration."""
    method: Method = "plain" if form.method == "plain" else "search"
    return pack_fast(dense, form.kind, form.group, form.rotated, method)


def weight_files(source: Path) -> list[Path]:
    """The files that hold the tensors of a folder, or the one of a GGUF file."""
    return sorted(source.glob("*.safetensors")) if source.is_dir() else [source]


def packed_layout(shapes: dict[str, tuple[int, ...]], form: PackedFormat) -> Layout:
    """What a packed file holds, by name; UsageError for columns that cannot be packed like this.

    Matrices first: so that they begin at a multiple of 32 bytes, as all of them have.
    """
    layout: Layout = {}
    for name in sorted(shapes, key=lambda name: -len(shapes[name])):
        try:
            part = form.parts(name, shapes[name])[name]
        except ModelFileError as error:
            hint = "; try --method search" if form.rotated else ""
            raise UsageError(f"{error}{hint}") from None
        layout[name] = (DTYPES[part.types[0]], part.shape)
    return layout


@contextlib.contextmanager
def _appearing(target: Path, size: int) -> Iterator[Path]:
    """A folder beside the target that takes its place when it is whole; else nothing is left."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        refuse_full_disk(target, size)
        yield unfinished
        if target.exists():
            target.rmdir()
        os.replace(unfinished, target)
    except OSError as error:
        raise NotWrittenError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy_companions(source: Path, target: Path) -> None:
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_gguf_companions(source: Path, target: Path) -> None:
    """The tokenizer and the recommended sampling of a GGUF file, as a folder has them."""
    file = read_gguf(source)
    tokenizer = gguf_tokenizer(file.metadata, str(source))
    tokenizer.save(target)
    sampling = {
        key: value
        for key, value in gguf_checkpoint.recommended_sampling(file).items()
        if value is not None
    }
    values = {**sampling, "eos_token_id": list(tokenizer.eos_token_ids)}
    (target / "generation_config.json").write_text(json.dumps(values, indent=2) + "\n")
