"""Checkpoint folders: config.json and safetensors files, read into weights and written back.

Layouts are Hugging Face's: one `model.safetensors`, or shards with `model.safetensors.index.json`.
Strict: a tensor that is missing, not expected, of another shape or type, stored twice, or not where
the index says is an error that names it. Never runs code: pickled `.bin` files are refused. Not
here: tokenizer files, downloads (`hub.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.json_files import parse_json
from fourbee.kernels.operations import Array, Operations, PackedOperations
from fourbee.kernels.packed import PackedMatrix, unpack
from fourbee.model.config import Qwen3Config
from fourbee.model.groups import AwqPacking, GptqPacking
from fourbee.model.int8 import INT8, SCALE, pack_rows
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import DENSE, TABLES, Packing, Part
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.model.tensor_file import NumpyArray, StoredTensor, read_header, write_tensors
from fourbee.model.weights import largest_first, named_tensors, tensor_shapes, weights_tree

Progress = Callable[[str, int, int], None]  # a name, bytes done, bytes in all
Made = TypeVar("Made")
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
# What belongs to a model beside its weights: tokenizer, chat template, sampling defaults.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_HEAD = "lm_head.weight"
_SHARD = 5_000_000_000  # bytes of a file at most, as transformers'


def check_weights(folder: Path) -> None:
    """What `load_weights` checks, in milliseconds: reads no tensor. Raises ModelFileError."""
    _check_tensors(folder, Qwen3Config.load(folder), find_tensors(folder))


def load_weights(folder: Path, ops: Operations, progress: Progress | None = None) -> Qwen3Weights:
    """The weights of a checkpoint folder, in the compute type of `ops`.

    Dense, unless the folder is `fourbee-packed`, AWQ or GPTQ and the operations take packed
    matrices; those that quantise make AWQ and GPTQ dense first, and then their own.
    Streamed tensor by tensor, the largest first: memory peaks at little more than the weights
    themselves. A checkpoint with tied embeddings may also hold `lm_head.weight`; it is ignored, as
    transformers does, but must have the embedding's shape. Raises ModelFileError.
    """
    tensors = open_tensors(folder)
    config = tensors.config
    form = config.quantization
    takes_packed = ops if isinstance(ops, PackedOperations) else None
    sizes = {name: sum(p.size for p in parts.values()) for name, parts in tensors.parts.items()}
    done, total = 0, sum(sizes.values())
    arrays: dict[str, Array] = {}
    made_dense: list[str] = []
    for name in largest_first(config):
        matrix = tensors.packed(name) if takes_packed else None
        if takes_packed and takes_packed.keeps_formats and tensors.is_foreign(name):
            matrix = tensors.repacked(name)
            made_dense += [name] if matrix is None else []
        if takes_packed and matrix:
            arrays[name] = takes_packed.from_packed(matrix)
        else:
            arrays[name] = kept(ops, folder, name, tensors.dense(name))
        done += sizes[name]
        if progress is not None:
            progress(name, done, total)
    tell_dense(folder, made_dense)
    rotated = bool(takes_packed) and isinstance(form, PackedFormat) and form.rotated
    head_rotated = rotated and isinstance(form, PackedFormat) and form.of(_HEAD).rotated
    dense = dataclasses.replace(config, quantization=None)
    return weights_tree(dense, arrays, rotated, head_rotated)


@dataclass(frozen=True)
class FolderTensors:
    """The tensors of a folder, checked but not yet read; `parts` are what each is stored as."""

    folder: Path
    config: Qwen3Config
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, Mapping[str, StoredTensor]]

    def dense(self, name: str) -> NumpyArray:
        """One tensor of the network, read and unpacked."""
        packed = self.packed(name)
        if packed is not None:
            return unpack(packed)
        packing = self.config.quantization or DENSE
        return _read(self.folder, packing.dense, name, self.parts[name])

    def packed(self, name: str) -> PackedMatrix | None:
        """A matrix of a `fourbee-packed` folder, over a map of its file; None for all others."""
        form, shape = self.config.quantization, self.shapes[name]
        if len(shape) == 2 and isinstance(form, PackedFormat):
            return form.of(name).matrix(shape, self.parts[name][name].map())
        return None

    def is_foreign(self, name: str) -> bool:
        """Whether it is a layer that AWQ or GPTQ packed."""
        form = self.config.quantization
        return isinstance(form, AwqPacking | GptqPacking) and name not in self.parts[name]

    def repacked(self, name: str) -> PackedMatrix | None:
        """Such a layer as the kernels read it; None where it must be dense."""
        form = self.config.quantization
        assert isinstance(form, AwqPacking | GptqPacking)
        return _read(self.folder, form.packed, name, self.parts[name])


def open_tensors(folder: Path) -> FolderTensors:
    """Checks what `check_weights` checks."""
    config = Qwen3Config.load(folder)
    stored = find_tensors(folder)
    _check_tensors(folder, config, stored)
    packing, shapes = config.quantization or DENSE, tensor_shapes(config)
    parts = {
        name: {part: stored[part] for part in packing.parts(name, shape) if part in stored}
        for name, shape in shapes.items()
    }
    return FolderTensors(folder, config, shapes, parts)


def save_weights(
    folder: Path, weights: Qwen3Weights, ops: Operations, max_shard_bytes: int = _SHARD
) -> None:
    """Writes config.json and the tensors, in the type they have, as `write_checkpoint`."""
    tensors = named_tensors(weights)
    shapes = tensor_shapes(weights.config)
    dtype = ops.to_numpy(weights.final_norm).dtype
    config = dataclasses.replace(weights.config, torch_dtype=dtype.name)
    layout: Layout = {name: (dtype, shape) for name, shape in shapes.items()}
    write_checkpoint(
        folder, config, layout, lambda name: ops.to_numpy(tensors[name]), max_shard_bytes
    )


def quantize_checkpoint(source: Path, target: Path) -> None:
    """Writes the checkpoint of `source` to `target` as `fourbee-int8`, with its tokenizer files."""
    config = Qwen3Config.load(source)
    if config.quantization is not None:
        method = config.quantization.to_json()["quant_method"]
        raise ModelFileError(f"{source}: already {method}; expected a dense checkpoint")
    stored = find_tensors(source)
    _check_tensors(source, config, stored)
    shapes = {name: part.shape for name, part in _parts(INT8, tensor_shapes(config)).items()}
    single, byte = np.dtype(np.float32), np.dtype(np.int8)
    # Floats first, so that every tensor is aligned to its element size.
    layout: Layout = {name: (single, shape) for name, shape in shapes.items() if len(shape) == 1}
    layout |= {name: (byte, shape) for name, shape in shapes.items() if len(shape) == 2}

    def packed(name: str) -> NumpyArray:
        if name.endswith(SCALE):
            return pack_rows(stored[name.removesuffix(SCALE)].read())[1]
        array = stored[name].read()
        return pack_rows(array)[0] if array.ndim == 2 else array.astype(single)

    config = dataclasses.replace(config, quantization=INT8)
    write_checkpoint(target, config, layout, packed, max_shard_bytes=sum(_sizes(layout)))
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def kept(ops: Operations, source: Path, name: str, tensor: NumpyArray) -> Array:
    """A tensor as the operations keep it; UsageError, naming both, where they cannot."""
    try:
        return ops.from_numpy(tensor, name in TABLES)
    except UsageError as error:
        raise UsageError(f"{source}: {name}: {error}", error.parameter) from None


def tell_dense(source: Path, names: Sequence[str]) -> None:
    """A line in the log about quantised matrices that no packed kind holds."""
    if names:
        logger.warning("%s: %d quantised matrices become dense: %s", source, len(names),
                       _listed(names))  # fmt: skip


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's weight files by name; checks the index where there is one.

    As in transformers, files beside `model.safetensors` or not named by the index are not read.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        return _merged(_files_without_index(folder))
    places = _index(index)
    if SINGLE_FILE not in places.values() and (folder / SINGLE_FILE).is_file():
        raise ModelFileError(
            f"{folder}: both {SINGLE_FILE} and {INDEX_FILE}; expected one of the two"
        )
    absent = sorted(file for file in set(places.values()) if not (folder / file).is_file())
    if absent:
        raise ModelFileError(f"{folder}: missing {_listed(absent)}, named by {INDEX_FILE}")
    stored = _merged([folder / file for file in sorted(set(places.values()))])
    wrong = [
        name
        for name in {**places, **stored}
        if name not in stored or stored[name].path.name != places.get(name)
    ]
    if wrong:
        raise ModelFileError(
            f"{index}: wrong about {_listed(wrong)}; expected the file that holds each tensor"
        )
    return stored


def refuse_other_tensors(
    source: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    mistyped: Sequence[str] = (),
) -> None:
    """ModelFileError, naming them, unless the tensors and their shapes are those expected."""
    mis_shaped = [
        f"{name} is {list(shape)}, expected {list(expected[name])}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "not expected": [name for name in found if name not in expected],
        "of the wrong shape": mis_shaped,
        "of the wrong type": mistyped,
    }
    told = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if told:
        raise ModelFileError(f"{source}: tensors {'; '.join(told)}")


def _files_without_index(folder: Path) -> list[Path]:
    single = folder / SINGLE_FILE
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise ModelFileError(
            f"{folder}: only {_listed(pickled)}; expected {SINGLE_FILE}: pickled files can run code"
        )
    raise ModelFileError(f"{folder}: no weights; expected {SINGLE_FILE}")


def _index(path: Path) -> dict[str, str]:
    try:
        places = parse_json(path.read_bytes())["weight_map"]
        well_formed = all(isinstance(file, str) for file in places.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        well_formed = False
    if not well_formed:
        raise ModelFileError(f"{path}: damaged; expected a JSON object with a weight_map")
    for file in places.values():
        if file != Path(file).name:
            raise ModelFileError(f"{path}: names {file!r}; expected a file of the same folder")
    return dict(places)


def _merged(files: Iterable[Path]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in stored:
                raise ModelFileError(
                    f"{file.parent}: {name} is both in {stored[name].path.name} and in "
                    f"{file.name}; expected it once"
                )
            stored[name] = tensor
    return stored


def _check_tensors(folder: Path, config: Qwen3Config, stored: Mapping[str, StoredTensor]) -> None:
    """Exactly the tensors of the configuration, in its shapes and types."""
    # Before as many names are made.
    if config.num_hidden_layers > len(stored):
        raise ModelFileError(
            f"{folder / CONFIG_FILE}: num_hidden_layers = {config.num_hidden_layers}: more layers "
            f"than tensors ({len(stored)})"
        )
    dense = tensor_shapes(config)
    if config.tie_word_embeddings and _HEAD in stored:
        dense[_HEAD] = dense["model.embed_tokens.weight"]
    parts = _parts(config.quantization or DENSE, dense)
    expected = {
        name: part.shape for name, part in parts.items() if name in stored or not part.optional
    }
    found = {name: tensor.shape for name, tensor in stored.items()}
    mistyped = [
        f"{name} is {tensor.dtype}, expected {' or '.join(parts[name].types)}"
        for name, tensor in stored.items()
        if name in parts and tensor.dtype not in parts[name].types
    ]
    refuse_other_tensors(folder, expected, found, mistyped)


def _parts(packing: Packing, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Every stored tensor by name, of dense tensors of these names and shapes."""
    parts: dict[str, Part] = {}
    for name, shape in shapes.items():
        parts |= packing.parts(name, shape)
    return parts


def _read(
    folder: Path,
    made_of: Callable[[str, Mapping[str, NumpyArray]], Made],
    name: str,
    parts: Mapping[str, StoredTensor],
) -> Made:
    """What the parts of one tensor make."""
    arrays = {part: tensor.read() for part, tensor in parts.items()}
    try:
        return made_of(name, arrays)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from None


def write_checkpoint(
    folder: Path,
    config: Qwen3Config,
    layout: Layout,
    tensor: Callable[[str], NumpyArray],
    max_shard_bytes: int = _SHARD,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, `more` in it, and the tensors, as transformers lays them out.

    Tokenizer files in the folder stay. An interrupted save leaves the old checkpoint, the new one,
    or a folder without config.json, which no loader takes for a model (what is not in place is in
    `.unfinished` then); never a mixture.
    """
    unfinished = folder / ".unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(shutil.rmtree, unfinished, ignore_errors=True)
            write_files(unfinished, config, layout, tensor, max_shard_bytes, more)
            cleanup.pop_all()
        # From here on a folder without config.json, until all of the new files are in place.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for old in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_FILE):
            old.unlink(missing_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            os.replace(file, folder / file.name)
        unfinished.rmdir()
    except OSError as error:
        raise ModelFileError(f"{folder}: cannot be written: {error.strerror}") from error


def write_files(
    folder: Path,
    config: Qwen3Config,
    layout: Layout,
    tensor: Callable[[str], NumpyArray],
    max_shard_bytes: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """The bare writing: config.json last, tensors one at a time; the folder must exist."""
    shards = _shards(layout, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    files = dict(zip(names if count > 1 else [SINGLE_FILE], shards, strict=True))
    for file, shard in files.items():
        write_tensors(folder / file, shard, ((name, tensor(name)) for name in shard))
    if count > 1:
        places = {name: file for file, shard in files.items() for name in shard}
        index = {"metadata": {"total_size": sum(_sizes(layout))}, "weight_map": places}
        _write_json(folder / INDEX_FILE, index)
    _write_json(folder / CONFIG_FILE, config.to_json() | dict(more or {}))


def _shards(layout: Layout, max_bytes: int) -> list[Layout]:
    """The layout in order, cut so that no shard is larger (unless one tensor alone is)."""
    shards: list[Layout] = [{}]
    filled = 0
    for (name, form), size in zip(layout.items(), _sizes(layout), strict=True):
        if shards[-1] and filled + size > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = form
        filled += size
    return shards


def _sizes(layout: Layout) -> Iterator[int]:
    return (math.prod(shape) * dtype.itemsize for dtype, shape in layout.values())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _listed(items: Sequence[str]) -> str:
    """At most three of the items, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
