"""Preference optimisation: DPO and its family, on pairs of answers or on single, labelled ones.

The reference is the network before its first update. Its log-probabilities of the training pairs
are computed once, before that, so that no second network is in memory; KTO's baseline needs them
of answers to other prompts too, and keeps one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourbee.training.corpus import Corpus
from fourbee.training.data_stage import DataRecipe, DataStage, held_out_corpus
from fourbee.training.learner import Learner
from fourbee.training.losses import sum_by_document, targets_by_document
from fourbee.training.packing import Pack, Piece, make_packs, pack_documents, whole_samples
from fourbee.training.preference_losses import (
    PREFERENCE_LOSSES,
    Answers,
    PreferenceSettings,
    PreferenceValues,
    preference_values,
    unpaired_values,
)
from fourbee.training.samples import Document, Loss
from fourbee.training.sources import Told
from fourbee.training.stage import Batch, PartLoss, means
from fourbee.training.trainer import Reporter, Trainer

_PAUSE = 20.0  # seconds between two words about the reference's work


@dataclass(frozen=True, kw_only=True)
class PreferenceRecipe(DataRecipe):
    """A run over preferences."""

    preference: PreferenceSettings = field(default_factory=PreferenceSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_enough("preferences have no exact answers")


@dataclass(frozen=True)
class PreferencePart:
    """Answers side by side: of pairs chosen and rejected in turn."""

    pack: Pack
    reference: Tensor | None  # [documents]: the reference's log-probability of each answer
    desirable: Tensor | None = None  # [documents]: of single answers
    baseline: Tensor | None = None  # KTO's, one number for the whole update


class PreferenceData:
    """Preferences as documents, with what the reference thinks of each where a loss needs it."""

    def __init__(
        self, corpora: Sequence[Corpus], learner: Learner, tokens_per_pack: int,
        known: Sequence[Piece],  # those that the reference is asked about, now
        told: Told = lambda _: None,  # hears now and then how far that is
    ) -> None:  # fmt: skip
        self.corpora = tuple(corpora)
        self._tokens_per_pack = tokens_per_pack
        self._known: list[Tensor] | None = None
        if known:
            self._known = [
                self._logps(learner, index, [one for one in known if one.corpus == index], told)
                for index in range(len(self.corpora))
            ]

    def parts(
        self, pieces: Sequence[Piece], baseline: Tensor | None = None
    ) -> list[PreferencePart]:
        """Samples as parts of an update."""
        packs = make_packs(self.corpora, pieces, self._tokens_per_pack)
        return [self._part(pack, pieces, baseline) for pack in packs]

    def _part(self, pack: Pack, pieces: Sequence[Piece], baseline: Tensor | None) -> PreferencePart:
        samples = [pieces[index] for index in pack.documents]
        reference = None
        if self._known is not None:
            rows = _rows(self.corpora, samples)
            reference = torch.stack(
                [self._known[one.corpus][row] for one, row in zip(samples, rows, strict=True)]
            )
        labels = [bool(self.corpora[one.corpus].labels[one.sample]) for one in samples]
        desirable = torch.tensor(labels)
        return PreferencePart(pack, reference, desirable, baseline)

    def _logps(self, learner: Learner, corpus: int, pieces: Sequence[Piece], told: Told) -> Tensor:
        """Log-probability of each document of these samples of a corpus, as the network is now."""
        logps = torch.zeros(len(self.corpora[corpus].lengths))
        packs = make_packs(self.corpora, pieces, self._tokens_per_pack)
        told_at = time.monotonic()
        with torch.no_grad():
            for number, pack in enumerate(packs):
                if time.monotonic() - told_at > _PAUSE:
                    told(f"{self.corpora[corpus].source.path}: {number / len(packs):.0%}")
                    told_at = time.monotonic()
                rows = _rows(self.corpora, [pieces[index] for index in pack.documents])
                logps[rows] = sum_by_document(learner.logps(pack), pack).float().cpu()
        return logps


class PreferenceStage(DataStage):
    """A loss of the family, over all pairs (or answers) of the update."""

    def __init__(self, recipe: PreferenceRecipe, learner: Learner, reporter: Reporter) -> None:
        self.recipe = recipe
        self.form = PREFERENCE_LOSSES[recipe.preference.loss]
        kind: Loss = "pair" if self.form.paired else "label"
        super().__init__(recipe, kind, learner, reporter)
        if self.form.reference:
            reporter.preparing("log-probabilities of the reference")
        # The network as it is now is the reference.
        size, held_out = recipe.tokens_per_pack, held_out_corpus(recipe, kind, learner, reporter)
        drawn, others = self.plan.drawn(), whole_samples(held_out)
        if not self.form.reference:
            drawn, others = [], []
        self.data = PreferenceData(self.plan.corpora, learner, size, drawn, reporter.preparing)
        self.held_out = PreferenceData(held_out, learner, size, others) if held_out else None
        self.reference = None if self.form.paired else learner.frozen()
        alone = int((np.diff(self.plan.offsets) == 1).sum())
        if alone and not self.form.paired:
            reporter.preparing(
                f"tokens_per_update = {recipe.tokens_per_update}: {alone} of {len(self.plan)} "
                "updates hold one answer; their baseline, of answers to other prompts, is 0"
            )

    def batch(self, update: int) -> Batch:
        pieces = self.plan.samples(update)
        baseline = None if self.reference is None else self._baseline(self.data, pieces)
        parts = self.data.parts(pieces, baseline)
        facts = {} if baseline is None else {"baseline": float(baseline)}
        return Batch(parts, len(pieces), self.plan.tokens(update), facts)

    def loss(self, part: PreferencePart) -> PartLoss:
        values = self._values(part)
        chosen, rejected = values.chosen_rewards, values.rejected_rewards
        sums: dict[str, tuple[float, float]] = {
            "chosen_reward": (float(chosen.sum()), len(chosen)),
            "rejected_reward": (float(rejected.sum()), len(rejected)),
        }
        if self.form.paired:
            sums["margin"] = (float(values.margins.sum()), len(chosen))
            sums["accuracy"] = (float(values.accurate.sum()), len(chosen))
        return PartLoss(values.loss.sum(), sums)

    def validate(self) -> Mapping[str, Mapping[str, float]]:
        if self.held_out is None:
            return {}
        pieces = whole_samples(self.held_out.corpora)
        baseline = None if self.reference is None else self._baseline(self.held_out, pieces)
        results = [self.loss(part) for part in self.held_out.parts(pieces, baseline)]
        measured = means(results, len(pieces))
        if not self.form.paired and {"chosen_reward", "rejected_reward"} <= measured.keys():
            measured["margin"] = measured["chosen_reward"] - measured["rejected_reward"]
        return {"held_out": measured}

    def _values(self, part: PreferencePart) -> PreferenceValues:
        pack, settings = part.pack, self.recipe.preference
        logps = sum_by_document(self.learner.logps(pack), pack)
        tokens = torch.from_numpy(targets_by_document(pack)).to(logps)
        reference = None if part.reference is None else part.reference.to(logps)
        answers = Answers(logps, tokens, reference)
        if not self.form.paired:
            assert part.desirable is not None and part.baseline is not None
            desirable = part.desirable.to(logps.device)
            return unpaired_values(answers, desirable, settings, part.baseline)
        return preference_values(_every_other(answers, 0), _every_other(answers, 1), settings)

    def _baseline(self, data: PreferenceData, pieces: Sequence[Piece]) -> Tensor:
        """The mean log-ratio of answers to other prompts than theirs; 0 where there are none."""
        assert self.reference is not None
        documents = [_document(data.corpora, piece) for piece in pieces]
        positions = self.learner.model.config.max_position_embeddings
        swapped = swapped_answers(documents, min(positions, self.recipe.tokens_per_pack))
        ratio = torch.zeros(())
        with torch.no_grad():
            for pack in pack_documents(swapped, self.recipe.tokens_per_pack):
                policy, reference = self.learner.logps(pack), self.reference.logps(pack)
                ratio = ratio + (policy - reference).sum().float().cpu()
        return ratio / max(1, len(swapped))


def preference(recipe: PreferenceRecipe, reporter: Reporter) -> Path:
    """Runs the recipe to its end; returns the exported checkpoint folder."""
    return Trainer(
        "preference", recipe, lambda learner, told: PreferenceStage(recipe, learner, told), reporter
    ).train()


def _rows(corpora: Sequence[Corpus], samples: Sequence[Piece]) -> list[int]:
    """The documents, in their corpus, of samples that come once for each of their documents."""
    rows, seen = [], dict.fromkeys(samples, 0)
    for one in samples:
        rows.append(one.sample * corpora[one.corpus].parts + seen[one] % corpora[one.corpus].parts)
        seen[one] += 1
    return rows


def _every_other(answers: Answers, first: int) -> Answers:
    reference = answers.reference
    return Answers(
        answers.logps[first::2],
        answers.tokens[first::2],
        None if reference is None else reference[first::2],
    )


def _document(corpora: Sequence[Corpus], piece: Piece) -> Document:
    corpus = corpora[piece.corpus]
    (span,) = corpus.spans(piece.sample, piece.first, piece.stop)
    return corpus.ids[span].tolist(), corpus.learned[span].tolist()


def swapped_answers(documents: Sequence[Document], longest: int) -> list[Document]:
    """Each answer after the nearest earlier document's prompt that is another one; around the end.

    Left out are answers that no other prompt is short enough for: `longest` tokens for both.
    """
    parts = [(ids[: mask.index(True)], ids[mask.index(True) :]) for ids, mask in documents]
    swapped: list[Document] = []
    for index, (own, answer) in enumerate(parts):
        for other, _ in reversed(parts[index + 1 :] + parts[:index]):
            if other != own and len(other) + len(answer) <= longest:
                swapped.append(([*other, *answer], [False] * len(other) + [True] * len(answer)))
                break
    return swapped
