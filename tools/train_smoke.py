"""The whole path of a model in a minute, with sums on two rods: `make train-smoke`.

Data, tokenizer, examples (SFT), a reward model, preferences (DPO), rewards (GRPO), distillation,
and the engine that serves. Each stage has to move its number.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from fourbee.benchmarks.stages import last
from fourbee.cli import run
from fourbee.engine.llm import LLM

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "abacus"
# What a run on two rods needs less of than the recipes' four.
SHORTER = {
    "sft": [
        "updates=400",
        "tokens_per_update=768",
        "validate_every=5",
        "validation.enough=0.3",
        "optimizer.decay_fraction=0.0",
    ],
    "reward": ["updates=40", "tokens_per_update=1536", "validate_every=40"],
    "preference": ["updates=15", "validate_every=15"],
    "grpo": ["updates=120", "prompts_per_rollout=32", "validate_every=120"],
    "distill": ["updates=80", "prompts_per_update=64", "validate_every=80"],
}


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/train-smoke")
    shutil.rmtree(root, ignore_errors=True)
    data = root / "data"
    started = time.monotonic()
    invoke("data", "abacus", RECIPES / "data.toml", f"output={data}", "digits=2", "pairs=4000")
    invoke(
        "train", "tokenizer", RECIPES / "tokenizer.toml", f"output={root / 'tokenizer'}",
        f"data={listed(data / 'conversations.jsonl')}",
    )  # fmt: skip
    conversations = data / "conversations-held-out.jsonl"
    tokenizer, start = f"tokenizer={root / 'tokenizer'}", f"init_from={root / 'sft' / 'model'}"
    train(root, "sft", conversations, f"data={listed(data / 'conversations.jsonl')}", tokenizer)
    pairs, tasks = (f"data={listed(data / name)}" for name in ("pairs.jsonl", "tasks.jsonl"))
    train(root, "reward", data / "pairs-held-out.jsonl", pairs, start)
    train(root, "preference", data / "pairs-held-out.jsonl", pairs, start)
    train(root, "grpo", data / "tasks-held-out.jsonl", tasks, start)
    train(
        root, "distill", conversations, f"tasks={listed(data / 'tasks.jsonl')}", start,
        f"teacher={root / 'grpo' / 'model'}", tokenizer,
    )  # fmt: skip
    invoke("report", *(root / stage for stage in SHORTER), "--output", root / "report.html")
    learned = last(root / "sft", "exact")
    checks = {
        "sft: right answers": (learned, 0.3),
        "reward: pairs told apart": (last(root / "reward", "accuracy"), 0.65),
        "preference: pairs told apart": (last(root / "preference", "accuracy"), 0.65),
        "grpo: right answers": (last(root / "grpo", "exact"), min(0.95, learned + 0.02)),
        "distill: right answers": (last(root / "distill", "exact"), min(0.95, learned + 0.02)),
        "served: right answers": (served(root / "grpo" / "model", conversations), 0.5),
    }
    failed = False
    for name, (value, least) in checks.items():
        failed |= value < least
        print(f"{name:32} {value:6.1%}  {'ok' if value >= least else f'below {least:.1%}'}")
    print(f"{time.monotonic() - started:.0f} seconds; {root / 'report.html'}")
    return 1 if failed else 0


def train(root: Path, stage: str, held_out: Path, *settings: str) -> None:
    """One stage by its recipe, shortened."""
    path = f"validation.path={held_out}"
    invoke(
        "train", stage, RECIPES / f"{stage}.toml", f"output={root / stage}", path,
        *SHORTER[stage], *settings,
    )  # fmt: skip


def invoke(*words: object) -> None:
    """A command line; words with an equals sign are settings of the recipe."""
    arguments: list[str] = []
    for word in map(str, words):
        arguments += ["--set", word] if "=" in word else [word]
    if code := run(arguments):
        sys.exit(code)


def listed(path: Path) -> str:
    """A list of one path, as TOML."""
    return json.dumps([str(path)])


def served(model: Path, samples: Path) -> float:
    """Share of held-out sums that the engine answers rightly."""
    llm = LLM.load(model)
    records = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()][:50]
    prompts = [llm.chat_format.encode(record["messages"][:1]) for record in records]
    answers = llm.generate(prompts)
    wanted = [record["messages"][1]["content"] for record in records]
    right = sum(one.text == other for one, other in zip(answers, wanted, strict=True))
    return right / len(wanted)


if __name__ == "__main__":
    sys.exit(main())
