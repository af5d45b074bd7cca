"""The one training loop: update after update, validate, log, checkpoint, resume exactly.

A stage (`stage.py`) brings batches and their loss; everything else is here. What the n-th update
does depends on the recipe, n and the weights alone, so a run that was interrupted, at any moment,
ends with the same weights as one that was not.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from fourbee.foundation.runtime import keep_freed_memory
from fourbee.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fourbee.training.environment import write_environment
from fourbee.training.learner import Learner
from fourbee.training.optimizers import build_optimizers, learning_rate_at
from fourbee.training.recipe import TrainRecipe
from fourbee.training.rollouts import encode_prompts, sample_texts
from fourbee.training.run_folder import expect_folder, keep_contents, own_run
from fourbee.training.run_log import Log, open_log
from fourbee.training.spike_guard import SpikeGuard
from fourbee.training.stage import Batch, Stage, Sums, merged


class Reporter(Protocol):
    """Who is told how a run goes."""

    def preparing(self, message: str) -> None: ...

    def update(self, done: int, total: int, record: Mapping[str, Any]) -> None: ...

    def validation(self, record: Mapping[str, Any]) -> None: ...


StageBuilder = Callable[[Learner, Reporter], Stage]


class Trainer:
    """A run: `train()` starts it or takes it up where its last checkpoint left it."""

    def __init__(
        self,
        name: str,
        recipe: TrainRecipe,
        build: StageBuilder,
        reporter: Reporter,
        scored: bool = False,
    ) -> None:
        """`build` makes the stage, called `name`, around the network before its first update.

        `scored`: the network is a reward model's.
        """
        self.name = name
        self.recipe = recipe
        self.reporter = reporter
        with own_run(name, recipe):  # refused before data and weights are read
            recipe.expect_paths()
            keep_contents(recipe)
        keep_freed_memory()
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self.learner = Learner.from_recipe(recipe, scored)
        encode_prompts(self.learner, recipe.samples)  # refused now, not at the first validation
        self.stage = build(self.learner, reporter)
        self.total = self.stage.updates
        self.parameters = self.learner.model.trained_tensors()
        self.optimizers = build_optimizers(self.parameters, recipe.optimizer)
        self.guard = SpikeGuard(recipe.guard)
        self.ended = False  # before its last update, as validation says that it is enough

    def train(self) -> Path:
        """Runs to the end (or to Ctrl-C, which saves first) and exports; returns the export."""
        recipe = self.recipe
        exported = recipe.output / "model"
        with own_run(self.name, recipe):
            write_environment(recipe.output, recipe.device)
            progress = self._resume()
            with _interruption() as interrupted, open_log(recipe.output, progress.update) as log:
                self._run(progress, interrupted, log)
            self.reporter.preparing(f"writing {exported}")
            expect_folder(recipe.output)
            self.stage.export(exported)
        return exported

    def _run(self, progress: Progress, interrupted: Callable[[], bool], log: Log) -> None:
        recipe, due = self.recipe, False
        while progress.update < self.total and not self.ended:
            progress = self._update(progress, log)
            last = progress.update == self.total
            if progress.update % recipe.validate_every == 0 or last:
                self.ended = self._validate(progress, log)
                last |= self.ended
            due |= progress.update % recipe.checkpoint_every == 0 or last
            if (due or interrupted()) and (last or self.stage.may_save(progress.update)):
                self._save(progress)
                due = False
                if interrupted() and not last:
                    raise KeyboardInterrupt

    def _update(self, progress: Progress, log: Log) -> Progress:
        """One update: gradients of all its parts over all they count, clipped, applied."""
        started = time.monotonic()
        batch = self.stage.batch(progress.update)
        loss, sums = self._gradients(batch)
        settings = self.recipe.optimizer
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), settings.clip or float("inf")
        ).item()
        rate = learning_rate_at(progress.update, self.total, settings)
        left_out = self.guard.refuses(norm, progress.update, loss)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            if not left_out:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        elapsed = time.monotonic() - started
        progress = Progress(
            progress.update + 1, progress.tokens + batch.tokens, progress.seconds + elapsed
        )
        record = {
            "update": progress.update,
            "tokens": progress.tokens,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            **batch.facts,
            **merged(sums),
            "tokens_per_second": batch.tokens / elapsed,
            "seconds": progress.seconds,
            "seconds_of_update": elapsed,
        }
        if left_out:
            record["left_out"] = self.guard.left_out
        self.reporter.update(progress.update, self.total, record)
        told = progress.update % self.recipe.log_every == 0 or progress.update == self.total
        if told or left_out:
            log(record)
        return progress

    def _gradients(self, batch: Batch) -> tuple[float, list[Sums]]:
        """Adds up the gradients of a batch's mean loss; returns it, and what is told of parts."""
        total, sums = 0.0, []
        for part in batch.parts:
            result = self.stage.loss(part)
            torch.autograd.backward(result.loss / batch.count)
            total += result.loss.item()
            sums.append(result.sums)
        return total / batch.count, sums

    def _validate(self, progress: Progress, log: Log) -> bool:
        """Measures, logs, and says whether the run has learned enough."""
        with torch.no_grad():
            measured = self.stage.validate()
        if measured:
            record = {"update": progress.update, **measured}
            log({"validation": record})
            self.reporter.validation(record)
        if self.recipe.samples.prompts:
            texts = sample_texts(self.learner, self.recipe.samples)
            log({"samples": {"update": progress.update, "items": texts}})
        exact = [values["exact"] for values in measured.values() if "exact" in values]
        return self._enough > 0 and bool(exact) and statistics.mean(exact) >= self._enough

    def _resume(self) -> Progress:
        found = load_checkpoint(self.recipe.output, self.parameters, self.optimizers)
        if found is None:
            return Progress()
        progress, state = found
        self.guard.restore(state["guard"])
        self.ended = state["ended"] and state.get("enough", self._enough) == self._enough
        return progress

    @property
    def _enough(self) -> float:
        return self.recipe.validation.enough if self.recipe.validation else 0.0

    def _save(self, progress: Progress) -> None:
        recipe = self.recipe
        expect_folder(recipe.output)
        state = {"guard": self.guard.state(), "ended": self.ended, "enough": self._enough}
        save_checkpoint(
            recipe.output, self.parameters, self.optimizers, progress, recipe.keep_checkpoints,
            state,
        )  # fmt: skip


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one ends the process at once."""
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
