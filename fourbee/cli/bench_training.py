"""`fourbee bench stages|shakespeare|training`: what training reaches, and how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from fourbee.foundation.errors import UsageError


def stages(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which of grpo, reward, distill, curriculum, languages; default: all but the last."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs with the seeds 0, 1, ...")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    recipes: Annotated[Path, typer.Option(help="The folder of abacus' recipes.")] = Path(
        "recipes/abacus"
    ),
    text: Annotated[
        list[str] | None,
        typer.Option(help="languages: LANGUAGE=FILE of plain text; once for each language."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Where runs are kept; done ones are not repeated.")
    ] = Path("runs/stages"),
    results: Annotated[
        Path | None, typer.Option(help="A folder for each experiment's tables, document and plots.")
    ] = None,
) -> None:
    """What each stage of training does to a tiny model that learns sums, with several seeds.

    The last line of standard output is one JSON document.
    """
    from fourbee.benchmarks import stages as bench
    from fourbee.benchmarks.report import described, machine, stages_table
    from fourbee.cli.train import ProgressReporter
    from fourbee.training.report import write_report

    chosen = experiments or [name for name in bench.EXPERIMENTS if name != "languages"]
    for name in chosen:
        if name not in bench.EXPERIMENTS:
            raise UsageError(f"experiment {name!r}: expected one of {', '.join(bench.EXPERIMENTS)}")
    texts = _texts(text)
    found: dict[str, Any] = {}
    with ProgressReporter() as reporter:
        for name in chosen:
            one = bench.Bench(recipes, output, threads, reporter, texts)
            found[name] = bench.EXPERIMENTS[name](one, range(seeds))
            table = stages_table(found[name])
            Console(stderr=True).print(f"{name}\n{table}", markup=False)
            if results:
                results.mkdir(parents=True, exist_ok=True)
                about = {"kind": "stages", "shape": name, "seeds": seeds}
                about |= {"machine": machine() | {"threads": threads}, "results": found[name]}
                (results / f"stages-{name}.json").write_text(json.dumps(about) + "\n")
                (results / f"stages-{name}.md").write_text(described(about) + "\n" + table)
                write_report(one.shown, results / f"stages-{name}.html")
    typer.echo(json.dumps({"experiment": found, "seeds": seeds, "threads": threads}))


def shakespeare(
    text: Annotated[Path, typer.Option(help="A text file, .gz too.")],
    minutes: Annotated[float, typer.Option(min=0.5, help="For both loops.")] = 30.0,
    output: Annotated[Path, typer.Option(help="Where texts, runs and curves are kept.")] = Path(
        "runs/shakespeare"
    ),
    results: Annotated[
        Path | None, typer.Option(help="A folder for the document and the plot of both curves.")
    ] = None,
) -> None:
    """Train on one text beside nanoGPT's loop written plainly, a thread each, for the same time.

    Also writes the texts and the tokenizer that recipes/shakespeare need. The last line of standard
    output is one JSON document.
    """
    from fourbee.benchmarks.report import machine
    from fourbee.benchmarks.shakespeare import compare, prepare
    from fourbee.training.report import write_curves

    prepare(text, output)
    curves = compare(output, 60 * minutes)
    for name, points in curves.items():
        shown = [f"{one['seconds']:.0f} s {one['loss']:.3f}" for one in points]
        Console(stderr=True).print(f"{name}: {', '.join(shown)}")
    if results:
        results.mkdir(parents=True, exist_ok=True)
        about = {"kind": "shakespeare", "minutes": minutes, "machine": machine() | {"threads": 1}}
        (results / "shakespeare.json").write_text(json.dumps(about | {"curves": curves}) + "\n")
        points_of = {
            name: [(one["seconds"], one["loss"]) for one in points]
            for name, points in curves.items()
        }
        title = "Held-out loss of Shakespeare, a character a token, by seconds"
        write_curves(title, points_of, results / "shakespeare.html")
    typer.echo(json.dumps(curves))


def training(
    shape: Annotated[
        Literal["shakespeare", "mini", "vocabulary"],
        typer.Option(help="The network; vocabulary: of 151,936 tokens, to compare memory."),
    ] = "shakespeare",
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each loop.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up.")] = 5,
    trl_python: Annotated[
        str | None,
        typer.Option(help="A Python that has trl, to compare with too.", show_default=False),
    ] = None,
) -> None:
    """Tokens a second and peak memory of training, beside nanoGPT's loop written plainly and TRL.

    In turn, in one run: same network, texts, optimizer and precision. The last line of standard
    output is one JSON document.
    """
    from fourbee.benchmarks.report import machine
    from fourbee.benchmarks.training import measure_training

    console = Console(stderr=True, highlight=False)
    found = measure_training(shape, precision, threads, rounds, trl_python, console.print)
    for name, times in found["times"].items():
        console.print(
            f"fourbee / {name}: {times['median']:.2f} ({times['low']:.2f} - {times['high']:.2f}) "
            f"of the tokens a second, {found['peak_share'][name]:.2f} of the memory"
        )
    about = {"kind": "training", "shape": shape, "precision": precision, "threads": threads}
    typer.echo(json.dumps(about | {"machine": machine()} | found))


def _texts(options: list[str] | None) -> dict[str, Path]:
    texts = {}
    for option in options or []:
        language, equals, path = option.partition("=")
        if not equals or not Path(path).is_file():
            raise UsageError(f"--text {option}: expected LANGUAGE=FILE of a file that is there")
        texts[language] = Path(path)
    return texts
