"""What every recipe of a training run can say; a stage's own recipe adds its data and its loss.

Frozen and checked when it is made: UsageError names the key, its value and what is expected.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Literal

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.model.config import Qwen3Config
from fourbee.training.checks import at_least, expect
from fourbee.training.lora import LoraSettings
from fourbee.training.optimizers import OptimizerSettings
from fourbee.training.sources import BadSamples, Source, Take


@dataclass(frozen=True)
class ModelShape:
    """The network of a run from scratch; the vocabulary comes from the tokenizer."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        try:
            self.config(1)
        except ModelFileError as error:
            raise UsageError(str(error).replace("config.json: ", "model.")) from None

    def config(self, vocab_size: int) -> Qwen3Config:
        """The configuration with this vocabulary."""
        return Qwen3Config(vocab_size=vocab_size, torch_dtype="float32", **asdict(self))


@dataclass(frozen=True)
class Positions:
    """Other positions than those of `init_from`, for training on longer texts.

    A larger base turns the rotations slower, so that positions beyond those that the model was
    trained on look like ones that it knows (ABF, Xiong et al. 2023, arXiv 2309.16039).
    """

    rope_theta: float | None = None
    max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 1 <= value < math.inf:
                raise UsageError(f"positions.{name} = {value}: expected at least 1")


@dataclass(frozen=True)
class Validation:
    """Held-out samples measured during training: loss, and samples whose answer is all right."""

    path: Path
    samples: int = 32  # of each skill; of pairs, labelled answers and tasks the file's first
    format: str = "auto"  # as of a source
    bad_samples: BadSamples = "refuse"  # as of a source
    take: Take = "whole"  # as of a source
    enough: float = 0.0  # end the run once `exact`, the mean over skills, is this; 0 = never

    def __post_init__(self) -> None:
        at_least(1, self, "samples")
        expect(0 <= self.enough <= 1, "enough", self.enough, "a share from 0 to 1")

    @property
    def source(self) -> Source:
        """The file as a source."""
        return Source(self.path, format=self.format, bad_samples=self.bad_samples, take=self.take)


_MODELS = ("init_from", "teacher", "reward_model")  # the keys of checkpoint folders


@dataclass(frozen=True)
class Samples:
    """Texts that are generated during training, at each validation, and kept in the log."""

    prompts: tuple[str, ...] = ()
    max_tokens: int = 64
    chat: bool = True  # prompts are a user's words; false = raw text to go on with

    def __post_init__(self) -> None:
        at_least(1, self, "max_tokens")


@dataclass(frozen=True)
class Guard:
    """What is done about an update whose gradient is not finite or far larger than usual.

    Such an update is left out: weights and optimizer stay as they are. Many large ones in a row are
    taken for what is usual from then on; as many that are not finite end the run, with its last
    whole checkpoint as it was.
    """

    spike: float = 10.0  # times the median of the last updates' norms; 0 = only what is not finite
    patience: int = 5  # how many in a row are many

    def __post_init__(self) -> None:
        at_least(0, self, "spike")
        at_least(1, self, "patience")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """One training run; every key of a recipe file is a field here or in the stage's own recipe."""

    output: Path
    tokenizer: Path | None = None  # folder with tokenizer.json; needed without init_from
    init_from: Path | None = None  # checkpoint folder to start from; else `model` from scratch
    model: ModelShape = field(default_factory=ModelShape)
    positions: Positions = field(default_factory=Positions)
    lora: LoraSettings | None = None  # train an adapter instead of all weights
    init_adapter_from: Path | None = None  # folder of an adapter, as PEFT's, to go on with
    validation: Validation | None = None
    samples: Samples = field(default_factory=Samples)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    guard: Guard = field(default_factory=Guard)
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, slower
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of matrix products
    export_type: Literal["float32", "bfloat16"] = "float32"  # of the weights that are written
    device: str = "cpu"
    seed: int = 0
    threads: int = 0  # 0 = torch's choice
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        at_least(1, self, "log_every", "validate_every", "checkpoint_every", "keep_checkpoints")
        expect(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2**63")
        expect(0 <= self.threads <= 1024, "threads", self.threads, "0 to 1024")
        if self.tokenizer is None and self.init_from is None:
            raise UsageError("missing key 'tokenizer': expected a folder with tokenizer.json")
        if self.model != ModelShape() and self.init_from is not None:
            raise UsageError("model with init_from: expected one of them, as weights have a shape")
        if self.lora is not None and self.init_from is None:
            raise UsageError("lora without init_from: an adapter needs a model that it adapts")
        if self.init_adapter_from is not None and self.lora is None:
            raise UsageError("init_adapter_from without lora: expected the adapter's own settings")
        if self.positions != Positions() and self.init_from is None:
            raise UsageError("positions without init_from: expected them in the table 'model'")
        known = re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is not None
        expect(known, "device", repr(self.device), "cpu or cuda, or cuda:N of several")
        if self.device != "cpu":
            import torch

            if not torch.cuda.is_available():
                raise UsageError(f"device = {self.device!r}: no CUDA device here; expected 'cpu'")

    def expect_paths(self) -> None:
        """UsageError for the first path that is not there, or whose folder holds no model.

        The output may be anywhere.
        """
        _expect_paths(self, "")

    def refuse_enough(self, reason: str) -> None:
        """UsageError for a run that is to end at a share of exact answers which nobody measures."""
        enough = self.validation.enough if self.validation else 0.0
        expect(not enough, "validation.enough", enough, f"0, as {reason}")

    @property
    def tokenizer_folder(self) -> Path:
        """Where tokenizer and chat template lie: of its own key, or beside the first weights."""
        folder = self.tokenizer or self.init_from
        assert folder is not None
        return folder


def _expect_paths(value: object, key: str) -> None:
    if isinstance(value, Path) and key != "output" and not value.exists():
        raise UsageError(f"{key} = {value}: no such file or folder")
    if isinstance(value, Path) and key in _MODELS and not (value / "config.json").is_file():
        inner = value / "model"
        meant = f"; is it {inner}?" if (inner / "config.json").is_file() else ""
        raise UsageError(f"{key} = {value}: expected a checkpoint folder, with config.json{meant}")
    if is_dataclass(value):
        for name, inner in vars(value).items():
            _expect_paths(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            _expect_paths(inner, f"{key}[{index}]")
