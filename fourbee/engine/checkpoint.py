"""The files of a model behind one face, whatever their format: a checkpoint folder, a GGUF file.

Only what loading a model asks of them; where a model's files are is `model/hub.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fourbee.engine.sampling import SamplingDefaults
from fourbee.foundation.errors import ModelFileError
from fourbee.kernels.operations import Operations
from fourbee.model import checkpoint_files, gguf_checkpoint
from fourbee.model.checkpoint_files import Progress
from fourbee.model.config import Qwen3Config
from fourbee.model.gguf_file import GgufFile, is_gguf, read_gguf
from fourbee.model.memory_formats import Formats, folder_formats, gguf_formats
from fourbee.model.packed_cache import packed_folder
from fourbee.model.quantize import FORMATS
from fourbee.model.qwen3 import Qwen3Weights
from fourbee.text.gguf_vocabulary import gguf_tokenizer
from fourbee.text.tokenizer import Tokenizer


class Checkpoint(Protocol):
    """A model on the disk. Whatever is read raises ModelFileError where the files are not right."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Qwen3Config: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def defaults(self) -> SamplingDefaults:
        """What the model's makers recommend."""
        ...

    @property
    def formats(self) -> Formats:
        """What its quantised matrices are kept in by operations that compute with such."""
        ...

    @property
    def weight_files(self) -> list[Path]:
        """The files that the weights lie in, in order."""
        ...

    def check(self) -> None:
        """What is wrong with the weights, said in moments: reads no tensor."""
        ...

    def load_weights(self, ops: Operations) -> Qwen3Weights: ...


def open_checkpoint(path: Path) -> Checkpoint:
    """What lies at a path of `resolve_model`; reads nothing yet."""
    if is_gguf(path):
        return GgufCheckpoint(path)
    return FolderCheckpoint(path)


def load_quantized(
    checkpoint: Checkpoint, quantize: str, ops: Operations, progress: Progress | None = None
) -> Qwen3Weights:
    """The weights in the packing of `--quantize`, mapped from the cache that a first call fills.

    The same bits as packing while loading, which is done where there can be no cache. `progress` is
    told of the packing.
    """
    folder = packed_folder(checkpoint.path, FORMATS[quantize], progress)
    return checkpoint.load_weights(ops) if folder is None else (
        checkpoint_files.load_weights(folder, ops)
    )  # fmt: skip


@dataclass(frozen=True)
class FolderCheckpoint:
    """A folder as on the Hugging Face hub: config.json, safetensors, tokenizer.json."""

    path: Path

    @cached_property
    def config(self) -> Qwen3Config:
        return Qwen3Config.load(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.path)

    @cached_property
    def defaults(self) -> SamplingDefaults:
        return SamplingDefaults.from_generation_config(self.path)

    @property
    def formats(self) -> Formats:
        return folder_formats(self.config)

    @property
    def weight_files(self) -> list[Path]:
        return sorted(self.path.glob("*.safetensors"))

    def check(self) -> None:
        checkpoint_files.check_weights(self.path)

    def load_weights(self, ops: Operations) -> Qwen3Weights:
        return checkpoint_files.load_weights(self.path, ops)


@dataclass(frozen=True)
class GgufCheckpoint:
    """A GGUF file, as llama.cpp writes it: everything in one."""

    path: Path

    @cached_property
    def config(self) -> Qwen3Config:
        return gguf_checkpoint.read_config(self._file)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return gguf_tokenizer(self._file.metadata, str(self.path))

    @cached_property
    def defaults(self) -> SamplingDefaults:
        recommended = gguf_checkpoint.recommended_sampling(self._file)
        return SamplingDefaults.from_values(recommended, str(self.path))

    @property
    def formats(self) -> Formats:
        return gguf_formats(self._file, self.config)

    @property
    def weight_files(self) -> list[Path]:
        return [self.path]

    def check(self) -> None:
        gguf_checkpoint.check_weights(self._file)
        # llama.cpp keeps a token, unused ones too, for every row.
        tokens = self._file.metadata.get("tokenizer.ggml.tokens")
        rows = self.config.vocab_size
        if isinstance(tokens, list) and len(tokens) != rows:
            raise ModelFileError(
                f"{self.path}: tokenizer.ggml.tokens has {len(tokens)} entries, expected {rows}, "
                "one for each row of token_embd.weight"
            )

    def load_weights(self, ops: Operations) -> Qwen3Weights:
        return gguf_checkpoint.load_weights(self._file, ops)

    @cached_property
    def _file(self) -> GgufFile:
        return read_gguf(self.path)
