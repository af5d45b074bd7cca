"""Small valid models of every format that fourbee reads, and ways to damage their files.

Not here: how a damaged model is read and judged (`fuzz_readers.py`). A model is its files, by name,
as bytes: made once, damaged in memory, written for each case.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fourbee.kernels.packed import pack
from fourbee.model import fp8, gguf_checkpoint, groups
from fourbee.model.checkpoint_files import quantize_checkpoint, write_files
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_types import TYPES
from fourbee.model.gguf_writer import PlannedTensor, write_gguf
from fourbee.model.packed_format import PackedFormat
from fourbee.model.packing import DENSE
from fourbee.model.tensor_file import DTYPES, NumpyArray
from fourbee.model.weights import tensor_shapes
from fourbee.text.bpe import save_tokenizer, train_bpe
from fourbee.text.gguf_vocabulary import vocabulary_metadata
from fourbee.text.tokenizer import Tokenizer

Files = dict[str, bytes]
Json = Any

GGUF_NAME = "model.gguf"
_TEXTS = ("The model reads the token.", "他在这中国,有一个大的人。")
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
# Matrices of a GGUF file take these types in turn.
_GGUF_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
               "F16", "BF16", "F32")  # fmt: skip


def make_models(folder: Path) -> dict[str, Files]:
    """Every model by its format's name; `folder`, an empty one, is of no use afterwards."""
    backend = train_bpe(_TEXTS, 300)
    tokens = folder / "tokenizer"
    save_tokenizer(tokens, backend, _TEMPLATE)
    (tokens / "chat_template.jinja").write_text(_TEMPLATE)
    (tokens / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_k": 20}')
    config = Qwen3Config(
        vocab_size=backend.get_vocab_size(),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=256,
        torch_dtype="float32",
    )
    formats = {
        "dense": DENSE,
        "awq": groups.AwqPacking(64),
        "gptq": groups.GptqPacking(4, 32, desc_act=True),
        "gptq8": groups.GptqPacking(8, 128),
        "fp8": fp8.Fp8Packing((64, 128)),
        "packed_int4": PackedFormat("int4", 64, True, "search", "int8"),
        "packed_int4c": PackedFormat("int4c", 64, True, "search", "int8"),
        "packed_bf16": PackedFormat("bf16"),
        "packed_f32": PackedFormat("f32"),
    }
    for name, packing in formats.items():
        _write_folder(folder / name, replace(config, quantization=packing), 1 << 40)
    _write_folder(folder / "sharded", replace(config, quantization=DENSE), 100_000)
    quantize_checkpoint(folder / "dense", folder / "int8")
    models = {
        name: _files(tokens) | _files(folder / name) for name in (*formats, "sharded", "int8")
    }
    _write_gguf(folder / GGUF_NAME, replace(config, hidden_size=256, intermediate_size=256),
                Tokenizer.load(tokens))  # fmt: skip
    return {**models, "gguf": {GGUF_NAME: (folder / GGUF_NAME).read_bytes()}}


def _files(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _write_folder(folder: Path, config: Qwen3Config, shard_bytes: int) -> None:
    folder.mkdir()
    packing, parts = config.quantization or DENSE, {}
    for name, shape in tensor_shapes(config).items():
        parts |= packing.parts(name, shape)
    layout = {name: (DTYPES[part.types[-1]], part.shape) for name, part in parts.items()}
    shapes = tensor_shapes(config)

    def tensor(name: str) -> NumpyArray:
        dtype, shape = layout[name]
        if isinstance(packing, PackedFormat) and len(shape) == 2:
            form = packing.of(name)
            values = _numbers(shapes[name], np.dtype(np.float32))
            return pack(values, form.kind, form.group, form.rotated, form.method).data
        if isinstance(packing, groups.GptqPacking) and name.endswith("g_idx"):
            return (np.arange(shape[0]) // packing.group_size).astype(dtype)
        return _numbers(shape, dtype)

    saved = replace(config, quantization=None) if packing is DENSE else config
    write_files(folder, saved, layout, tensor, shard_bytes)


def _write_gguf(target: Path, config: Qwen3Config, tokenizer: Tokenizer) -> None:
    numbers = {kind.name: number for number, kind in TYPES.items()}
    matrices = iter(_GGUF_TYPES * 2)
    plan = [
        PlannedTensor(
            gguf_checkpoint.name_in_file(name),
            numbers[next(matrices) if len(shape) == 2 else "F32"],
            shape,
        )
        for name, shape in tensor_shapes(config).items()
    ]

    def data(tensor: PlannedTensor) -> Iterator[NumpyArray]:
        kind = TYPES[tensor.type]
        raw = _numbers((tensor.size,), np.dtype(np.uint8))
        if kind.record is None:
            raw = _numbers(tensor.shape, kind.dtype).view(np.uint8).reshape(-1)
        else:  # bytes of all kinds under small scales
            for field in {"scale", "min"} & set(kind.record.names or ()):
                raw.view(kind.record)[field] = 0.01
        yield raw

    about = {"general.architecture": gguf_checkpoint.ARCHITECTURE}
    about |= gguf_checkpoint.config_metadata(config)
    write_gguf(target, about | vocabulary_metadata(tokenizer, config.vocab_size), plan, data)


def _numbers(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NumpyArray:
    """Small floats, or whole numbers of the type's whole range."""
    drawn = np.random.default_rng(0)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return drawn.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    return (drawn.normal(size=shape) / 10).astype(dtype)


# --- damage ---------------------------------------------------------------------------------------

_SIZES = (
    0, 1, 2, 7, 31, 32, 64, 127, 128, 255, 256, 65_535, 2**20, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_STRINGS = (
    "", " ", "..", "../model.safetensors", "/etc/passwd", "x" * 5_000, "a\nb", "\x00", "\x1b[1m",
    "模型.safetensors", "\u202egnp", "\ud800", "NaN", "BF16", "I64", "F8_E4M3", "qwen3", "BPE",
    "ByteLevel", "awq", "gptq", "gptq_v2", "fp8", "fourbee-packed", "fourbee-int8", "int8", "int4",
    "f32", "bf16", "search", "mlp", "model.norm.weight",
)  # fmt: skip
_VALUES: tuple[Json, ...] = (
    None, True, False, -1, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"),
    float("nan"), [], {}, [[]], [None], {"": None}, *_SIZES, *_STRINGS,
)  # fmt: skip


def damage(files: Mapping[str, bytes], chance: random.Random) -> tuple[Files, list[str]]:
    """A copy with one to three defects, and in words which."""
    damaged, told = dict(files), []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        name = chance.choice([name for name in sorted(damaged) for _ in range(_weight(name))])
        change = chance.choice(_changes(name))
        damaged[name] = change(damaged[name], chance)
        told.append(f"{change.__name__.strip('_')} in {name}")
    return damaged, told


Change = Callable[[bytes, random.Random], bytes]


def _weight(name: str) -> int:
    """How much there is to be damaged in a file."""
    if name in ("config.json", "model.safetensors", "model.safetensors.index.json", GGUF_NAME):
        return 6
    return 2 if name.startswith("tokenizer") else 1


def _changes(name: str) -> tuple[Change, ...]:
    """What may happen to a file: of its own format, mostly, or to any bytes."""
    anywhere: tuple[Change, ...] = (_bits, _cut, _number, _copied_part, _lost_part, _grown)
    if name.endswith(".safetensors"):
        return (*(_header, _offsets) * 4, _length, *anywhere)
    if name.endswith(".gguf"):
        return (*(_field,) * 8, *anywhere)
    if name.endswith(".json"):
        return (*(_value,) * 12, _nested, _twice, _bits, _cut)
    return anywhere


def _bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    near = chance.choice((64, 4_096, 1 << 60))  # headers are where numbers matter
    for _ in range(chance.choice((1, 2, 8, 64)) if data else 0):
        changed[chance.randrange(min(len(data), near))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    near = chance.choice((16, 4_096, 1 << 60))
    return data[: chance.randint(0, min(len(data), near))]


def _grown(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 8, 4_096)))


def _number(data: bytes, chance: random.Random) -> bytes:
    """A size of 4 or 8 bytes where something else was."""
    raw = struct.pack("<Q", chance.choice(_SIZES))[: chance.choice((4, 8))]
    at = chance.randint(0, min(len(data), chance.choice((64, 4_096, 1 << 60))))
    return data[:at] + raw + data[at + len(raw) :]


def _copied_part(data: bytes, chance: random.Random) -> bytes:
    begin, at = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
    return data[:at] + data[begin : begin + chance.choice((1, 16, 1_024))] + data[at:]


def _lost_part(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.choice((1, 4, 8, 256)) :]


def _field(data: bytes, chance: random.Random) -> bytes:
    """A number or a type behind a name in a GGUF header."""
    names = list(re.finditer(rb"(?:general|qwen3|tokenizer|blk|token_embd|output)[\w.]+", data))
    if not names:
        return _number(data, chance)
    at = chance.choice(names).end() + 4 * chance.randrange(10)
    small = struct.pack("<I", chance.randrange(40))
    large = struct.pack("<Q", chance.choice(_SIZES))
    raw = chance.choice((small, small, large[:4], large))
    return data[:at] + raw + data[at + len(raw) :]


def _length(data: bytes, chance: random.Random) -> bytes:
    """Another length of a safetensors header."""
    true = int.from_bytes(data[:8], "little")
    wrong = chance.choice((*_SIZES, true - 1, true + 1, len(data), len(data) - 8))
    return struct.pack("<Q", wrong % 2**64) + data[8:]


def _split(data: bytes) -> tuple[Json, bytes]:
    """A safetensors file's header, and its tensors; None for one that is no longer whole."""
    end = 8 + int.from_bytes(data[:8], "little")
    return _parsed(data[8:end]), data[end:]


def _parsed(text: bytes) -> Json:
    """None for what is no longer JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _joined(header: Json, tensors: bytes, chance: random.Random) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * chance.choice((0, 1, -len(text) % 8))  # tensors need not be aligned
    return struct.pack("<Q", len(text)) + text + tensors


def _header(data: bytes, chance: random.Random) -> bytes:
    header, tensors = _split(data)
    return data if header is None else _joined(_changed(header, chance), tensors, chance)


def _offsets(data: bytes, chance: random.Random) -> bytes:
    """Places, shapes or types that tensors of a safetensors file take from one another."""
    header, tensors = _split(data)
    if not isinstance(header, dict) or len(header) < 3:
        return data
    try:
        one, other = chance.sample([v for k, v in header.items() if k != "__metadata__"], 2)
        key = chance.choice(("data_offsets", "shape", "dtype", "overflow"))
        if key == "overflow":  # as many bytes, if numbers had 64 bits
            one["shape"] = [2**32, 2**32, *one["shape"]]
        elif key == "shape" and chance.random() < 0.5:  # as many values
            one["shape"] = chance.choice((one["shape"][::-1], [*one["shape"], 1]))
        else:
            one[key], other[key] = chance.choice(((other[key], one[key]), (other[key],) * 2))
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged before
        return data
    return _joined(header, tensors, chance)


def _value(data: bytes, chance: random.Random) -> bytes:
    content = _parsed(data)
    if content is None:
        return _bits(data, chance)
    return json.dumps(_changed(content, chance), ensure_ascii=chance.random() < 0.7).encode(
        errors="surrogatepass"
    )


def _nested(data: bytes, chance: random.Random) -> bytes:
    """Brackets in brackets, in the place of a number or a string."""
    places = list(re.finditer(rb'(?<=: )(?:[\d.]+|"[^"]*")', data))
    depth = chance.choice((100, 5_000, 200_000))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opened * depth + b"1" + closed * depth
    if not places:
        return deep
    place = chance.choice(places)
    return data[: place.start()] + deep + data[place.end() :]


def _twice(data: bytes, chance: random.Random) -> bytes:
    """A key that was there, with another value."""
    keys = re.findall(rb'"(\w+)":', data)
    if not keys or not data.startswith(b"{"):
        return data
    value = json.dumps(chance.choice(_VALUES)).encode()
    return b'{"' + chance.choice(keys) + b'": ' + value + b"," + data[1:]


def _changed(content: Json, chance: random.Random) -> Json:
    """One value, key or entry of a JSON document becomes another."""
    if not isinstance(content, dict | list) or not content or chance.random() < 0.02:
        return chance.choice(_VALUES)
    key = chance.choice(list(content) if isinstance(content, dict) else range(len(content)))
    what = chance.random()
    if isinstance(content[key], dict | list) and what < 0.7:
        content[key] = _changed(content[key], chance)
    elif what < 0.85:
        content[key] = chance.choice(_VALUES)
    elif what < 0.9 and isinstance(content, dict):
        content[chance.choice(_STRINGS)] = content.pop(key)
    elif what < 0.95 and isinstance(content, list):
        content.append(content[key])
    else:
        del content[key]
    return content
