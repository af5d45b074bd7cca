"""Fifty updates are the same however their work is cut up: the losses of a run, update by update.

Compared with each update in one pack are several packs whose gradients add up, a pack for every
sample, and each of these with activations computed again. AdamW in float32: Muon rounds its steps
to bfloat16, so that gradients alike in float32 part ways. What is left is the order of sums; mean
residuals were measured from 0 to 2e-6. They grow with the rate, as in all training: a reward model
at 1e-3, where its loss no longer falls steadily, parts by 2e-4 after ten equal updates.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fourbee.training import preference, run_plan
from fourbee.training.packing import Pack, make_packs

from .conftest import SilentReporter
from .stages import run, table

UPDATES, RESIDUAL = 50, 1e-5
WHOLE, SPLIT, UNPACKED = 400, 120, 0  # tokens of a pack; 0: a sample to a pack
RATES = {"pretrain": 1e-3, "sft": 1e-3, "reward": 3e-4, "preference": 3e-4}


def one_by_one(corpora, pieces, tokens_per_pack) -> list[Pack]:
    """A pack for every sample, instead of `make_packs`."""
    return [
        replace(pack, documents=tuple(index for _ in pack.documents))
        for index, piece in enumerate(pieces)
        for pack in make_packs(corpora, [piece], tokens_per_pack)
    ]


@pytest.fixture(scope="module")
def losses(data, start, tmp_path_factory):
    """The losses of a run by stage, tokens of a pack and checkpointing; each is run once."""
    kept: dict[tuple[str, int, bool], list[float]] = {}

    def losses_of(name: str, tokens_per_pack: int, checkpointing: bool) -> list[float]:
        key = name, tokens_per_pack, checkpointing
        if key not in kept:
            reporter = SilentReporter()
            settings = table(
                name, data, start, tmp_path_factory.mktemp("run"), updates=UPDATES,
                tokens_per_pack=tokens_per_pack or WHOLE, checkpointing=checkpointing,
                checkpoint_every=UPDATES,
                optimizer={"learning_rate": RATES[name], "warmup_updates": 5},
            )  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                if tokens_per_pack == UNPACKED:
                    for module in (run_plan, preference):
                        patch.setattr(module, "make_packs", one_by_one)
                run(name, settings, reporter)
            kept[key] = [record["loss"] for record in reporter.records]
        return kept[key]

    return losses_of


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("tokens_per_pack", [SPLIT, UNPACKED], ids=["split", "unpacked"])
@pytest.mark.parametrize("name", RATES)
def test_fifty_updates_are_the_same_however_they_are_cut(
    name, tokens_per_pack, checkpointing, losses
):
    whole, other = losses(name, WHOLE, False), losses(name, tokens_per_pack, checkpointing)
    assert len(whole) == UPDATES
    assert sum(whole[-10:]) < 0.95 * sum(whole[:10])  # it learns: there is a trajectory
    residuals = [abs(one - two) for one, two in zip(whole, other, strict=True)]
    assert 0 < sum(residuals) / UPDATES <= RESIDUAL  # 0: it was not cut at all
