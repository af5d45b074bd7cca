"""`fourbee train STAGE RECIPE`: training from a recipe, always resumable."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fourbee.cli.options import Explain, Recipe, Set
from fourbee.foundation.errors import not_installed
from fourbee.foundation.settings import build, explain, read_toml, with_overrides

train_app = typer.Typer(
    name="train",
    help="Train a tokenizer or a model from a recipe. A run that was stopped goes on where it was.",
    no_args_is_help=True,
)

RecipeT = TypeVar("RecipeT")


@train_app.command()
def tokenizer(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Learn a byte-level BPE tokenizer from samples."""
    from fourbee.training.tokenizer import TokenizerRecipe, train_tokenizer

    settings = read_recipe(TokenizerRecipe, recipe, assignments, explained)
    if settings is not None:
        typer.echo(train_tokenizer(settings))


@train_app.command()
def pretrain(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Train on every token of the samples, from scratch or from a checkpoint."""
    _run("pretrain", recipe, assignments, explained)


@train_app.command()
def sft(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Supervised fine-tuning: train on what the assistant says, and on nothing else."""
    _run("sft", recipe, assignments, explained)


@train_app.command()
def reward(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Train a reward model on pairs of answers: what GRPO can learn from instead of rules."""
    _run("reward", recipe, assignments, explained)


@train_app.command()
def preference(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Preference optimisation: DPO and its family (preference.loss), on pairs of answers."""
    _run("preference", recipe, assignments, explained)


@train_app.command()
def grpo(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Reinforcement learning: answers are sampled, rewarded, and the better ones made likelier."""
    _run("grpo", recipe, assignments, explained)


@train_app.command()
def distill(recipe: Recipe, assignments: Set = None, explained: Explain = False) -> None:
    """Distillation: a student learns a teacher's distribution, on given texts or on its own."""
    _run("distill", recipe, assignments, explained)


def _run(name: str, path: Path, assignments: list[str] | None, explained: bool) -> None:
    _require_torch()
    from fourbee.training.stages import STAGES

    kind, stage = STAGES[name]
    settings = read_recipe(kind, path, assignments, explained)
    if settings is not None:
        with ProgressReporter() as reporter:
            typer.echo(stage(settings, reporter))


def read_recipe(
    kind: type[RecipeT], path: Path, assignments: list[str] | None, explained: bool
) -> RecipeT | None:
    """The settings of a recipe file; with `explained` they are printed and None is returned."""
    table = with_overrides(read_toml(path), assignments or [])
    settings = build(kind, table)
    if not explained:
        return settings
    for line in explain(settings, table, assignments or []):
        typer.echo(line)
    return None


def _require_torch() -> None:
    try:
        import fourbee.training.trainer  # noqa: F401
    except ModuleNotFoundError as error:
        raise not_installed("training", str(error.name), "train") from None


# What a line of progress tells beside the loss, where a stage has it.
_TOLD = ("accuracy", "margin", "reward", "reference_kl", "left_out")


class ProgressReporter:
    """A progress bar on stderr; where stderr is no terminal, a line now and then."""

    # Seconds between lines where there is no terminal.
    _PAUSE = 15.0

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=None, state="")
        self.line_at = 0.0
        self.rate = 0.0  # updates a second, smoothed

    def __enter__(self) -> ProgressReporter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def preparing(self, message: str) -> None:
        self.console.print(message)

    def update(self, done: int, total: int, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        seconds = record["seconds_of_update"]
        self.rate = 1 / seconds if not self.rate else 0.95 * self.rate + 0.05 / seconds
        left = timedelta(seconds=round((total - done) / self.rate))
        measures = [f"loss {record['loss']:.4g}"]
        measures += [f"{key} {record[key]:.3g}" for key in _TOLD if key in record]
        state = f"{'  '.join(measures)}  {record['tokens_per_second']:,.0f} tokens/s  {left} left"
        self.bar.update(self.task, completed=done, total=total, state=state)
        if not self.console.is_terminal and (now - self.line_at > self._PAUSE or done == total):
            self.line_at = now
            self.console.print(f"update {done}/{total}  {state}")

    def validation(self, record: Mapping[str, Any]) -> None:
        for name, values in record.items():
            if isinstance(values, Mapping):
                told = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
                self.console.print(f"update {record['update']}  {name}: {told}")
