"""Makes fourbee-mini anew: data, tokenizer, pretraining, fine-tuning, evaluation, packing.

    make mini                     about five hours on two cores
    make mini ARGS=--to-package   also replaces the model inside the package

Each stage that is done is kept in runs/mini: after an interruption the same command goes on where
it stopped; after a change of a recipe remove what it made.
A new run of the same recipes is a new model of the same quality, not the same bytes: sums of
floating-point numbers depend on the machine and its number of threads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fourbee.cli import run
from fourbee.model.checkpoint_files import quantize_checkpoint

ROOT = Path(__file__).resolve().parent.parent
RECIPES = "recipes/mini"
RUN = Path("runs/mini")
PACKED = RUN / "fourbee-mini"
EMBEDDED = ROOT / "fourbee" / "models" / "fourbee-mini"

# The model is the mean of its last stages: what one of them lost of another skill comes back.
AVERAGED = {"steady": 0.6, "settle": 0.25, "longer": 0.15}

# Each stage, and the file that it leaves when it is done.
STAGES = (
    (("data", "generate", f"{RECIPES}/data.toml"), RUN / "data" / "unseen.jsonl"),
    (("train", "tokenizer", f"{RECIPES}/tokenizer.toml"), RUN / "tokenizer" / "tokenizer.json"),
    (("train", "pretrain", f"{RECIPES}/pretrain.toml"), RUN / "pretrain/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/compare.toml"), RUN / "compare/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/sft.toml"), RUN / "sft/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/finish.toml"), RUN / "finish/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/longer.toml"), RUN / "longer/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/settle.toml"), RUN / "settle/model/tokenizer.json"),
    (("train", "sft", f"{RECIPES}/steady.toml"), RUN / "steady/model/tokenizer.json"),
    (
        ("data", "blind", "tests/mini/blind", str(RUN / "data/blind.jsonl")),
        RUN / "data/blind.jsonl",
    ),
    (
        ("data", "blind", "tests/mini/blind_2", str(RUN / "data/blind_2.jsonl")),
        RUN / "data/blind_2.jsonl",
    ),
)


def main() -> int:
    for words, done in STAGES:
        if done.is_file():
            say(f"already done: fourbee {' '.join(words)}")
            continue
        say(f"fourbee {' '.join(words)}")
        if code := run(list(words)):
            return code
    average(AVERAGED, RUN / "average")
    quantize_checkpoint(RUN / "average", PACKED)
    files = [
        str(RUN / "data" / f"{name}.jsonl") for name in ("held_out", "unseen", "blind", "blind_2")
    ]
    if code := run(["eval", *files, "--model", str(PACKED)]):
        return code
    if "--to-package" in sys.argv[1:]:
        shutil.rmtree(EMBEDDED, ignore_errors=True)
        shutil.copytree(PACKED, EMBEDDED)
        say(f"replaced {EMBEDDED.relative_to(ROOT)}")
    return 0


def average(shares: dict[str, float], output: Path) -> None:
    """The weighted mean of stages' weights (Wortsman et al. 2022, arXiv 2203.05482)."""
    folders = {RUN / stage / "model": share for stage, share in shares.items()}
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(next(iter(folders)), output)
    files = [(load_file(path / "model.safetensors"), share) for path, share in folders.items()]
    mean = {
        name: sum(share * tensors[name].astype(np.float32) for tensors, share in files)
        .astype(first.dtype)
        for name, first in files[0][0].items()
    }  # fmt: skip
    save_file(mean, output / "model.safetensors", metadata={"format": "pt"})


def say(line: str) -> None:
    print(f"make mini: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
