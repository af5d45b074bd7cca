"""Distillation: divergences and gradients in chunks against float64 autograd of whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fourbee.foundation.errors import UsageError
from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.training import losses
from fourbee.training.distillation_losses import DistillationSettings, distillation_loss
from fourbee.training.losses import token_logps

from .test_losses import VOCAB, close, random_head, random_pack

TEACHER_WIDTH = 40
SETTINGS = {
    "forward_kl": DistillationSettings(),
    "forward_kl_warm": DistillationSettings(temperature=2.0),
    "reverse_kl": DistillationSettings("reverse_kl", temperature=0.8),
    "jsd": DistillationSettings("jsd"),
    "jsd_0.1": DistillationSettings("jsd", beta=0.1, temperature=1.5),
}


def teacher(tokens: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(tokens, TEACHER_WIDTH, generator=generator) * scale
    weight = torch.randn(VOCAB, TEACHER_WIDTH, generator=generator) / TEACHER_WIDTH**0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def whole(p: Tensor, q: Tensor, chosen: DistillationSettings) -> Tensor:
    """The definitions, from two whole matrices of probabilities."""

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one / other).log()).sum()

    if chosen.divergence == "forward_kl":
        return kl(p, q)
    if chosen.divergence == "reverse_kl":
        return kl(q, p)
    beta = chosen.beta
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(losses, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_values_and_gradients_are_those_of_the_definition(few_rows, chosen, dtype):
    pack = random_pack(45, share=0.6)
    hidden, weight = random_head(45, scale=2.0)
    known = teacher(45, scale=2.0)
    rows = torch.from_numpy(pack.learned.nonzero()[0]) - 1

    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    t = chosen.temperature
    p = (known[0].detach().double()[rows] @ known[1].detach().double().T / t).softmax(-1)
    expected = whole(p, (exact[0][rows] @ exact[1].T / t).softmax(-1), chosen)
    expected = expected / pack.num_targets
    expected.backward()

    mine = [one.detach().to(dtype).requires_grad_() for one in (hidden, weight)]
    theirs = [one.detach().to(dtype).requires_grad_() for one in known]
    found = distillation_loss(
        mine[0], Linear(mine[1]), theirs[0], Linear(theirs[1]), pack,
        TorchOperations("cpu", dtype), chosen,
    )  # fmt: skip
    found = found / pack.num_targets
    found.backward()
    wide = dtype == torch.float64
    close(found, expected, 1e-12 if wide else 1e-6)
    for one, other in zip(mine, exact, strict=True):
        close(one.grad, other.grad, 1e-12 if wide else 1e-6)
    assert theirs[0].grad is theirs[1].grad is None


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_student_that_is_its_teacher_has_nothing_to_learn(chosen):
    pack = random_pack(30, share=1.0)
    hidden, weight = random_head(30)
    head = Linear(weight)
    ops = TorchOperations("cpu", torch.float32)
    loss = distillation_loss(hidden, head, hidden.detach(), head, pack, ops, chosen)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert weight.grad.abs().max() < 1e-5


def test_a_certain_teacher_makes_it_cross_entropy():
    """Forward KL to a distribution that is one token is that token's negative log-probability."""
    pack = random_pack(30, share=1.0)
    hidden, weight = random_head(30)
    one_hot = torch.eye(VOCAB)[torch.from_numpy(pack.ids).roll(-1)] * 1e4
    ops = TorchOperations("cpu", torch.float32)
    head = Linear(weight)
    loss = distillation_loss(
        hidden, head, one_hot, Linear(torch.eye(VOCAB)), pack, ops, DistillationSettings()
    )
    torch.testing.assert_close(loss, -token_logps(hidden, head, pack, ops).sum())


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_extremes_stay_finite(chosen):
    pack = random_pack(40, share=1.0)
    hidden, weight = random_head(40, scale=1e4)
    known = teacher(40, scale=1e4)
    ops = TorchOperations("cpu", torch.float32)
    loss = distillation_loss(hidden, Linear(weight), known[0], Linear(known[1]), pack, ops, chosen)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(weight.grad).all()
    assert torch.isfinite(hidden.grad).all()


def test_only_asked_for_gradients_are_made(monkeypatch):
    def refuse(*_):
        raise AssertionError("a gradient of the head was made")

    monkeypatch.setattr(losses, "add_outer_products", refuse)
    pack = random_pack(10, share=1.0)
    hidden, weight = random_head(10)
    known = teacher(10)
    ops = TorchOperations("cpu", torch.float32)
    rest = (known[0], Linear(known[1]), pack, ops, DistillationSettings())
    distillation_loss(hidden, Linear(weight.detach()), *rest).backward()
    assert hidden.grad.any()
    with torch.no_grad():
        distillation_loss(hidden, Linear(weight), *rest)


def test_another_vocabulary_is_refused():
    pack = random_pack(10, share=1.0)
    hidden, weight = random_head(10)
    ops = TorchOperations("cpu", torch.float32)
    with pytest.raises(UsageError, match="teacher: 151,936 vocabulary entries, the student has 97"):
        distillation_loss(
            hidden, Linear(weight), torch.zeros(10, 1), Linear(torch.zeros(151_936, 1)), pack, ops,
            DistillationSettings(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", 0.0), ("beta", 1.0), ("temperature", 0.0), ("temperature", math.inf)],
)
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(UsageError, match=f"{key} = {value}: expected above 0"):
        DistillationSettings(**{key: value})


def test_beta_is_refused_where_only_jsd_would_read_it():
    for divergence in ("forward_kl", "reverse_kl"):
        with pytest.raises(UsageError) as error:
            DistillationSettings(divergence, beta=0.3)
        assert str(error.value) == ('beta = 0.3: expected 0.5, as only divergence = "jsd" reads it')
