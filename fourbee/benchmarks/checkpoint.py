"""A packed checkpoint of random weights on the disk, for what is measured from a process's start.

Its tokenizer is Qwen's where FOURBEE_TEST_DATA has that (tokenizer/tokenizer.json.gz), as its size
is a part of what a start takes; else fourbee-mini's, which names a part of the rows only.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from fourbee.benchmarks.shapes import random_matrix, shape_config
from fourbee.model.checkpoint_files import COMPANIONS, write_files
from fourbee.model.hub import resolve_model
from fourbee.model.quantize import FORMATS, packed_layout
from fourbee.model.tensor_file import NumpyArray
from fourbee.model.weights import tensor_shapes
from fourbee.text import chat_format


def write_packed(folder: Path, shape: str) -> int:
    """Writes the shape in int4 to a folder that exists; the bytes of its tensors."""
    form = FORMATS["int4"]
    config = replace(shape_config(shape), quantization=form)
    shapes, rng = tensor_shapes(config), np.random.default_rng(0)
    layout = packed_layout(shapes, form)

    def tensor(name: str) -> NumpyArray:
        if len(shapes[name]) == 1:
            return np.ones(shapes[name], dtype=np.float32)
        rows, columns = shapes[name]
        one = form.of(name)
        return random_matrix(rng, rows, columns, one.kind, one.rotated).data

    sizes = [int(np.prod(parts)) * dtype.itemsize for dtype, parts in layout.values()]
    write_files(folder, config, layout, tensor, sum(sizes))
    return sum(sizes)


def write_tokenizer(folder: Path) -> str:
    """Whose tokenizer was written: "Qwen3" or "fourbee-mini"."""
    known = Path(os.environ.get("FOURBEE_TEST_DATA", "")) / "tokenizer" / "tokenizer.json.gz"
    if not known.is_file():
        embedded = resolve_model(None)
        for name in COMPANIONS:
            if (embedded / name).is_file():
                shutil.copyfile(embedded / name, folder / name)
        return "fourbee-mini"
    with gzip.open(known) as source, (folder / "tokenizer.json").open("wb") as target:
        shutil.copyfileobj(source, target)
    template = (Path(chat_format.__file__).parent / "qwen3_instruct.jinja").read_text()
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return "Qwen3"
