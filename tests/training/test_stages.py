"""All stages over the one trainer: exact resume, the same gradients however an update is split."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fourbee.foundation.errors import TrainingError, UsageError
from fourbee.foundation.settings import build
from fourbee.text.bpe import QWEN_CONTROL_TOKENS, save_tokenizer, train_bpe
from fourbee.text.tokenizer import Tokenizer
from fourbee.training import policy_losses
from fourbee.training.policy_losses import k3
from fourbee.training.preference import swapped_answers
from fourbee.training.samples import Document
from fourbee.training.tokenizer import chat_template

from .conftest import SilentReporter
from .stages import SHAPE, STAGES, Killed, digests, run, table


@pytest.fixture(scope="session")
def teacher(data: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `start` after a few more sums."""
    return run("sft", table("sft", data, start, tmp_path_factory.mktemp("teacher")), Silent())


Silent = SilentReporter


@pytest.mark.parametrize("killed_after", [1, 3, 5])
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_resumes_to_the_same_bits(name, killed_after, data, start, tmp_path):
    whole = table(name, data, start, tmp_path / "whole")
    killed = whole | {"output": str(tmp_path / "killed")}
    run(name, whole, Silent())

    def kill(done: int) -> None:
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(name, killed, Silent(kill))
    run(name, killed, Silent())
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


LORA = {"rank": 4, "alpha": 8.0}


@pytest.mark.parametrize("name", STAGES)
def test_lora_trains_every_stage_and_leaves_the_base_alone(name, data, start, teacher, tmp_path):
    settings = table(name, data, start, tmp_path / "run", lora=LORA)
    if name == "distill":
        settings["teacher"] = str(teacher)
    exported = run(name, settings, Silent())
    saved = load_file(max((tmp_path / "run").glob("update-*")) / "model.safetensors")
    adapters = {key: one for key, one in saved.items() if ".lora_" in key}
    assert set(saved) - set(adapters) == ({"score.weight"} if name == "reward" else set())
    assert any(one.abs().max() > 0 for key, one in adapters.items() if key.endswith("lora_B"))
    base = load_file(start / "model.safetensors")
    merged = load_file(exported / "model.safetensors")
    for key, tensor in base.items():
        moved = not torch.equal(merged[key], tensor)
        assert moved == (f"{key.removesuffix('.weight')}.lora_A" in adapters), key


@pytest.mark.parametrize("name", [name for name in STAGES if name != "kto"])
def test_the_split_into_packs_does_not_change_the_trajectory(name, data, start, tmp_path):
    trajectories = []
    for size in (100, 400):
        reporter = Silent()
        output = tmp_path / str(size)
        run(name, table(name, data, start, output, tokens_per_pack=size), reporter)
        trajectories.append([(r["loss"], r["gradient_norm"]) for r in reporter.records])
    torch.testing.assert_close(
        torch.tensor(trajectories[0]), torch.tensor(trajectories[1]), rtol=2e-4, atol=1e-5
    )


# ---- bad lines beside the training data


HELD_OUT = {
    "pretrain": "conversations", "sft": "conversations", "distill": "conversations",
    "reward": "pairs", "preference": "pairs", "kto": "labelled", "grpo": "tasks",
}  # fmt: skip
FOUND = {
    "conversations": "messages[0]: the first message is the assistant's; expected a user's",
    "pairs": "expected one of the keys chosen and rejected; found a conversation",
    "labelled": "expected one of the keys prompt, completion and label; found a conversation",
    "tasks": "messages[0]: the first message is the assistant's; expected a user's",
}


ROOM = "expected at least 1, and with max_tokens = 5 at most the model's 128 positions"


def spoiled(file: Path, folder: Path, bad: str = "") -> Path:
    """A copy whose second line is bad."""
    first, *rest = file.read_text().splitlines(keepends=True)
    bad = bad or '{"messages": [{"role": "assistant", "content": "a"}]}'
    path = folder / file.name
    path.write_text("".join([first, bad + "\n", *rest]))
    return path


def check_refused_and_skipped(name: str, settings: Any, source: Any, reason: str) -> None:
    """Of `source`, a table of `settings`, line 2 is named, or left out and told of once."""
    with pytest.raises(TrainingError) as caught:
        run(name, settings, Silent())
    assert str(caught.value) == f"{source['path']}:2: {reason}"
    source["bad_samples"] = "skip"
    reporter = Silent()
    run(name, settings, reporter)
    skipped = f"{source['path']}: 1 bad samples left out, as bad_samples = 'skip' says"
    assert reporter.told.count(skipped) == 1


@pytest.mark.parametrize("name", STAGES)
def test_a_bad_line_of_a_held_out_file_is_named_or_skipped(name, data, start, tmp_path):
    form = HELD_OUT[name]
    file = data / f"{form}{'' if form == 'labelled' else '-held-out'}.jsonl"
    held_out = {"path": str(spoiled(file, tmp_path)), "samples": 4}
    settings = table(name, data, start, tmp_path / "run", updates=2, validation=held_out)
    check_refused_and_skipped(name, settings, held_out, FOUND[form])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", FOUND["tasks"]),
        ('{"prompt": "", "answer": "2"}', f"prompt of 0 tokens: {ROOM}"),
        (json.dumps({"prompt": "1" * 124}), f"prompt of 124 tokens: {ROOM}"),
        ('{"prompt": "1+1", "answer": 2}', "answer is 2; expected a string"),
        ('{"prompt": "1+1", "answer": "2", "x": NaN}', "x is nan; expected a finite number"),
    ],
)
@pytest.mark.parametrize(("name", "key"), [("grpo", "data"), ("distill", "tasks")])
def test_a_bad_task_is_named_or_skipped(name, key, bad, reason, data, start, tmp_path):
    source = {"path": str(spoiled(data / "tasks.jsonl", tmp_path, bad))}
    settings = table(name, data, start, tmp_path / "run", updates=2) | {key: [source]}
    check_refused_and_skipped(name, settings, source, reason)


def test_a_task_that_a_reward_cannot_score_is_named_before_the_first_update(data, start, tmp_path):
    source = {"path": str(spoiled(data / "tasks.jsonl", tmp_path, '{"prompt": "1+1"}'))}
    settings = table("grpo", data, start, tmp_path / "run", updates=2) | {"data": [source]}
    reason = "reward 'share': a task has no answer, a string, to compare with"
    check_refused_and_skipped("grpo", settings, source, reason)


def first_record(name: str, data: Path, start: Path, tmp_path: Path, **changes: Any) -> Any:
    reporter = Silent()
    run(name, table(name, data, start, tmp_path / "run", updates=1, **changes), reporter)
    return reporter.records[0]


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        ("sigmoid", 0.693147), ("cdpo", 0.693147), ("robust", 0.693147), ("hinge", 1.0),
        ("ipo", 25.0), ("apo_zero", 1.0), ("apo_down", 1.0),
    ],
)  # fmt: skip
def test_the_first_loss_is_the_known_one(loss, value, data, start, tmp_path):
    """The policy is the reference before its first update."""
    record = first_record("preference", data, start, tmp_path, preference={"loss": loss})
    assert record["loss"] == pytest.approx(value, abs=1e-5 * value)
    assert record["margin"] == pytest.approx(0, abs=1e-5)


def test_the_first_loss_of_kto_and_of_rollouts(data, start, tmp_path):
    assert first_record("kto", data, start, tmp_path / "kto")["loss"] == pytest.approx(0.5)
    record = first_record(
        "grpo", data, start, tmp_path / "grpo", updates_per_rollout=1, policy={"kl_weight": 0.0}
    )
    assert record["loss"] == pytest.approx(0, abs=1e-6)
    assert record["ratio"] == pytest.approx(1.0)
    assert record["approximate_kl"] == pytest.approx(0, abs=1e-7)
    assert record["gradient_norm"] > 0
    # float32 both: what differs is the order of sums.
    assert record["engine_gap"] < 1e-4


def test_the_watched_kl_is_that_of_the_loss_and_is_computed_once(
    data, start, tmp_path, monkeypatch
):
    """A rollout's second update has left the reference."""
    calls: list[int] = []

    def counted(logps: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        calls.append(len(logps))
        return k3(logps, other)

    monkeypatch.setattr(policy_losses, "k3", counted)
    found = []
    for weight in (1e-9, 0.0):
        reporter = Silent()
        settings = table("grpo", data, start, tmp_path / str(weight), updates=2, watch_kl=True,
                         policy={"kl_weight": weight}, tokens_per_pack=900)  # fmt: skip
        run("grpo", settings, reporter)
        found.append(reporter.records[1]["reference_kl"])
        # Of each part one to the policy that sampled, and one to the reference.
        assert len(calls) == 2 * 2
        calls.clear()
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[1] > 0


def test_a_rewarded_answer_becomes_likelier(data, start, tmp_path):
    reporter = Silent()
    settings = table(
        "grpo", data, start, tmp_path / "run", updates=25, updates_per_rollout=1,
        prompts_per_rollout=16, rewards=[{"name": "matches", "pattern": "0.*"}],
        optimizer={"learning_rate": 5e-3, "warmup_updates": 1},
    )  # fmt: skip
    run("grpo", settings, reporter)
    rewards = [record["matches"] for record in reporter.records]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


def test_preferences_and_rewards_are_learned(data, start, tmp_path):
    held_out = {"path": str(data / "pairs-held-out.jsonl"), "samples": 12}
    for name, rate in (("reward", 3e-3), ("preference", 5e-4)):
        reporter = Silent()
        settings = table(
            name, data, start, tmp_path / name, updates=60, validation=held_out,
            optimizer={"learning_rate": rate, "warmup_updates": 2},
        )  # fmt: skip
        run(name, settings, reporter)
        losses = [record["loss"] for record in reporter.records]
        assert sum(losses[-10:]) / 10 < 0.9 * losses[0], name
        assert reporter.validations[-1]["held_out"]["accuracy"] >= 0.5


def test_a_curriculum_of_distillation_spans_its_updates_over_texts(data, start, tmp_path):
    points = [
        {"at": 0.0, "tokens_per_update": 60},
        {"at": 1.0, "tokens_per_update": 200},
    ]
    reporter = Silent()
    changes = {"updates": 20, "on_policy": 0.75, "curriculum": points}
    run("distill", table("distill", data, start, tmp_path / "run", **changes), reporter)
    before = [0, *(one["tokens"] for one in reporter.records)]
    texts = [
        after - earlier
        for earlier, after, one in zip(before, before[1:], reporter.records, strict=False)
        if "answer_tokens" not in one
    ]
    assert len(texts) == 5
    assert texts[0] < 70 and texts[-1] > 110


def test_a_baseline_is_of_answers_to_other_prompts():
    def document(prompt: list[int], answer: list[int]) -> Document:
        return [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)

    one, two = document([1, 1], [7]), document([1, 1], [8])
    other, long = document([2], [9, 9]), document([3] * 6, [5])
    assert swapped_answers([one, two], 100) == []
    assert swapped_answers([one, two, other], 100) == [
        document([2], [7]), document([2], [8]), document([1, 1], [9, 9])
    ]  # fmt: skip
    assert swapped_answers([one, long], 6) == [document([1, 1], [5])]


def test_answers_to_one_prompt_have_no_baseline(data, start, tmp_path):
    file = tmp_path / "one.jsonl"
    lines = [{"prompt": "1", "completion": c, "label": c == "1"} for c in ("1", "2")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = table("kto", data, start, tmp_path / "run", tokens_per_update=2)
    settings["data"] = [str(file)]
    reporter = Silent()
    run("kto", settings, reporter)
    assert any("6 of 6 updates hold one answer" in told for told in reporter.told)
    assert {record["baseline"] for record in reporter.records} == {0.0}


def test_a_reward_model_is_written_as_export_type_says(data, start, tmp_path):
    settings = table("reward", data, start, tmp_path, updates=1, export_type="bfloat16")
    weights = load_file(run("reward", settings, SilentReporter()) / "model.safetensors")
    assert {one.dtype for one in weights.values()} == {torch.bfloat16}


def test_a_student_comes_nearer_to_its_teacher(data, start, tmp_path):
    reporter = Silent()
    settings = table(
        "distill", data, start, tmp_path / "run", updates=40, model=SHAPE,
        tokenizer=str(start), optimizer={"learning_rate": 5e-3, "warmup_updates": 2},
    )  # fmt: skip
    del settings["init_from"]
    run("distill", settings, reporter)
    losses = [record["loss"] for record in reporter.records]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {"rewards": []}, "expected at least one"),
        ("grpo", {"rewards": [{"name": "exakt"}]}, "did you mean 'exact'"),
        ("grpo", {"watched": [{"name": "share"}]}, "rewards.name = 'share': the same reward twice"),
        (
            "grpo",
            {"policy": {"gap_cap": 2.0}, "temperature": 0.5},
            "policy.gap_cap = 2.0: expected 0 with temperature = 0.5",
        ),
        ("grpo", {"answers_per_prompt": 1}, "answers_per_prompt = 1: expected 2 or more"),
        ("grpo", {"updates_per_rollout": 3}, "expected a divisor"),
        ("preference", {"preference": {"loss": "dpo2"}}, "preference.loss = 'dpo2'"),
        ("preference", {"preference": {"beta": -1.0}}, "beta = -1.0"),
        ("reward", {"centring": -1.0}, "centring = -1.0"),
        ("distill", {"on_policy": 2.0}, "on_policy = 2.0"),
        ("distill", {"on_policy": 0.0}, "tasks: expected none, as on_policy is 0"),
        ("distill", {"on_policy": 1.0}, "data, mixture, curriculum: expected none, as on_policy"),
        (
            "reward",
            {"validation": {"path": "a", "enough": 0.5}},
            "^validation.enough = 0.5: expected 0, as pairs",
        ),
        (
            "preference",
            {"validation": {"path": "a", "enough": 0.5}},
            "^validation.enough = 0.5: expected 0, as preferences",
        ),
        (
            "grpo",
            {"validation": {"path": "a", "enough": 0.5}, "rewards": [{"name": "share"}]},
            "^validation.enough = 0.5: expected 0, as neither rewards nor watched",
        ),
        ("distill", {"sampling_temperature": -1.0}, "sampling_temperature = -1.0"),
        ("distill", {"distillation": {"beta": 2.0}}, "^distillation.beta = 2.0"),
        ("grpo", {"temperature": 0}, "temperature = 0.0: expected above 0, as answers have to"),
        ("grpo", {"policy": {"clip_low": 1.5}}, "^policy.clip_low = 1.5: expected 0 or more"),
        ("reward", {"margin": math.nan}, "margin = nan: expected at least 0"),
        ("sft", {"seed": -1}, "seed = -1: expected 0 or more, below"),
        ("sft", {"seed": 2**63}, "seed = 9223372036854775808: expected 0 or more, below"),
        ("sft", {"threads": -1}, "threads = -1: expected 0 to 1024"),
        ("sft", {"threads": 10**6}, "threads = 1000000: expected 0 to 1024"),
        ("sft", {"workers": 0}, "workers = 0: expected at least 1"),
        ("sft", {"device": "gpu"}, "device = 'gpu': expected cpu or cuda, or cuda:N of several"),
        ("sft", {"device": "cpu:0"}, "device = 'cpu:0': expected cpu or cuda, or cuda:N"),
        ("sft", {"device": "cuda:"}, "device = 'cuda:': expected cpu or cuda, or cuda:N"),
        ("sft", {"init_from": 3}, "init_from = 3: expected a path, as a string"),
        ("sft", {"mixture": {"exponent": math.nan}}, "^mixture.exponent = nan: expected -10 to 10"),
        ("sft", {"model": {"hidden_size": 0}}, "^model.hidden_size = 0: expected more than 0"),
        ("sft", {"model": {"hidden_size": 128}}, "^model with init_from: expected one of them"),
        ("sft", {"samples": {"max_tokens": 0}}, "^samples.max_tokens = 0: expected at least 1"),
        ("sft", {"validation": {"path": "a", "samples": 0}}, "^validation.samples = 0: expected"),
        ("sft", {"validation": {"path": "a", "enough": 2}}, "^validation.enough = 2.0: expected"),
        ("sft", {"guard": {"spike": -1}}, "^guard.spike = -1.0: expected at least 0"),
        ("sft", {"guard": {"patience": 0}}, "^guard.patience = 0: expected at least 1"),
        (
            "sft",
            {"optimizer": {"learning_rate": 0}},
            "^optimizer.learning_rate = 0.0: expected above 0",
        ),
        ("distill", {"tasks": []}, "tasks: expected"),
        ("sft", {"updates": 3, "epochs": 2}, "expected only one of"),
        ("sft", {"lora": {"rank": 0}}, "lora.rank = 0"),
        ("sft", {"lora": {"targets": ["k_pro"]}}, "did you mean 'k_proj'"),
    ],
)
def test_what_cannot_be_is_one_line(name, changes, message, data, start, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        build(STAGES[name][0], table(name, data, start, tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sft", "init_from"), ("sft", "tokenizer"), ("sft", "init_adapter_from"),
        ("sft", "data[0].path"), ("sft", "validation.path"), ("grpo", "reward_model"),
        ("distill", "teacher"), ("distill", "tasks[0].path"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_there_is_named_by_its_key(name, key, data, start, tmp_path):
    absent = str(tmp_path / "absent")
    first, _, inner = key.replace("[0]", "").partition(".")
    value: Any = {inner: absent} if inner else absent
    settings = table(name, data, start, tmp_path / "run", lora=LORA)
    with pytest.raises(UsageError) as caught:
        run(name, settings | {first: [value] if "[0]" in key else value}, Silent())
    assert str(caught.value) == f"{key} = {absent}: no such file or folder"


@pytest.mark.parametrize(
    ("name", "key"), [("sft", "init_from"), ("grpo", "reward_model"), ("distill", "teacher")]
)
def test_what_is_no_checkpoint_folder_is_named_by_its_key(name, key, data, start, tmp_path):
    """A file of another format; a run's folder, of which the model lies within."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    run_folder = start.parent
    for path, meant in ((file, ""), (run_folder, f"; is it {run_folder / 'model'}?")):
        changes = {key: str(path), "tokenizer": str(start)}
        with pytest.raises(UsageError) as caught:
            run(name, table(name, data, start, tmp_path / "run", **changes), Silent())
        assert str(caught.value) == (
            f"{key} = {path}: expected a checkpoint folder, with config.json{meant}"
        )


def test_a_rank_beyond_the_matrices_is_refused(data, start, tmp_path):
    settings = table("sft", data, start, tmp_path / "run", lora=LORA | {"rank": 10**9})
    with pytest.raises(UsageError, match=r"^lora.rank = 1000000000: expected at most \d+, the sm"):
        run("sft", settings, Silent())


@pytest.fixture(scope="session")
def foreign(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose ids are other tokens than those of the tests' own."""
    folder = tmp_path_factory.mktemp("foreign")
    texts = [f"{index} times {index * 7919}" for index in range(500)]
    save_tokenizer(folder, train_bpe(texts, 320, QWEN_CONTROL_TOKENS), chat_template())
    return folder


@pytest.mark.parametrize("key", ["init_from", "reward_model", "teacher"])
def test_a_model_of_another_tokenizer_is_refused(key, data, start, foreign, tmp_path):
    name = {"init_from": "sft", "reward_model": "grpo", "teacher": "distill"}[key]
    model = start
    if key == "reward_model":
        model = run("reward", table("reward", data, start, tmp_path / "reward"), Silent())
    settings = table(name, data, start, tmp_path / "run") | {key: str(model)}
    if key != "init_from":  # else two would be wrong
        del settings["init_from"]
        settings["model"] = SHAPE
    with pytest.raises(UsageError) as caught:
        run(name, settings | {"tokenizer": str(foreign)}, Silent())
    ours, theirs = Tokenizer.load(start).tokens(), Tokenizer.load(foreign).tokens()
    first = min(index for index in ours if ours[index] != theirs.get(index, ours[index]))
    assert str(caught.value) == (
        f"{key} = {model}: token {first} is {ours[first]!r} there, and {theirs[first]!r} in the "
        "run's tokenizer; expected the same tokenizer"
    )


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    data, start, embedded_model, tmp_path
):
    size = Tokenizer.load(embedded_model).vocab_size
    settings = table("sft", data, start, tmp_path / "run", tokenizer=str(embedded_model))
    with pytest.raises(UsageError) as caught:
        run("sft", settings, Silent())
    assert str(caught.value) == (
        f"init_from = {start}: 384 vocabulary entries, expected {size:,}, as of the run's own "
        "tokenizer"
    )


@pytest.mark.parametrize(("prompt", "tokens"), [("", 0), ("1" * 65, 65)])
def test_a_prompt_to_sample_is_refused_before_the_first_update(
    prompt, tokens, data, start, tmp_path
):
    samples = {"prompts": ["1+1", prompt], "chat": False}
    with pytest.raises(UsageError) as caught:
        run("sft", table("sft", data, start, tmp_path / "run", samples=samples), Silent())
    assert str(caught.value) == (
        f"samples.prompts[1]: prompt of {tokens} tokens: expected at least 1, and with "
        "max_tokens = 64 at most the model's 128 positions"
    )


@pytest.mark.parametrize("name", ["grpo", "distill"])
def test_answers_need_a_token_that_ends_them(name, data, start, tmp_path):
    own = shutil.copytree(start, tmp_path / "own")
    config = json.loads((own / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (own / "tokenizer_config.json").write_text(json.dumps(config))
    (own / "generation_config.json").unlink(missing_ok=True)
    changes = {"on_policy": 1.0, "data": []} if name == "distill" else {}
    with pytest.raises(TrainingError) as caught:
        run(name, table(name, data, own, tmp_path / "run") | changes, Silent())
    assert str(caught.value) == (
        "tokenizer: no token ends an answer (eos_token_id = ()); expected eos_token in "
        "tokenizer_config.json, or its id in generation_config.json"
    )


def test_held_out_answers_may_all_be_good(data, start, tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "1+1", "completion": "2", "label": true}\n')
    reporter = Silent()
    settings = table("kto", data, start, tmp_path / "run", updates=1)
    run("kto", settings | {"validation": {"path": str(good)}}, reporter)
    measured = reporter.validations[-1]["held_out"]
    assert "chosen_reward" in measured
    assert "margin" not in measured


def test_grpo_without_tasks_is_one_line(data, start, tmp_path):
    with pytest.raises(UsageError, match="data: expected at least one file of tasks"):
        build(STAGES["grpo"][0], table("grpo", data, start, tmp_path) | {"data": []})
