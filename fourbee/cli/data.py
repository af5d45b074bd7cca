"""`fourbee data generate|blind|check`: make samples, and look at those that one has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    from fourbee.training.inspection import Inspection

from fourbee.cli.options import Explain, Format, Model, Recipe, Set
from fourbee.foundation.errors import TrainingError, UsageError

data_app = typer.Typer(
    name="data", help="Make training and test samples, or check one's own.", no_args_is_help=True
)


@data_app.command()
def generate(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Write the files of a data recipe; the same recipe gives the same bytes."""
    from fourbee.cli.train import read_recipe
    from fourbee.training.generators.generate import DataRecipe, write_samples
    from fourbee.training.generators.generate import samples as samples_of
    from fourbee.training.generators.lexicon import load_lexicon

    settings = read_recipe(DataRecipe, recipe, assignments, explained)
    if settings is None:
        return
    lexicon, console = load_lexicon(), Console(stderr=True)
    for file in settings.files:
        total = sum(phase.samples for phase in file.phases)
        drawn = samples_of(settings.seed, file, lexicon)
        shown = track(drawn, f"{file.name}.jsonl", total, console=console)
        typer.echo(write_samples(settings.output / f"{file.name}.jsonl", shown))


@data_app.command()
def abacus(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Write sums in every form that a stage reads: conversations, pairs and tasks, to try it on."""
    from fourbee.cli.train import read_recipe
    from fourbee.training.generators.abacus import AbacusRecipe, write_abacus

    settings = read_recipe(AbacusRecipe, recipe, assignments, explained)
    if settings is not None:
        for path in write_abacus(settings):
            typer.echo(path)


@data_app.command()
def blind(
    templates: Annotated[Path, typer.Argument(help="Folder with one template file a skill.")],
    output: Annotated[Path, typer.Argument(help="The JSON lines file to write.")],
    fills: Annotated[int, typer.Option(min=1, help="Samples of each template with slots.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
) -> None:
    """Fill independently written test templates with names and numbers never trained on."""
    from fourbee.training.generators.blind import fill_templates
    from fourbee.training.generators.generate import write_samples
    from fourbee.training.generators.lexicon import load_lexicon

    typer.echo(write_samples(output, fill_templates(templates, load_lexicon(), fills, seed)))


@data_app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Files of samples, or dataset folders.")],
    model: Model = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's folder, instead of a model's own.")
    ] = None,
    format: Format = "auto",
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Count bad samples, do not end at the first; a line that is not JSON ends either.",
        ),
    ] = False,
) -> None:
    """Read samples as training does: what they are, how long, what is learned, what is wrong."""
    from fourbee.cli.tokens import pieces
    from fourbee.engine.checkpoint import open_checkpoint
    from fourbee.model.hub import resolve_model
    from fourbee.text.tokenizer import Tokenizer
    from fourbee.training.inspection import inspect
    from fourbee.training.sources import Source

    if tokenizer is None:
        reader = open_checkpoint(resolve_model(model)).tokenizer
    else:
        reader = Tokenizer.load(tokenizer)
    console = Console(highlight=False)
    for path in files:
        source = Source(path, format=format, bad_samples="skip" if skip_bad else "refuse")
        try:
            found = inspect(source, reader)
        except TrainingError as error:
            raise UsageError(str(error)) from None
        console.print(str(path), style="bold", soft_wrap=True)
        console.print(_summary(found), soft_wrap=True)
        for ids, learned in found.first.documents:
            console.print(pieces(reader, ids, learned, console.color_system is not None))


def _summary(found: Inspection) -> str:
    """Three lines of numbers."""
    forms = ", ".join(f"{count:,} {form}" for form, count in found.forms.items())
    points = ", ".join(f"{name} {tokens:,}" for name, tokens in found.percentiles().items())
    share = found.learned / max(1, found.tokens)
    return (
        f"{found.samples:,} samples: {forms}; {found.duplicates:,} duplicates, {found.bad:,} bad\n"
        f"{found.tokens:,} tokens, {found.learned:,} learned ({share:.1%})\n"
        f"tokens of a sample: {points}"
    )
