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
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fourbee.foundation.errors import ModelFileError, UsageError
from fourbee.foundation.json_files import read_json_object
from fourbee.foundation.settings import nearest
from fourbee.kernels.operations import Linear
from fourbee.model.weights import LINEARS

# The maps of a layer that can be adapted, by the end of their names.
TARGETS = tuple(name.rpartition(".")[2] for name in LINEARS.values())
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before every name in PEFT's files
# What an adapter of PEFT may be beside plain LoRA, by the key that says so.
_UNSUPPORTED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "bias",
    "lora_bias",
)  # fmt: skip
# Ways to draw A and B, of those with a name, that leave the base's weights alone.
_KEEP_THE_BASE = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraSettings:
    """Which maps are adapted, and by how much. UsageError for what is out of range."""

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
        # In one order, so that settings which mean the same are the same.
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in self.targets))

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
            if settings.rank > min(shape):
                raise UsageError(
                    f"lora.rank = {settings.rank}: expected at most {min(shape)}, the smaller side "
                    f"of {name}"
                )
            down = torch.empty(settings.rank, shape[1])
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            parameters[f"{stem}.lora_A"] = nn.Parameter(down)
            parameters[f"{stem}.lora_B"] = nn.Parameter(torch.zeros(shape[0], settings.rank))
    return parameters


def save_adapter(
    folder: Path, adapter: Mapping[str, Tensor], settings: LoraSettings, base: Path | None
) -> None:
    """Writes an adapter in PEFT's format; `base` is the folder of what it adapts.

    ModelFileError where it cannot be written.
    """
    tensors = {
        f"{_PREFIX}{name}.weight": one.detach().cpu().contiguous() for name, one in adapter.items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.absolute()) if base else None,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets),
        "use_rslora": settings.rank_stabilised,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{folder}: cannot be written: {error}") from error


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], LoraSettings]:
    """The tensors, by our names, and the settings of an adapter in PEFT's format.

    Targets are told by the tensors: what a configuration calls them may be a pattern.
    ModelFileError for anything but plain LoRA of linear maps.
    """
    path = folder / CONFIG
    try:
        config = read_json_object(path)
    except FileNotFoundError:
        raise ModelFileError(f"{folder}: no {CONFIG}; expected a LoRA adapter of PEFT") from None
    _refuse_other_adapters(config, path)
    try:
        stored = load_file(folder / WEIGHTS)
        tensors = {
            name.removeprefix(_PREFIX).removesuffix(".weight"): one for name, one in stored.items()
        }
        settings = LoraSettings(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            targets=tuple({name.split(".")[-2] for name in tensors if ".lora_" in name}),
            rank_stabilised=bool(config.get("use_rslora", False)),
        )
    except KeyError as error:
        raise ModelFileError(f"{path}: missing key {error}") from error
    except (TypeError, ValueError, OSError, SafetensorError, UsageError) as error:
        raise ModelFileError(f"{folder}: not a LoRA adapter: {error}") from error
    return tensors, settings


def _refuse_other_adapters(config: Mapping[str, Any], path: Path) -> None:
    """ModelFileError for an adapter that adds something else than `scale * B A`."""
    if config.get("peft_type") != "LORA":
        raise ModelFileError(f"{path}: peft_type = {config.get('peft_type')!r}: expected 'LORA'")
    for key in _UNSUPPORTED:
        if config.get(key) not in (None, False, "none", {}, []):
            raise ModelFileError(f"{path}: {key} = {config[key]!r}: expected none (plain LoRA)")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _KEEP_THE_BASE:
        raise ModelFileError(
            f"{path}: init_lora_weights = {start!r}: such an adapter belongs to a changed base; "
            f"expected true or one of {', '.join(_KEEP_THE_BASE)}"
        )
