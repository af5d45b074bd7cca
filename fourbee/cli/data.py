"""`fourbee data generate RECIPE`: the samples of fourbee-mini from seeded generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from fourbee.cli.options import Explain, Recipe, Set

data_app = typer.Typer(name="data", help="Make training and test samples.", no_args_is_help=True)


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
