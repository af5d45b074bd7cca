"""LoRA (Hu et al. 2021, arXiv 2106.09685): small matrices beside frozen ones, trained for them.

An adapted map is `y = x W^T + scale (x A^T) B^T` with A `[r, D]` and B `[N, r]`. B starts at zero,
so that an adapter changes nothing before its first update. Files are in PEFT's format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.json_files import read_json_object
from fourbee.foundation.settings import nearest
from fourbee.kernels.operations import Linear

# The maps of a layer that can be adapted, by the end of their names.
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before every name in PEFT's files


@dataclass(frozen=True)
class LoraSettings:
    """Which maps are adapted, and by how much."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    rank_stabilised: bool = False  # scale alpha / sqrt(rank) (Kalajdzievski 2023), not alpha / rank

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora.rank = {self.rank}: expected at least 1")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"lora.alpha = {self.alpha}: expected more than 0")
        for name in self.targets:
            if name not in TARGETS:
                raise UsageError(
                    f"lora.targets: unknown {name!r}{nearest(name, TARGETS)}; known: "
                    f"{', '.join(TARGETS)}"
                )
        if not self.targets:
            raise UsageError(f"lora.targets = []: expected some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class AdaptedLinear(Linear):
    """A linear map with its adapter."""

    down: Tensor | None = None  # A [r, D]
    up: Tensor | None = None  # B [N, r]
    scale: float = 1.0


def adapter_parameters(
    shapes: Mapping[str, tuple[int, ...]], settings: LoraSettings, seed: int
) -> dict[str, nn.Parameter]:
    """A and B of every adapted matrix, as `NAME.lora_A` and `NAME.lora_B` of its checkpoint name.

    A is drawn as PEFT draws it (Kaiming uniform with a = sqrt(5)), B is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, nn.Parameter] = {}
    for name, shape in shapes.items():
        stem = name.removesuffix(".weight")
        if len(shape) == 2 and stem.rpartition(".")[2] in settings.targets:
            down = torch.empty(settings.rank, shape[1])
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            parameters[f"{stem}.lora_A"] = nn.Parameter(down)
            parameters[f"{stem}.lora_B"] = nn.Parameter(torch.zeros(shape[0], settings.rank))
    return parameters


def save_adapter(
    folder: Path, adapter: Mapping[str, Tensor], settings: LoraSettings, base: Path | None
) -> None:
    """Writes an adapter in PEFT's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}.weight": one.detach().contiguous() for name, one in adapter.items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base) if base else None,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets),
        "use_rslora": settings.rank_stabilised,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], LoraSettings]:
    """The tensors, by our names, and the settings of an adapter in PEFT's format.

    ModelFileError for anything but plain LoRA of linear maps.
    """
    config = read_json_object(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelFileError(f"{folder / CONFIG}: peft_type is not LORA")
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out"):
        if config.get(key):
            raise ModelFileError(f"{folder / CONFIG}: {key} = {config[key]!r}: expected none")
    try:
        settings = LoraSettings(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            targets=tuple(sorted(config["target_modules"])),
            rank_stabilised=bool(config.get("use_rslora", False)),
        )
        stored = load_file(folder / WEIGHTS)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError, UsageError) as error:
        raise ModelFileError(f"{folder}: not a LoRA adapter: {error}") from error
    return {
        name.removeprefix(_PREFIX).removesuffix(".weight"): tensor
        for name, tensor in stored.items()
    }, settings
