"""From recipe files to a model that answers, by the command line alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fourbee.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]

DATA = """
seed = 7
output = "{folder}/data"
[[files]]
name = "train"
[[files.phases]]
samples = 40
mixture = { greeting = 1, sums = 1 }
[[files]]
name = "held_out"
held_out = true
[[files.phases]]
samples = 6
mixture = { greeting = 1 }
"""
TOKENIZER = """
output = "{folder}/tokenizer"
data = ["{folder}/data/train.jsonl"]
vocab_size = 3600
"""
PRETRAIN = """
output = "{folder}/pretrain"
data = ["{folder}/data/train.jsonl"]
tokenizer = "{folder}/tokenizer"
tokens_per_update = 1000
precision = "float32"
threads = 1
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
max_position_embeddings = 512
"""
SFT = """
output = "{folder}/sft"
data = ["{folder}/say.jsonl"]
tokenizer = "{folder}/tokenizer"
init_from = "{folder}/pretrain/model"
tokens_per_update = 60
epochs = 120
precision = "float32"
threads = 1
[optimizer]
learning_rate = 2e-2
warmup_updates = 2
"""
SAY = [
    {"role": "user", "content": "say yes"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and one conversation to learn by heart."""
    path = tmp_path_factory.mktemp("training_commands")
    for name, text in zip(
        ("data", "tokenizer", "pretrain", "sft"), (DATA, TOKENIZER, PRETRAIN, SFT), strict=True
    ):
        (path / f"{name}.toml").write_text(text.replace("{folder}", str(path)))
    (path / "say.jsonl").write_text(json.dumps({"messages": SAY}) + "\n")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_from_recipes_to_a_model_that_answers(fourbee, folder):
    """Data, tokenizer, pretraining and fine-tuning, each on what the one before has left."""
    made = fourbee("data", "generate", folder / "data.toml")
    names = [f"{folder}/data/train.jsonl", f"{folder}/data/held_out.jsonl"]
    assert (made.code, made.out.splitlines()) == (0, names)
    assert [len(lines(Path(name))) for name in names] == [40, 6]
    assert {sample["skill"] for sample in lines(Path(names[0]))} == {"greeting", "sums"}

    learned = fourbee("train", "tokenizer", folder / "tokenizer.toml")
    assert (learned.code, learned.out) == (0, f"{folder}/tokenizer\n")
    assert Tokenizer.load(folder / "tokenizer").vocab_size <= 3600

    pretrained = fourbee("train", "pretrain", folder / "pretrain.toml")
    assert (pretrained.code, pretrained.out) == (0, f"{folder}/pretrain/model\n")
    assert pretrained.err.splitlines()[0] == f"tokenising {names[0]}"
    told = [line for line in pretrained.err.splitlines() if line.startswith("update ")]
    last = r"update (\d+)/\1  loss \d+\.\d+  accuracy 0\.\d+  [\d,]+ tokens/s  0:00:00 left"
    assert re.fullmatch(last, told[-1]), told
    assert pretrained.err.splitlines()[-1] == f"writing {folder}/pretrain/model"

    tuned = fourbee("train", "sft", folder / "sft.toml")
    assert (tuned.code, tuned.out) == (0, f"{folder}/sft/model\n")
    records = lines(folder / "sft" / "log.jsonl")
    assert records[-1]["loss"] < 0.1 < records[0]["loss"]
    assert fourbee("generate", "say yes", "-m", folder / "sft" / "model").out == "yes\n"

    told = fourbee("report", folder / "sft", folder / "pretrain")
    assert (told.code, told.out) == (0, f"{folder}/sft/report.html\n")
    page = (folder / "sft" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "sft, pretrain" in page
    assert "<td>torch<td>" in page

    again = fourbee("train", "sft", folder / "sft.toml")
    assert (again.code, again.out) == (0, tuned.out)
    assert "update " not in again.err


def test_the_same_data_recipe_gives_the_same_bytes_and_another_seed_others(fourbee, folder):
    def generated(name: str, *words: str) -> bytes:
        output = folder / name
        outcome = fourbee(
            "data", "generate", folder / "data.toml", "--set", f"output={output}", *words
        )
        assert outcome.code == 0
        return (output / "train.jsonl").read_bytes()

    first = generated("one")
    assert generated("two") == first
    assert generated("three", "--set", "seed=8") != first


def test_explain_of_data_says_all_and_writes_nothing(fourbee, folder):
    output = folder / "never"
    words = ("--set", f"output={output}", "--explain")
    outcome = fourbee("data", "generate", folder / "data.toml", *words)
    assert outcome.code == 0
    assert "seed = 7  (recipe)" in outcome.out.splitlines()
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("greeting = 1, ", "greting = 1, "),
         "files 'train': unknown skill 'greting' (did you mean 'greeting'?)"),
        (("held_out = true", "heldout = true"),
         "unknown key 'files[1].heldout' (did you mean 'held_out'?); known: name, phases, "
         "held_out, unseen"),
        (("samples = 6", "samples = 'six'"),
         "files[1].phases[0].samples = 'six': expected a whole number"),
        (("samples = 6", "samples = -6"),
         "files[1].phases[0].samples = -6: expected at least 0"),
    ],
)  # fmt: skip
def test_a_wrong_data_recipe_is_one_line(fourbee, tmp_path, change, message):
    path = tmp_path / "data.toml"
    path.write_text(DATA.replace("{folder}", str(tmp_path)).replace(*change))
    outcome = fourbee("data", "generate", path)
    assert (outcome.code, outcome.err) == (2, f"fourbee: {message}\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.toml"]


def test_sums_are_written_in_every_form(fourbee, tmp_path):
    few = [f"--set={form}=3" for form in ("conversations", "pairs", "tasks", "held_out")]
    made = fourbee(
        "data", "abacus", ROOT / "recipes/abacus/data.toml", f"--set=output={tmp_path}", *few
    )
    forms = ("conversations", "pairs", "tasks")
    expected = [tmp_path / f"{form}{end}.jsonl" for form in forms for end in ("", "-held-out")]
    assert (made.code, made.out.splitlines()) == (0, [str(path) for path in expected])
    assert [len(lines(path)) for path in expected] == [3] * 6


RECIPES = [
    path for name in ("abacus", "mini") for path in sorted((ROOT / "recipes" / name).iterdir())
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_recipe_is_read(fourbee, path):
    """By the command in its first line, which says how it is run."""
    words = path.read_text(encoding="utf-8").split("`")[1].split()
    assert words[0] == "fourbee"
    assert words[-1] == str(path.relative_to(ROOT))
    outcome = fourbee(*words[1:-1], path, "--explain")
    assert (outcome.code, outcome.err) == (0, "")


def test_blind_fills_the_templates_of_the_tests(fourbee, tmp_path):
    output = tmp_path / "blind.jsonl"
    outcome = fourbee("data", "blind", ROOT / "tests/mini/blind", output, "--fills", 2)
    assert (outcome.code, outcome.out) == (0, f"{output}\n")
    samples = lines(output)
    assert len(samples) > 400
    assert all(sample["expect"] and sample["template"] for sample in samples)
    again = tmp_path / "again.jsonl"
    fourbee("data", "blind", ROOT / "tests/mini/blind", again, "--fills", 2)
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_training_without_its_data_is_one_line(fourbee, tmp_path, model, stage):
    path = tmp_path / "recipe.toml"
    path.write_text(PRETRAIN.replace("{folder}", str(tmp_path)))
    outcome = fourbee("train", stage, path, "--set", f"tokenizer={model}")
    missing = f"data[0].path = {tmp_path}/data/train.jsonl: no such file or folder"
    assert (outcome.code, outcome.err) == (2, f"fourbee: {missing}\n")


def test_training_without_torch_says_what_to_install(fourbee, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fourbee.training.trainer", None)
    outcome = fourbee("train", "sft", folder / "sft.toml")
    assert outcome.code == 2
    assert outcome.err.endswith("which is not installed: pip install 'fourbee[train]'\n")
