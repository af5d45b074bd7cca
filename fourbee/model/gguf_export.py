"""A model as a GGUF file for llama.cpp: which tensors in which types, and what the file says.

The source is anything that fourbee reads. Matrices get the wanted type and norms stay F32, as
llama.cpp expects. Under `q4_0` the embedding and the head are Q8_0: rows of the vocabulary bear
four bits badly, and llama.cpp's own default there (Q6_K) is not written here. Not here: the file's
format (`gguf_writer.py`) and the vocabulary (`text/gguf_vocabulary.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.model import gguf_checkpoint
from fourbee.model.checkpoint_files import Progress
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_quants import WRITTEN, encode
from fourbee.model.gguf_types import TYPES
from fourbee.model.gguf_writer import PlannedTensor, check_target, write_gguf
from fourbee.model.packing import TABLES
from fourbee.model.tensor_file import NumpyArray
from fourbee.model.weights import tensor_shapes

# What `--type` offers, with llama.cpp's number for a file of this type (general.file_type).
FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
_QUANTISATION_VERSION = 2  # of llama.cpp's block layouts
_PART_VALUES = 1 << 22  # encoded at a time


@dataclass(frozen=True)
class Summary:
    """What was written."""

    bytes_after: int
    tensors: int
    matrix_type: str
    table_type: str  # of the embedding and the head


def check_request(target: Path, form: str) -> None:
    """UsageError for another type than those of FILE_TYPES, and where the target cannot be."""
    if form not in FILE_TYPES:
        *most, last = FILE_TYPES
        raise UsageError(f"--type {form}: expected {', '.join(most)} or {last}", "type")
    check_target(target)


def export_gguf(
    source: Path,
    target: Path,
    form: str,
    about: Mapping[str, Any],
    progress: Progress | None = None,
) -> Summary:
    """Writes the model of `source` to the new file `target`, its matrices of type `form`.

    `about` is metadata beside the network's: vocabulary, sampling, name. `progress` is told a
    tensor, and bytes written and in all. Raises UsageError, ModelFileError, CapacityError; whatever
    ends it, the target is whole or absent.
    """
    check_request(target, form)
    tensors = gguf_checkpoint.open_source(source)
    names = {gguf_checkpoint.name_in_file(name): name for name in tensor_shapes(tensors.config)}
    plan = _plan(tensors.config, form)
    total, done = sum(tensor.size for tensor in plan), 0

    def data(tensor: PlannedTensor) -> Iterator[NumpyArray]:
        nonlocal done
        try:
            yield from _parts(tensor, tensors.dense(names[tensor.name]))
        except ModelFileError as error:
            raise ModelFileError(_with_source(source, str(error))) from None
        done += tensor.size
        if progress is not None:
            progress(tensor.name, done, total)

    metadata = _general(form) | gguf_checkpoint.config_metadata(tensors.config) | dict(about)
    size = write_gguf(target, metadata, plan, data)
    return Summary(size, len(plan), form, _type_of(TABLES[0], 2, form).lower())


def _plan(config: Qwen3Config, form: str) -> list[PlannedTensor]:
    plan: list[PlannedTensor] = []
    for name, shape in tensor_shapes(config).items():
        number, kind = WRITTEN[_type_of(name, len(shape), form)]
        if shape[-1] % kind.block_values:
            raise UsageError(
                f"--type {form}: {name} has rows of {shape[-1]}; expected a multiple of "
                f"{kind.block_values}, or --type f16",
                "type",
            )
        plan.append(PlannedTensor(gguf_checkpoint.name_in_file(name), number, shape))
    return plan


def _type_of(name: str, dimensions: int, form: str) -> str:
    if dimensions == 1:
        return "F32"
    return "Q8_0" if form == "q4_0" and name in TABLES else form.upper()


def _parts(tensor: PlannedTensor, array: NumpyArray) -> Iterator[NumpyArray]:
    """The tensor's bytes, a number of rows at a time."""
    kind = TYPES[tensor.type]
    rows = max(1, _PART_VALUES // array.shape[-1]) if array.ndim == 2 else len(array)
    for first in range(0, len(array), rows):
        yield encode(kind, array[first : first + rows], tensor.name)


def _general(form: str) -> dict[str, Any]:
    general = {
        "general.architecture": gguf_checkpoint.ARCHITECTURE,
        "general.type": "model",
        "general.file_type": FILE_TYPES[form],
    }
    if form.startswith("q"):
        general["general.quantization_version"] = _QUANTISATION_VERSION
    return general


def _with_source(source: Path, message: str) -> str:
    return message if message.startswith(str(source)) else f"{source}: {message}"
