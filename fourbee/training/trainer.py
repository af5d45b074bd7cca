"""The one training loop: update after update, validate, log, checkpoint, resume exactly.

A stage (pretrain, sft) brings its recipe and which tokens count; everything else is here. What the
n-th update does depends on the recipe and n alone, so a run that was interrupted, at any moment,
ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.runtime import keep_freed_memory
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import DTYPES, TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from fourbee.training.corpus import Corpus
from fourbee.training.export import export_checkpoint, initial_weights
from fourbee.training.losses import next_token_loss
from fourbee.training.network import TrainableQwen3
from fourbee.training.optimizers import OptimizerSettings, build_optimizers, learning_rate_at
from fourbee.training.packing import Pack, Piece, make_packs
from fourbee.training.run_plan import DataSettings, plan_run
from fourbee.training.samples import Loss
from fourbee.training.sources import Source
from fourbee.training.tokenise import load_corpus


@dataclass(frozen=True)
class ModelShape:
    """The network of a run from scratch; the vocabulary comes from the tokenizer."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0

    def config(self, vocab_size: int) -> Qwen3Config:
        """The configuration with this vocabulary."""
        return Qwen3Config(vocab_size=vocab_size, torch_dtype="float32", **asdict(self))


@dataclass(frozen=True)
class Validation:
    """Held-out samples measured during training: loss, and samples whose answer is all right."""

    path: Path
    samples: int = 32  # of each skill


@dataclass(frozen=True)
class TrainRecipe:
    """One training run; every key of a recipe file is a field here."""

    output: Path
    data: tuple[Source, ...]
    tokenizer: Path  # folder with tokenizer.json
    init_from: Path | None = None  # checkpoint folder to start from; else `model` from scratch
    model: ModelShape = field(default_factory=ModelShape)
    validation: Validation | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    tokens_per_update: int = 4096
    tokens_per_pack: int = 4096  # what is in memory at once; does not change the result's meaning
    epochs: int = 1
    shuffle: bool = True
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of matrix products
    device: str = "cpu"
    seed: int = 0
    threads: int = 0  # 0 = torch's choice
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        counts = ("tokens_per_update", "tokens_per_pack", "epochs", "log_every", "validate_every")
        for name in (*counts, "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise UsageError(f"device = {self.device!r}: no CUDA device here; expected 'cpu'")


class Reporter(Protocol):
    """Who is told how a run goes."""

    def preparing(self, message: str) -> None: ...

    def update(self, done: int, total: int, record: Mapping[str, Any]) -> None: ...

    def validation(self, record: Mapping[str, Any]) -> None: ...


class Trainer:
    """A run: `train()` starts it or takes it up where its last checkpoint left it."""

    def __init__(self, recipe: TrainRecipe, loss: Loss, reporter: Reporter) -> None:
        self.recipe = recipe
        self.loss: Loss = loss
        self.reporter = reporter
        keep_freed_memory()
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self.ops = TorchOperations(recipe.device, DTYPES[recipe.precision])
        reporter.preparing("tokenising")
        cache = recipe.output / "cache"
        self.corpora = [load_corpus(one, recipe.tokenizer, loss, cache) for one in recipe.data]
        self.checks = _validation_corpora(recipe, cache)
        self.model = self._build_model().to(recipe.device)
        self.optimizers = build_optimizers(self.model.named_tensors(), recipe.optimizer)
        data = DataSettings(
            recipe.data,
            epochs=recipe.epochs,
            tokens_per_update=recipe.tokens_per_update,
            tokens_per_pack=recipe.tokens_per_pack,
            shuffle=recipe.shuffle,
        )
        positions = self.model.config.max_position_embeddings
        self.plan = plan_run(self.corpora, data, recipe.seed, positions)
        self.total = len(self.plan)

    def train(self) -> Path:
        """Runs to the end (or to Ctrl-C, which saves first) and exports; returns the export."""
        recipe = self.recipe
        exported = recipe.output / "model"
        progress = load_checkpoint(recipe.output, self.model, self.optimizers) or Progress()
        with _interruption() as interrupted, _log(recipe.output, progress) as log:
            while progress.update < self.total:
                progress = self._step(progress, log)
                last = progress.update == self.total
                if self.checks and (progress.update % recipe.validate_every == 0 or last):
                    self._validate(progress, log)
                if progress.update % recipe.checkpoint_every == 0 or last or interrupted():
                    self._save(progress)
                if interrupted() and not last:
                    raise KeyboardInterrupt
        self.reporter.preparing(f"writing {exported}")
        export_checkpoint(exported, self.model, recipe.tokenizer)
        return exported

    def _build_model(self) -> TrainableQwen3:
        recipe = self.recipe
        if recipe.init_from is None:
            with (recipe.tokenizer / "tokenizer.json").open(encoding="utf-8") as file:
                tokenizer = json.load(file)
            size = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
            return TrainableQwen3(recipe.model.config(_padded(size)), recipe.seed)
        config = Qwen3Config.load(recipe.init_from)
        model = TrainableQwen3(config, recipe.seed)
        initial_weights(model, recipe.init_from)
        return model

    def _step(self, progress: Progress, log: Callable[..., None]) -> Progress:
        """One update: gradients of all its packs over all its targets, clipped, applied."""
        started = time.monotonic()
        settings = self.recipe.optimizer
        packs = self.plan.packs(progress.update)
        targets = sum(pack.num_targets for pack in packs)
        total_loss = 0.0
        for pack in packs:
            result = next_token_loss(self._hidden(pack), self.model.head(), pack, self.ops)
            torch.autograd.backward(result.loss / targets)
            total_loss += result.loss.item()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), settings.clip or float("inf")
        ).item()
        rate = learning_rate_at(progress.update, self.total, settings)
        if not (norm < float("inf")):
            raise TrainingError(
                f"update {progress.update}: gradient norm {norm}, loss {total_loss / targets}; the "
                "weights are as before it; resume with a lower optimizer.learning_rate"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = sum(sum(pack.lengths) for pack in packs)
        elapsed = time.monotonic() - started
        progress = Progress(
            progress.update + 1, progress.tokens + tokens, progress.seconds + elapsed
        )
        record = {
            "update": progress.update,
            "tokens": progress.tokens,
            "loss": total_loss / targets,
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / elapsed,
            "seconds": progress.seconds,
            "seconds_of_update": elapsed,
        }
        self.reporter.update(progress.update, self.total, record)
        if progress.update % self.recipe.log_every == 0 or progress.update == self.total:
            log(record)
        return progress

    def _hidden(self, pack: Pack) -> torch.Tensor:
        device = self.ops.device
        ids = torch.from_numpy(pack.ids).to(device)
        positions = torch.from_numpy(pack.positions).to(device)
        hidden: torch.Tensor = self.model(ids, positions, DocumentAttention(pack.lengths), self.ops)
        return hidden

    def _validate(self, progress: Progress, log: Callable[..., None]) -> None:
        """Loss and share of samples whose every learned token is the likeliest (= greedy-exact)."""
        record: dict[str, Any] = {"update": progress.update}
        with torch.no_grad():
            for skill, corpus in self.checks.items():
                loss, targets, exact = 0.0, 0, 0
                for index in range(len(corpus)):
                    tokens = corpus.tokens(index)
                    (pack,) = make_packs([corpus], [Piece(0, index, 0, tokens)], tokens)
                    result = next_token_loss(self._hidden(pack), self.model.head(), pack, self.ops)
                    loss += result.loss.item()
                    targets += pack.num_targets
                    exact += int(result.correct.all())
                record[skill] = {"loss": loss / targets, "exact": exact / len(corpus)}
        log({"validation": record})
        self.reporter.validation(record)

    def _save(self, progress: Progress) -> None:
        keep = self.recipe.keep_checkpoints
        save_checkpoint(self.recipe.output, self.model, self.optimizers, progress, keep)


def _validation_corpora(recipe: TrainRecipe, cache: Path) -> dict[str, Corpus]:
    """The first samples of each skill, their answers alone as targets."""
    if recipe.validation is None:
        return {}
    path = recipe.validation.path
    if not path.is_file():
        raise TrainingError(f"validation.path {path}: no such file")
    by_skill: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        lines = by_skill.setdefault(json.loads(line).get("skill", "all"), [])
        if len(lines) < recipe.validation.samples:
            lines.append(line)
    corpora = {}
    for skill, lines in sorted(by_skill.items()):
        part = cache / f"validation-{skill}.jsonl"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        corpora[skill] = load_corpus(Source(part), recipe.tokenizer, "assistant", cache)
    return corpora


def _padded(size: int) -> int:
    """Vocabulary rows: the next multiple of 128, so that every width has one geometry."""
    return -(-size // 128) * 128


@contextmanager
def _log(folder: Path, progress: Progress) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Appends records to log.jsonl; what a killed run logged beyond its checkpoint is removed."""
    path = folder / "log.jsonl"
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("validation", record)["update"] <= progress.update:
                kept.append(line + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(kept), encoding="utf-8")
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield lambda record: print(json.dumps(record), file=file)


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
