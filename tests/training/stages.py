"""Every stage of training over the same tiny data: recipes by name, for tests of all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fourbee.foundation.settings import build
from fourbee.training import stages
from fourbee.training.generators.abacus import AbacusRecipe, write_abacus

# KTO is the one preference loss without pairs.
STAGES = {**stages.STAGES, "kto": stages.STAGES["preference"]}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
}


def write_data(folder: Path) -> Path:
    """Sums on two rods in every form, and the pairs as single answers with labels."""
    write_abacus(AbacusRecipe(folder, digits=2, conversations=120, pairs=60, tasks=40, held_out=12))
    labelled = []
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        for side in ("chosen", "rejected"):
            one = {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            labelled.append(json.dumps(one) + "\n")
    (folder / "labelled.jsonl").write_text("".join(labelled))
    return folder


def table(name: str, data: Path, start: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A recipe's table: a run of six updates from the model of `start`."""
    common: dict[str, Any] = {
        "output": str(output),
        "init_from": str(start),
        "precision": "float32",
        "checkpoint_every": 2,
        "validate_every": 3,
        "log_every": 1,
        "threads": 1,
        "optimizer": {"learning_rate": 2e-3, "warmup_updates": 2},
    }
    packed = {"updates": 6, "tokens_per_update": 200, "tokens_per_pack": 100}
    tasks = [str(data / "tasks.jsonl")]
    own: dict[str, dict[str, Any]] = {
        "pretrain": {**packed, "data": [str(data / "conversations.jsonl")]},
        "sft": {**packed, "data": [str(data / "conversations.jsonl")]},
        "reward": {**packed, "data": [str(data / "pairs.jsonl")]},
        "preference": {**packed, "data": [str(data / "pairs.jsonl")]},
        "kto": {
            **packed,
            "data": [str(data / "labelled.jsonl")],
            "preference": {"loss": "kto"},
        },
        "grpo": {
            "data": tasks,
            "rewards": [{"name": "share"}],
            "updates": 6,
            "prompts_per_rollout": 4,
            "answers_per_prompt": 4,
            "updates_per_rollout": 2,
            "max_tokens": 5,
            "tokens_per_pack": 150,
            "policy": {"kl_weight": 0.01},
        },
        "distill": {
            **packed,
            "data": [str(data / "conversations.jsonl")],
            "tasks": tasks,
            "teacher": str(start),
            "on_policy": 0.5,
            "prompts_per_update": 8,
            "max_tokens": 5,
        },
    }
    return common | own[name] | changes


def run(name: str, settings: dict[str, Any], reporter: Any) -> Path:
    """Builds the recipe and runs the stage."""
    kind, stage = STAGES[name]
    return stage(build(kind, settings), reporter)


class Killed(BaseException):
    """Stands for the end of the process in the middle of a run."""


def digests(run_folder: Path) -> dict[str, str]:
    """sha256 of the last checkpoint's weights and optimizer, and of the exported weights."""
    last = max(path for path in run_folder.glob("update-*") if path.is_dir())
    files = [last / "model.safetensors", last / "optimizer.safetensors"]
    files.append(run_folder / "model" / "model.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
