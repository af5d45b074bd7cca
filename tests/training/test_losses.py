"""Cross-entropy and log-probabilities in chunks, token-exact over packs, the same packed or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fourbee.kernels.operations import Linear
from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.training import losses
from fourbee.training.corpus import Corpus
from fourbee.training.losses import (
    _MOST_ROWS,
    chunks,
    next_token_loss,
    sum_by_document,
    targets_by_document,
    token_logps,
)
from fourbee.training.mixture import Mixture
from fourbee.training.network import TrainableQwen3
from fourbee.training.packing import Pack, make_packs
from fourbee.training.run_plan import DataSettings, plan_run

from .corpora import corpus_of, pack_of

VOCAB, WIDTH = 97, 24
CONFIG = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    torch_dtype="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ops() -> TorchOperations:
    return TorchOperations("cpu", torch.float32)


def random_pack(tokens: int, share: float, seed: int = 0) -> Pack:
    """One document with about this share of targets."""
    rng = np.random.default_rng(seed)
    learned = rng.random(tokens) < share
    learned[0] = False
    return Pack(rng.integers(0, VOCAB, tokens), np.arange(tokens), learned, (tokens,), (0,))


def random_head(tokens: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and head, float32 leaves."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator) * scale
    weight = torch.randn(VOCAB, WIDTH, generator=generator) / WIDTH**0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, pack: Pack, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean loss and gradients by torch's own cross-entropy and autograd, in `dtype`."""
    h, w = (one.detach().to(dtype).requires_grad_() for one in (hidden, weight))
    targets = torch.from_numpy(pack.learned.nonzero()[0])
    labels = torch.from_numpy(pack.ids)[targets]
    loss = cross_entropy(h[targets - 1] @ w.T, labels)
    loss.backward()
    return loss.detach(), h.grad, w.grad


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    """Apart by no more than the tolerance, a share of the largest number beyond one."""
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("tokens", [2, 50, _MOST_ROWS + 1, 2 * _MOST_ROWS + 77])
def test_value_and_gradients_are_those_of_torchs_cross_entropy(ops, tokens, dtype):
    pack = random_pack(tokens, share=1.0)
    hidden, weight = random_head(tokens, scale=3.0)
    result = next_token_loss(hidden, Linear(weight), pack, ops)
    loss = result.loss / pack.num_targets
    loss.backward()
    expected, grad_hidden, grad_weight = reference(hidden, weight, pack, dtype)
    close(loss.detach(), expected)
    close(hidden.grad, grad_hidden)
    close(weight.grad, grad_weight)


def test_only_learned_tokens_count_and_what_is_likeliest_is_counted(ops):
    pack = random_pack(300, share=0.3)
    hidden, weight = random_head(300)
    result = next_token_loss(hidden, Linear(weight), pack, ops)
    (result.loss / pack.num_targets).backward()
    close(
        result.loss.detach() / pack.num_targets, reference(hidden, weight, pack, torch.float64)[0]
    )
    before = np.append(pack.learned[1:], False)
    assert not hidden.grad[~torch.from_numpy(before)].any()
    assert hidden.grad[torch.from_numpy(before)].any(-1).all()
    likeliest = (hidden @ weight.T).argmax(-1)[:-1].numpy()
    expected = (likeliest == pack.ids[1:])[pack.learned[1:]]
    assert result.correct.tolist() == expected.tolist()


def test_huge_logits_stay_finite(ops):
    pack = random_pack(40, share=1.0)
    hidden, weight = random_head(40, scale=1e4)
    result = next_token_loss(hidden, Linear(weight), pack, ops)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert torch.isfinite(weight.grad).all()


def test_without_gradients_nothing_is_kept(ops):
    pack = random_pack(40, share=1.0)
    hidden, weight = random_head(40)
    with torch.no_grad():
        result = next_token_loss(hidden, Linear(weight), pack, ops)
    assert not result.loss.requires_grad
    with_gradient = next_token_loss(hidden, Linear(weight), pack, ops)
    assert with_gradient.loss.item() == result.loss.item()


def test_measuring_makes_no_gradients(ops, monkeypatch):
    def refuse(*_):
        raise AssertionError("a gradient of the head was made")

    monkeypatch.setattr(losses, "add_outer_products", refuse)
    pack = random_pack(40, share=1.0)
    hidden, weight = random_head(40)
    with torch.no_grad():
        next_token_loss(hidden * 1, Linear(weight), pack, ops)
    frozen = Linear(weight.detach())
    next_token_loss(hidden, frozen, pack, ops).loss.backward()
    (token_logps(hidden, frozen, pack, ops).sum()).backward()
    with pytest.raises(AssertionError, match="of the head"):
        next_token_loss(hidden, Linear(weight), pack, ops)


@pytest.mark.parametrize("vocabulary", [97, 4096, 151_936, 10_000_000])
def test_chunks_are_about_64_megabytes_of_logits(vocabulary):
    slices = list(chunks(5000, vocabulary))
    assert [one.start for one in slices] == [0, *(one.stop for one in slices[:-1])]
    assert slices[-1].stop == 5000
    rows = {one.stop - one.start for one in slices[:-1]}
    assert rows == {{97: 1024, 4096: 1024, 151_936: 110, 10_000_000: 64}[vocabulary]}
    assert not list(chunks(0, vocabulary))


def test_a_pack_without_targets_costs_nothing(ops):
    pack = random_pack(5, share=0.0)
    hidden, weight = random_head(5)
    result = next_token_loss(hidden, Linear(weight), pack, ops)
    logps = token_logps(hidden, Linear(weight), pack, ops)
    (result.loss + logps.sum()).backward()
    assert result.loss.item() == 0.0
    assert logps.shape == (0,)
    assert not hidden.grad.any()
    assert not weight.grad.any()
    assert sum_by_document(logps, pack).tolist() == [0.0]


def test_a_second_backward_pass_is_refused(ops):
    pack = random_pack(5, share=1.0)
    hidden, weight = random_head(5)
    loss = next_token_loss(hidden, Linear(weight), pack, ops).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- log-probabilities of tokens


def loop_logps(hidden, weight, pack: Pack, temperature: float) -> torch.Tensor:
    """One token after another, from whole logits, in the type of the arguments."""
    found = []
    for token in np.flatnonzero(pack.learned):
        logits = weight @ hidden[token - 1] / temperature
        found.append(logits[pack.ids[token]] - logits.logsumexp(-1))
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_their_gradients_are_those_of_a_loop(monkeypatch, dtype, temperature):
    monkeypatch.setattr(losses, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 1)  # 16 rows a chunk
    pack = random_pack(61, share=0.6)
    hidden, weight = random_head(61, scale=3.0)
    exact = [one.detach().double().requires_grad_() for one in (hidden, weight)]
    expected = loop_logps(*exact, pack, temperature)
    given = torch.randn(len(expected), generator=torch.Generator().manual_seed(1)) / len(expected)
    (expected * given).sum().backward()

    mine = [one.detach().to(dtype).requires_grad_() for one in (hidden, weight)]
    found = token_logps(mine[0], Linear(mine[1]), pack, TorchOperations("cpu", dtype), temperature)
    (found * given).sum().backward()
    wide = dtype == torch.float64
    close(found, expected, 1e-12 if wide else 1e-5)
    for one, other in zip(mine, exact, strict=True):
        close(one.grad, other.grad, 1e-14 if wide else 1e-6)


def test_only_asked_for_gradients_are_made(ops):
    pack = random_pack(40, share=0.5)
    hidden, weight = random_head(40)
    token_logps(hidden, Linear(weight), pack, ops).square().sum().backward()
    both = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    token_logps(hidden, Linear(weight.detach()), pack, ops).square().sum().backward()
    token_logps(hidden.detach(), Linear(weight), pack, ops).square().sum().backward()
    assert torch.equal(hidden.grad, both[0])
    assert torch.equal(weight.grad, both[1])


def test_bfloat16_log_probabilities_are_near(ops, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 4 * WIDTH * 10)  # the head in slabs of 10 rows
    pack = random_pack(200, share=1.0)
    hidden, weight = random_head(200)
    token_logps(hidden, Linear(weight), pack, ops).mean().backward()
    expected = weight.grad
    weight.grad = None
    half = TorchOperations("cpu", torch.bfloat16)
    token_logps(hidden, Linear(weight), pack, half).mean().backward()
    assert weight.grad.dtype == torch.float32
    close(weight.grad, expected, 0.01)


def test_huge_logits_give_finite_log_probabilities(ops):
    pack = random_pack(40, share=1.0)
    hidden, weight = random_head(40, scale=1e4)
    logps = token_logps(hidden, Linear(weight), pack, ops)
    logps.sum().backward()
    assert logps.min() < -1e4
    assert all(torch.isfinite(one).all() for one in (logps, hidden.grad, weight.grad))


def test_sums_by_document_are_those_of_a_loop(corpus):
    pack = pack_of(corpus, [4, 1, 0])
    assert pack.documents == (2, 0, 1)  # those of like lengths beside each other
    counts = targets_by_document(pack)
    assert counts.tolist() == [5, 3, 1]
    values = torch.arange(9.0, requires_grad=True)
    sums = sum_by_document(values, pack)
    assert sums.tolist() == [10.0, 18.0, 8.0]
    (sums * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad.tolist() == [1.0] * 5 + [10.0] * 3 + [100.0]


def test_bfloat16_products_are_near(ops):
    pack = random_pack(200, share=1.0)
    hidden, weight = random_head(200)
    result = next_token_loss(hidden, Linear(weight), pack, TorchOperations("cpu", torch.bfloat16))
    (result.loss / pack.num_targets).backward()
    expected, _, grad_weight = reference(hidden, weight, pack, torch.float32)
    close(result.loss.detach() / pack.num_targets, expected, 0.02)
    assert weight.grad.dtype == torch.float32
    close(weight.grad, grad_weight, 0.01)


# ---- documents side by side


@pytest.fixture
def corpus() -> Corpus:
    """Documents of 2 to 30 tokens, of which the second half is learned."""
    rng = np.random.default_rng(1)
    lengths = [9, 2, 30, 17, 5]
    learned = [np.arange(n) >= max(1, n // 2) for n in lengths]
    ids = rng.integers(0, CONFIG.vocab_size, sum(lengths), dtype=np.int32)
    return replace(corpus_of(lengths), ids=ids, learned=np.concatenate(learned))


def summed(model: TrainableQwen3, packs: list[Pack], ops: TorchOperations):
    """Loss and gradients of packs as the trainer has them: sums over all targets of the update."""
    targets = sum(pack.num_targets for pack in packs)
    total = 0.0
    for pack in packs:
        ids, positions = torch.from_numpy(pack.ids), torch.from_numpy(pack.positions)
        hidden = model(ids, positions, DocumentAttention(pack.lengths), ops)
        loss = next_token_loss(hidden, model.head(), pack, ops).loss / targets
        loss.backward()
        total += loss.item()
    gradients = {name: tensor.grad for name, tensor in model.named_tensors().items()}
    model.zero_grad(set_to_none=True)
    return total, gradients


def test_packed_documents_have_the_loss_and_gradients_of_single_ones(corpus, ops):
    model = TrainableQwen3(CONFIG, seed=0)
    everything = list(range(len(corpus)))
    whole, gradients = summed(model, [pack_of(corpus, everything)], ops)
    for split in ([[one] for one in everything], [[4, 0], [2], [1, 3]]):
        loss, single = summed(model, [pack_of(corpus, part) for part in split], ops)
        assert loss == pytest.approx(whole, abs=1e-6)
        for name, gradient in gradients.items():
            close(single[name], gradient)
    assert gradients.keys() == model.named_tensors().keys()
    assert all(gradient.any() for gradient in gradients.values())


def test_an_update_is_a_mean_over_tokens_not_over_packs(corpus, ops):
    model = TrainableQwen3(CONFIG, seed=0)
    packs = [pack_of(corpus, [1]), pack_of(corpus, [2])]  # 1 and 15 targets
    alone = [summed(model, [pack], ops)[0] for pack in packs]
    together, _ = summed(model, packs, ops)
    assert [pack.num_targets for pack in packs] == [1, 15]
    assert together == pytest.approx((alone[0] + 15 * alone[1]) / 16, abs=1e-6)
    assert together != pytest.approx(sum(alone) / 2, abs=1e-4)


def test_the_packs_of_a_planned_update_have_the_loss_of_its_samples_one_by_one(ops):
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 30, 24).tolist()
    pairs = corpus_of(lengths, parts=2, name="pairs")
    texts = corpus_of([200, 90, 150], cuttable=True)
    pairs, texts = (
        replace(one, ids=rng.integers(0, CONFIG.vocab_size, len(one.ids), dtype=np.int32))
        for one in (pairs, texts)
    )
    data = DataSettings(
        data=(pairs.source, texts.source), tokens_per_update=150, tokens_per_pack=60,
        mixture=Mixture(),
    )  # fmt: skip
    plan = plan_run([pairs, texts], data, seed=0)
    assert any(piece.first for piece in plan.samples(0) + plan.samples(1))
    model = TrainableQwen3(CONFIG, seed=0)
    for update in range(2):
        packs, samples = plan.packs(update), plan.samples(update)
        whole, gradients = summed(model, packs, ops)
        alone = [pack for one in samples for pack in make_packs(plan.corpora, [one], one.tokens)]
        assert len(packs) < len(alone) == len(samples)
        loss, single = summed(model, alone, ops)
        assert loss == pytest.approx(whole, abs=1e-6)
        for name, gradient in gradients.items():
            close(single[name], gradient)
