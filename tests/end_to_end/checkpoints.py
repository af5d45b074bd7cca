"""Checkpoint folders with random weights: a tiny one, and one of a published model's shape.

Written by NumPy and the safetensors library, not by what they test.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from fourbee.model.config import Qwen3Config
from fourbee.model.weights import tensor_shapes
from fourbee.text.bpe import save_tokenizer, train_bpe

CONTEXT = 32768  # tokens; an answer that fills it takes a minute

TINY = Qwen3Config(
    vocab_size=0x1000,  # replaced by what the tokenizer has
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=CONTEXT,
    torch_dtype="float32",
)

SENTENCES = [
    "The model reads the token, and the reader reads the model.",
    "他在这中国，有一个大的人。",
]

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_tiny(folder: Path, config: Qwen3Config = TINY) -> Path:
    """A checkpoint of a few thousand weights with a tokenizer and a chat template of its own."""
    backend = train_bpe(SENTENCES * 4, 400, guaranteed="我你")
    save_tokenizer(folder, backend, TEMPLATE, context_length=CONTEXT)
    config = replace(config, vocab_size=backend.get_vocab_size())
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2))
    save_file(random_tensors(config, normal_float32), folder / "model.safetensors")
    return folder


def write_qwen(folder: Path, test_data: Path, num_layers: int) -> Path:
    """A checkpoint as Qwen3-0.6B is published, with fewer layers if so wanted: bf16 in shards."""
    folder.mkdir(parents=True)
    for file in (test_data / "qwen3_configs" / "Qwen3-0.6B").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    packed = (test_data / "tokenizer" / "tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    values = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    config = Qwen3Config.from_json(values)
    tensors = random_tensors(config, quick_bfloat16)
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in shards.items() for name in held}
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
        "weight_map": places,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def normal_float32(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of standard deviation 0.1."""
    return random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)


def quick_bfloat16(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of standard deviation 0.019, a tenth of a second for each 50 million of them.

    Their bits are random but for the upper 7 of the exponent: from 2**-7 to 2**-5 and negative.
    """
    bits = random.integers(0, 1 << 16, shape, dtype=np.uint16)
    return ((bits & 0x80FF) | 0x3C00).view(ml_dtypes.bfloat16)


def random_tensors(
    config: Qwen3Config, draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
) -> dict[str, np.ndarray]:
    """A checkpoint's tensors; ones where a norm multiplies."""
    random = np.random.default_rng(0)
    dtype = draw(random, (1,)).dtype
    return {
        name: np.ones(shape, dtype) if len(shape) == 1 else draw(random, shape)
        for name, shape in tensor_shapes(config).items()
    }
