"""Losses and gradients of TRL's own trainers on the same tiny Qwen3 and the same ragged batch.

TRL is no dependency: this runs where it is installed (with transformers), and is skipped elsewhere.
Float32 on a CPU; TRL pads, fourbee packs. Every case prints the differences that it measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fourbee.kernels.torch_attention import DocumentAttention
from fourbee.kernels.torch_ops import TorchOperations
from fourbee.model.config import Qwen3Config
from fourbee.training.distillation_losses import DistillationSettings, distillation_loss
from fourbee.training.losses import (
    next_token_loss,
    sum_by_document,
    targets_by_document,
    token_logps,
)
from fourbee.training.network import TrainableQwen3
from fourbee.training.packing import Pack
from fourbee.training.preference_losses import Answers, PreferenceSettings, preference_values
from fourbee.training.reward_losses import reward_values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VOCAB = 101
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
OPS = TorchOperations("cpu", torch.float32)
TOLERANCE = 1e-5


def random_ids(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, length).tolist() for length in lengths]


END = 2  # the tokenizer's end of text, which TRL wants at the end of an answer
PROMPTS = random_ids(0, [3, 9, 1, 6])
CHOSEN = [[*ids, END] for ids in random_ids(1, [4, 1, 10, 0])]
REJECTED = [[*ids, END] for ids in random_ids(2, [1, 7, 3, 11])]
MARGINS = [0.5, 0.0, 1.0, 0.2]


def peer_model(seed: int, kind: str = "Qwen3ForCausalLM") -> Any:
    """A random transformers Qwen3, its weights large enough for losses to differ from step 0's."""
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        **SHAPE, tie_word_embeddings=True, rope_theta=1e4, num_labels=1, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return getattr(transformers, kind)(config).float().train()


def our_model(peer: Any) -> TrainableQwen3:
    """The same network and the same weights."""
    config = Qwen3Config(**SHAPE, tie_word_embeddings=True, rope_theta=1e4, torch_dtype="float32")
    model = TrainableQwen3(config)
    given = dict(peer.named_parameters())
    with torch.no_grad():
        for name, tensor in model.named_tensors().items():
            tensor.copy_(given[name])
    return model


def word(index: int) -> str:
    return "</s>" if index == END else f"w{index}"


def tokenizer() -> Any:
    """A word an id: `texts` and back."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word(index): index for index in range(VOCAB)}, word(1)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=word(0), eos_token=word(END)
    )


def texts(documents: list[list[int]]) -> list[str]:
    return ["".join(f" {word(index)}" for index in ids) for ids in documents]


def trainer(name: str, tmp_path: Any, model: Any, rows: Mapping[str, list[Any]], **extra: Any):
    """TRL's trainer `name` over `rows`, and the batch of them all."""
    ref_model = extra.pop("ref_model", None)
    config = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, max_length=None, **extra,
    )  # fmt: skip
    given = {} if ref_model is None else {"ref_model": ref_model}
    made = getattr(trl, f"{name}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer(), **given,
    )  # fmt: skip
    return made, made.data_collator([dict(row) for row in made.train_dataset])


def pack_of(prompts: list[list[int]], completions: list[list[int]]) -> Pack:
    """In the order of the batch, as the peer has it."""
    pairs = list(zip(prompts, completions, strict=True))
    lengths = tuple(len(prompt) + len(completion) for prompt, completion in pairs)
    return Pack(
        ids=np.concatenate([np.array(prompt + completion) for prompt, completion in pairs]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        learned=np.concatenate([np.arange(len(p) + len(c)) >= len(p) for p, c in pairs]),
        lengths=lengths,
        documents=tuple(range(len(pairs))),
    )


def hidden_states(model: TrainableQwen3, pack: Pack) -> Tensor:
    ids, positions = torch.from_numpy(pack.ids), torch.from_numpy(pack.positions)
    return model(ids, positions, DocumentAttention(pack.lengths), OPS)


def compare(
    label: str, peer: Any, expected: Tensor, found: Tensor, ours: dict[str, Tensor]
) -> None:
    """Backward passes of both; loss and every gradient within the tolerance."""
    expected.backward()
    found.backward()
    apart = abs(found.item() - expected.item())
    gradients = {name: one.grad for name, one in peer.named_parameters() if one.grad is not None}
    assert gradients.keys() == ours.keys()
    worst = max((ours[name].grad - one).abs().max().item() for name, one in gradients.items())
    largest = max(one.abs().max().item() for one in gradients.values())
    print(
        f"\n{label}: loss {found.item():.6f}, apart {apart:.1e}; "
        f"gradients up to {largest:.3g}, apart {worst:.1e}"
    )
    assert apart <= TOLERANCE * max(1.0, abs(expected.item()))
    assert worst <= TOLERANCE * max(1.0, largest)
    assert largest > 1e-3


DPO_LOSSES = ["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"]


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_preference_losses_are_those_of_the_dpo_trainer(tmp_path, name):
    peer, reference = peer_model(0), peer_model(1)
    ours, our_reference = our_model(peer), our_model(reference)
    smoothing = 0.1 if name == "robust" else 0.0
    made, batch = trainer(
        "DPO", tmp_path, peer,
        {"prompt": texts(PROMPTS), "chosen": texts(CHOSEN), "rejected": texts(REJECTED)},
        ref_model=reference, loss_type=[name], beta=0.1, label_smoothing=smoothing,
    )  # fmt: skip
    expected = made.compute_loss(made.model, batch)

    pack = pack_of(PROMPTS * 2, CHOSEN + REJECTED)
    counts = torch.from_numpy(targets_by_document(pack))

    def logps(model: TrainableQwen3) -> Tensor:
        return sum_by_document(
            token_logps(hidden_states(model, pack), model.head(), pack, OPS), pack
        )

    with torch.no_grad():
        constants = logps(our_reference)
    columns = zip(*(one.chunk(2) for one in (logps(ours), counts, constants)), strict=True)
    chosen, rejected = (Answers(*column) for column in columns)
    settings = PreferenceSettings(name, beta=0.1, label_smoothing=smoothing)
    found = preference_values(chosen, rejected, settings).loss.mean()
    compare(f"DPOTrainer {name}", peer, expected, found, ours.named_tensors())


def test_the_next_token_loss_is_that_of_the_sft_trainer(tmp_path):
    """Ragged conversations of which only the assistant's tokens count."""
    peer = peer_model(0)
    ours = our_model(peer)
    pack = pack_of(PROMPTS, CHOSEN)
    ids = [p + c for p, c in zip(PROMPTS, CHOSEN, strict=True)]
    labels = [[-100] * len(p) + c for p, c in zip(PROMPTS, CHOSEN, strict=True)]
    made, batch = trainer("SFT", tmp_path, peer, {"input_ids": ids, "labels": labels})
    expected = made.compute_loss(made.model, batch)
    found = next_token_loss(hidden_states(ours, pack), ours.head(), pack, OPS).loss
    compare("SFTTrainer", peer, expected, found / pack.num_targets, ours.named_tensors())


@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_the_reward_loss_is_that_of_the_reward_trainer(tmp_path, centring):
    peer = peer_model(0, "Qwen3ForSequenceClassification")
    ours = our_model(peer)
    score = peer.score.weight.detach().clone().requires_grad_()
    sides = [[p + c for p, c in zip(PROMPTS, side, strict=True)] for side in (CHOSEN, REJECTED)]
    made, batch = trainer(
        "Reward", tmp_path, peer,
        {"chosen_ids": sides[0], "rejected_ids": sides[1], "margin": MARGINS},
        center_rewards_coefficient=centring or None,
    )  # fmt: skip
    expected = made.compute_loss(made.model, batch)

    pack = pack_of(PROMPTS * 2, CHOSEN + REJECTED)
    last = torch.tensor(pack.lengths).cumsum(0) - 1
    chosen, rejected = (hidden_states(ours, pack)[last] @ score.T)[:, 0].chunk(2)
    found = reward_values(chosen, rejected, torch.tensor(MARGINS), centring).mean()
    tensors = ours.named_tensors() | {"score.weight": score}
    compare(f"RewardTrainer, centring {centring}", peer, expected, found, tensors)


@pytest.mark.parametrize(
    ("chosen", "beta"),
    [
        (DistillationSettings("forward_kl", temperature=2.0), 0.0),
        (DistillationSettings("reverse_kl", temperature=2.0), 1.0),
        (DistillationSettings("jsd", beta=0.3, temperature=0.9), 0.3),
    ],
    ids=["forward_kl", "reverse_kl", "jsd"],
)
def test_distillation_losses_are_those_of_the_gkd_trainer(chosen, beta):
    gkd = pytest.importorskip("trl.experimental.gkd")
    peer, teacher = peer_model(0), peer_model(1)
    ours, our_teacher = our_model(peer), our_model(teacher)
    pack = pack_of(PROMPTS[:1], REJECTED[:1])
    ids = torch.from_numpy(pack.ids)[None]
    labels = torch.where(torch.from_numpy(pack.learned)[None], ids, -100)
    with torch.no_grad():
        known = teacher(input_ids=ids).logits
        our_known = hidden_states(our_teacher, pack)
    expected = gkd.GKDTrainer.generalized_jsd_loss(
        peer(input_ids=ids).logits[:, :-1], known[:, :-1], labels[:, 1:],
        beta=beta, temperature=chosen.temperature,
    )  # fmt: skip
    found = distillation_loss(
        hidden_states(ours, pack), ours.head(), our_known, our_teacher.head(), pack, OPS, chosen
    )
    tensors = ours.named_tensors()
    compare(f"GKD {chosen.divergence}", peer, expected, found / pack.num_targets, tensors)
