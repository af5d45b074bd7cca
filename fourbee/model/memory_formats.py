"""What a checkpoint's own quantised matrices are kept in by the native operations, without reading.

Told by the configuration or by the header of a GGUF file; what values decide (scales that float16
cannot hold, the order of groups) is taken to be well. Not here: the repacking (`groups.py`,
`gguf_packed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from fourbee.kernels.packed import GROUPS, Kind
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_checkpoint import name_in_file
from fourbee.model.gguf_file import GgufFile
from fourbee.model.gguf_packed import GROUP, KINDS
from fourbee.model.groups import AwqPacking, GptqPacking
from fourbee.model.packed_format import PackedFormat
from fourbee.model.weights import tensor_shapes

Formats = Mapping[str, PackedFormat]


def folder_formats(config: Qwen3Config) -> Formats:
    """By name, the matrices of a folder that are not dense in memory.

    Of layers whose groups may be out of order (`desc_act`), dense is what is certain.
    """
    form, shapes = config.quantization, _matrices(config)
    if isinstance(form, PackedFormat):
        return {name: form.of(name) for name in shapes}
    if not isinstance(form, AwqPacking | GptqPacking) or getattr(form, "desc_act", False):
        return {}
    kind: Kind = "int8" if getattr(form, "bits", 4) == 8 else "int4a"
    formats = {}
    for name, shape in shapes.items():
        size = shape[1] if form.group_size == -1 else form.group_size
        fitting = [group for group in GROUPS if size % group == 0]
        if fitting and name not in form.parts(name, shape):
            formats[name] = PackedFormat(kind, fitting[-1])
    return formats


def gguf_formats(file: GgufFile, config: Qwen3Config) -> Formats:
    """The same of a GGUF file."""
    types = {name: file.tensors[name_in_file(name)].type for name in _matrices(config)}
    return {
        name: PackedFormat(KINDS.get(kind.name, "int8"), GROUP)
        for name, kind in types.items()
        if kind.record is not None
    }


def _matrices(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in tensor_shapes(config).items() if len(shape) == 2}
