"""How fast this machine runs a model today: reading a prompt, and writing alone and in a batch.

    make bench                              fourbee-mini
    make bench ARGS="--model FOLDER"        another model

Medians of several rounds with their spread. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

from fourbee.engine.llm import LLM
from fourbee.engine.sampling import SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.model.hub import resolve_model

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder or a pulled model's id")
    parser.add_argument("--backend", default="auto", help="native, torch or numpy")
    parser.add_argument("--quantize", default="none", help="none, int8 or int4")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of the answer")
    options = parser.parse_args()
    # No kept caches: each round reads its prompt.
    llm = LLM.load(
        resolve_model(options.model),
        settings=EngineSettings(max_idle_tokens=0),
        backend=options.backend,
        quantize=options.quantize,
    )
    prompt = [token_id % 200 for token_id in range(options.prompt)]
    results = {
        "prefill": measure(lambda: run(llm, [prompt], 1), options.prompt),
        "decode, batch 1": measure(lambda: run(llm, [prompt[:16]], options.output), options.output),
        "decode, batch 8": measure(
            lambda: run(llm, [prompt[:16]] * 8, options.output), 8 * options.output
        ),
    }
    for name, values in results.items():
        low, high = values["low"], values["high"]
        print(f"{name:18} {values['median']:10,.0f} tokens/s  ({low:,.0f} - {high:,.0f})")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"model": options.model or "fourbee-mini", "backend": options.backend,
                      "quantize": options.quantize,
                      "tokens_per_second": results,
                      "machine": machine, "commit": commit}))  # fmt: skip


def run(llm: LLM, prompts: list[list[int]], tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    llm.generate(prompts, params)


def measure(work: Callable[[], None], tokens: int) -> dict[str, float]:
    """Tokens a second: median, lowest and highest of the rounds after one to warm up."""
    work()
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        rates.append(tokens / (time.perf_counter() - started))
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}


if __name__ == "__main__":
    main()
