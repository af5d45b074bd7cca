"""Texts that are held out, by skill: loss, tokens predicted, samples predicted exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fourbee.foundation.errors import TrainingError
from fourbee.text.chat_format import ChatFormat
from fourbee.training.learner import Learner
from fourbee.training.losses import targets_by_document
from fourbee.training.packing import cut, pack_documents
from fourbee.training.recipe import TrainRecipe
from fourbee.training.samples import Document, encode
from fourbee.training.sources import Sample, Told, good_samples

_TOKENS_PER_PACK = 4096
_LOGS_OWN = "update"  # stands beside the skills in a validation's record


class HeldOutTexts:
    """The first samples of each skill (a key of theirs); targets are what the assistant says."""

    def __init__(self, recipe: TrainRecipe, learner: Learner, told: Told) -> None:
        self._learner = learner
        # Of each skill its samples, in pieces where one is longer than the network's positions.
        self._skills: dict[str, list[list[Document]]] = {}
        settings = recipe.validation
        if settings is None:
            return
        chat, tokenizer = ChatFormat(learner.tokenizer), learner.tokenizer
        longest = learner.model.config.max_position_embeddings

        def keep(sample: Sample) -> str:
            skill = str(sample.get("skill", "all"))
            if skill == _LOGS_OWN:
                raise TrainingError(f"skill = {skill}: a log's own key; expected another name")
            if len(self._skills.get(skill, ())) < settings.samples:
                (document,) = encode(sample, "assistant", tokenizer, chat).documents
                self._skills.setdefault(skill, []).append(_pieces(document, longest))
            return skill

        good_samples(settings.source, keep, told)

    def measure(self) -> dict[str, Mapping[str, float]]:
        """Of each skill the loss a target, and the shares of targets and of samples predicted.

        Predicted is the likeliest token; a sample is when all of its targets are, which is what
        greedy generation would get exactly right.
        """
        return {skill: self._measure(self._skills[skill]) for skill in sorted(self._skills)}

    def _measure(self, samples: list[list[Document]]) -> Mapping[str, float]:
        documents = [piece for sample in samples for piece in sample]
        sample_of = [index for index, sample in enumerate(samples) for _ in sample]
        loss, targets, right, missed = 0.0, 0, 0, set()
        for pack in pack_documents(documents, _TOKENS_PER_PACK):
            result = self._learner.next_token(pack)
            loss += result.loss.item()
            targets += pack.num_targets
            counts = np.cumsum(targets_by_document(pack))[:-1]
            right += int(result.correct.sum())
            correct = np.split(result.correct.cpu().numpy(), counts)
            parts = zip(pack.documents, correct, strict=True)
            missed |= {sample_of[index] for index, part in parts if not part.all()}
        return {
            "loss": loss / targets,
            "accuracy": right / targets,
            "exact": (len(samples) - len(missed)) / len(samples),
        }


def _pieces(document: Document, longest: int) -> list[Document]:
    """A text that is longer than the network's positions, cut as in training."""
    ids, learned = document
    return [(ids[a:b], learned[a:b]) for a, b in cut(len(ids), longest, -1)]
