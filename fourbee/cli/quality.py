"""`fourbee bench quality`: what each quantised form of a model's weights costs, measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fourbee.foundation.errors import UsageError

if TYPE_CHECKING:
    from fourbee.evaluation.quality import Quality
    from fourbee.text.tokenizer import Tokenizer

# The skills of fourbee-mini, as `recipes/mini/data.toml` weighs them for its held-out samples.
_MIXTURE = {"copy": 1, "passage": 1, "passage_absent": 1, "tools": 2, "arithmetic": 1,
            "greeting": 1, "about": 1, "refusal": 1, "completion": 1}  # fmt: skip
_CALIBRATION_SAMPLES = 400


def quality(
    model: Annotated[
        str | None, typer.Option(help="A checkpoint, GGUF file or id; default: fourbee-mini.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines of samples to ask; default: generated, held out."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="At most so many prompts.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the generated samples.")] = 0,
    calibration: Annotated[
        Path | None,
        typer.Option(help="For GPTQ: a .jsonl or .txt; default: generated, as training has them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for the tables and the document.")
    ] = None,
) -> None:
    """What int8, int4 and GGUF's types cost: equal greedy answers, likeliest tokens, KL, errors.

    Against the model's own weights in float32. The last line of standard output is one JSON
    document.
    """
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.evaluation import quality as measuring
    from fourbee.kernels.backends import native_built
    from fourbee.model.gguf_checkpoint import open_source
    from fourbee.model.hub import resolve_model

    source = resolve_model(model)
    checkpoint = open_checkpoint(source)
    checkpoint.check()
    tensors, tokenizer = open_source(source), checkpoint.tokenizer
    asked = _prompts(tokenizer, prompts, samples, seed)
    found: dict[str, Quality] = {}
    with _bar(len(asked)) as bar:
        network, answers = measuring.reference(checkpoint, asked)
        for form in measuring.forms(tensors, _calibration(tokenizer, calibration, seed)):
            found[form.name] = measuring.measure(network, tensors, form, answers, bar(form.name))
        for name, quantize, kv_type in _served() if native_built() else ():
            found[name] = measuring.measure_served(
                network, checkpoint, quantize, answers, bar(name), kv_type
            )
    errors = measuring.weight_errors()
    required = requirements(found, errors)
    text = table(found) + "\n" + error_table(errors) + "\n" + _verdicts(required)
    document = json.dumps({
        "kind": "quality", "model": model or "fourbee-mini", "seed": seed,
        "prompts": str(prompts or "generated, held out"), "samples": len(asked),
        "forms": {name: asdict(one) for name, one in found.items()},
        "weight_errors": errors, "required": required,
    })  # fmt: skip
    if output:
        output.mkdir(parents=True, exist_ok=True)
        name = path.stem if (path := Path(model or "fourbee-mini")).is_file() else path.name
        (output / f"quality-{name}.md").write_text(text)
        (output / f"quality-{name}.json").write_text(document + "\n")
    typer.echo(text)
    typer.echo(document)


def _served() -> Iterator[tuple[str, str, str]]:
    """What is measured as `serve` runs it: a name, --quantize and --kv-type."""
    from fourbee.kernels.backends import QUANTIZATIONS

    for kv_type in ("bfloat16", "int8", "int4"):
        yield f"--kv-type {kv_type}", "none", kv_type
    for quantize in QUANTIZATIONS[1:]:
        yield f"--quantize {quantize}, as served", quantize, "auto"


def table(found: Mapping[str, Quality]) -> str:
    """Markdown, a form a row."""
    lines = [
        "| weights | bits | weight error | greedy answers equal | likeliest token equal "
        "| KL, nats/token |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        bits = "" if one.bits_per_weight is None else f"{one.bits_per_weight:.2f}"
        error = "" if one.weight_error is None else f"{one.weight_error:.4f}"
        lines.append(
            f"| {name} | {bits} | {error} | {one.greedy_equal:.1%} | {one.top1_equal:.2%} "
            f"| {one.mean_kl:.2e} ± {one.kl_error:.0e} |"
        )
    any_one = next(iter(found.values()))
    return "\n".join(lines) + f"\n\n{any_one.prompts} prompts, {any_one.tokens} tokens.\n"


def error_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, a distribution of weights a row."""
    names = list(next(iter(errors.values())))
    lines = [f"| weights | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {distribution} | {' | '.join(f'{by[name]:.4f}' for name in names)} |"
        for distribution, by in errors.items()
    ]
    return "\n".join(lines) + "\n"


def requirements(
    found: Mapping[str, Quality], errors: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """What is asked of the forms, what was found, and whether that is enough."""
    int4, rival = found["int4"], found["GGUF Q4_0"]
    asked = [
        ("int8: greedy answers equal", found["int8"].greedy_equal, ">=", 0.99),
        ("int4: greedy answers equal", int4.greedy_equal, ">=", 0.95),
        ("int4: KL, against Q4_0's", int4.mean_kl, "<=", rival.mean_kl),
    ]
    asked += [
        (
            f"--kv-type {kind}: greedy answers equal",
            found[f"--kv-type {kind}"].greedy_equal,
            ">=",
            bound,
        )
        for kind, bound in (("int8", 0.99), ("int4", 0.95))
        if f"--kv-type {kind}" in found
    ]
    asked += [
        (f"int4: error of {distribution} weights, against Q4_0's", by["int4"], "<=",
         by["GGUF Q4_0"])
        for distribution, by in errors.items()
    ]  # fmt: skip
    return [
        {"what": what, "found": value, "asked": f"{sign} {bound:.4g}",
         "met": value >= bound if sign == ">=" else value <= bound}
        for what, value, sign, bound in asked
    ]  # fmt: skip


def _verdicts(required: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| asked | found | bound | |", "|---|---|---|---|"]
    lines += [
        f"| {one['what']} | {one['found']:.4g} | {one['asked']} "
        f"| {'met' if one['met'] else '**missed**'} |"
        for one in required
    ]
    return "\n".join(lines) + "\n"


def _prompts(tokenizer: Tokenizer, path: Path | None, count: int, seed: int) -> list[list[int]]:
    from fourbee.evaluation.samples import prompt_ids
    from fourbee.text.chat_format import ChatFormat
    from fourbee.training.sources import Source, read_samples

    chat = ChatFormat(tokenizer)
    if path is None:
        drawn = _generated(count, seed, held_out=True)
        return [prompt_ids(tokenizer, chat, sample) for sample in drawn]
    if not path.is_file():
        raise UsageError(f"--prompts {path}: no such file", "prompts")
    asked = []
    for where, sample in itertools.islice(read_samples(Source(path)), count):
        if not sample.get("messages") and "prompt" not in sample:
            raise UsageError(f'{where}: expected the key "messages" or "prompt"', "prompts")
        asked.append(prompt_ids(tokenizer, chat, sample))
    if not asked:
        raise UsageError(f"--prompts {path}: holds no samples", "prompts")
    return asked


def _calibration(tokenizer: Tokenizer, path: Path | None, seed: int) -> list[list[int]]:
    from fourbee.model.calibrated import MOST_TOKENS
    from fourbee.text.chat_format import ChatFormat
    from fourbee.training.calibration import calibration_sequences
    from fourbee.training.samples import encode_sample

    if path is not None:
        return calibration_sequences(path, tokenizer, MOST_TOKENS)
    chat = ChatFormat(tokenizer)
    drawn = _generated(_CALIBRATION_SAMPLES, seed, held_out=False)
    return [encode_sample(sample, tokenizer, chat)[0] for sample in drawn]


def _generated(count: int, seed: int, held_out: bool) -> list[Mapping[str, Any]]:
    from fourbee.training.generators.generate import DataFile, Phase, samples
    from fourbee.training.generators.lexicon import load_lexicon

    file = DataFile("quality", (Phase(count, _MIXTURE),), held_out)
    return [json.loads(sample.to_json()) for sample in samples(seed, file, load_lexicon())]


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """A bar on stderr; called with a form's name it gives what is to be called a prompt."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("greedy answers", total=None)

        def form(name: str) -> Any:
            bar.reset(task, description=name, total=total)
            return lambda: bar.advance(task)

        yield form
