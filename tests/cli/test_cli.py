"""The command line itself: its words, its help, and one line and a code for what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fourbee import __version__, cli
from fourbee.foundation.errors import CapacityError, ModelFileError, UsageError

RECIPE = """
output = "{folder}/run"
data = ["{folder}/data.jsonl"]
tokenizer = "{folder}/tokenizer"
[optimizer]
clip = 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("{folder}", str(tmp_path)))
    return path


def commands() -> dict[str, dict[str, list[str]]]:
    """Every command line that does something, with its options and arguments."""
    found: dict[str, dict[str, list[str]]] = {}

    def walk(command, words: str) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{words} {name}".strip())
        if words:
            kinds = {"options": [], "arguments": []}
            for parameter in command.params:
                kind = "options" if parameter.param_type_name == "option" else "arguments"
                kinds[kind] += parameter.opts
            found[words] = kinds

    walk(typer.main.get_command(cli.app), "")
    return found


COMMANDS = commands()


# ---- words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("servee", "no such command 'servee'. Did you mean 'serve'?"),
        ("generat", "no such command 'generat'. Did you mean 'generate'?"),
        ("xyzzy", "no such command 'xyzzy'."),
        ("train sfft x", "no such command 'sfft'. Did you mean 'sft'?"),
        ("data generat x", "no such command 'generat'. Did you mean 'generate'?"),
        ("serve --modle x", "no such option: --modle (Possible options: --model)"),
        ("serve --prot 1", "no such option: --prot (Possible options: --host, --port)"),
        ("chat --max_tokens 5", "no such option: --max_tokens (Possible options: --max-tokens)"),
        ("--versoin", "no such option: --versoin (Possible options: --version)"),
        ("chat -x", "no such option: -x"),
        ("train sft", "missing argument 'recipe'."),
        ("generate", "missing argument 'prompt'."),
        ("pull", "missing argument 'model_id'."),
        ("eval", "missing argument 'files'."),
        ("generate a b", "got unexpected extra argument(s) (b)"),
        ("serve --port", "option '--port' requires an argument."),
        ("serve --port eighty", "--port eighty: expected a whole number"),
        ("chat --temperature hot", "--temperature hot: expected a number"),
        ("eval x --limit 0", "--limit 0: input should be greater than or equal to 1"),
    ],
)
def test_words_that_are_not_known_are_one_line_with_the_nearest(fourbee, line, message):
    outcome = fourbee(*line.split())
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"fourbee: {message}\n")


# ---- help and version


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_help_that_names_its_options_and_arguments(fourbee, line):
    outcome = fourbee(*line.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"fourbee {line}" in outcome.out
    for option in COMMANDS[line]["options"]:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", outcome.out), option
    for argument in COMMANDS[line]["arguments"]:
        assert argument.lower() in outcome.out.lower(), argument
    assert fourbee(*line.split(), "-h").out == outcome.out


def test_the_commands_are_those_of_the_manual(fourbee):
    assert set(COMMANDS) == {
        "serve", "chat", "generate", "pull", "plan", "quantize", "export", "eval", "tokens",
        "train", "train tokenizer", "train pretrain", "train sft", "train reward",
        "train preference", "train grpo", "train distill", "report",
        "data", "data generate", "data check", "data abacus", "data blind",
        "bench", "bench http", "bench lasting", "bench needle", "bench offline", "bench outside",
        "bench peers", "bench quality", "bench roofline", "bench shakespeare", "bench sparse",
        "bench stages", "bench start", "bench streaming", "bench training",
        "contexts", "contexts list", "contexts info", "contexts prune", "contexts verify",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["", "train", "data", "bench"])
def test_a_group_alone_shows_its_help(fourbee, line):
    outcome = fourbee(*line.split())
    assert outcome == fourbee(*line.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage: fourbee" in outcome.out


def test_version_is_printed(fourbee):
    outcome = fourbee("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"fourbee {__version__}\n", "")


@pytest.mark.parametrize("words", [["--version"], ["train", "sft", "--help"], ["servee"]])
def test_nothing_heavy_is_imported_to_answer_at_once(words):
    heavy = ("torch", "fastapi", "transformers", "tokenizers", "numpy", "huggingface_hub", "httpx")
    code = (
        f"import sys\nfrom fourbee.cli import run\nrun({words!r})\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_is_the_command():
    line = [sys.executable, "-m", "fourbee", "servee"]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "fourbee: no such command 'servee'. Did you mean 'serve'?\n"


# ---- what goes wrong inside of a command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("port = 0: expected 1 to 65535"), 2, "port = 0: expected 1 to 65535"),
        (ModelFileError("a: damaged"), 3, "a: damaged"),
        (CapacityError("too long"), 3, "too long"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/run"), 3, "/run: Permission denied"),
        (OSError("no space"), 3, "no space"),
        (UsageError("[bold]x[/y] :smile:"), 2, "[bold]x[/y] :smile:"),
        (UsageError("a" * 300), 2, "a" * 300),
    ],
)
def test_an_error_is_one_line_and_its_code(fourbee, monkeypatch, error, code, message):
    def fails(name: str | None) -> Path:
        raise error

    monkeypatch.setattr("fourbee.model.hub.resolve_model", fails)
    outcome = fourbee("tokens", "text")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.strip() == f"fourbee: {message}"


def test_our_own_mistakes_are_not_hidden(fourbee, monkeypatch):
    monkeypatch.setattr("fourbee.model.hub.resolve_model", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fourbee("tokens", "text")


# ---- recipes


def test_a_missing_recipe_is_one_line(fourbee, tmp_path):
    path = tmp_path / "no.toml"
    reading = ["data generate", "data abacus"]
    reading += [line for line in COMMANDS if line.startswith("train ")]
    for line in reading:
        outcome = fourbee(*line.split(), path)
        assert (outcome.code, outcome.err) == (2, f"fourbee: recipe {path}: no such file\n")


def test_a_folder_for_a_recipe_is_one_line(fourbee, tmp_path):
    outcome = fourbee("train", "sft", tmp_path)
    assert (outcome.code, outcome.err) == (3, f"fourbee: {tmp_path}: Is a directory\n")


def test_a_recipe_that_is_not_toml_is_one_line(fourbee, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("output = \n")
    outcome = fourbee("train", "sft", path)
    assert outcome.code == 2
    assert (
        outcome.err
        == f"fourbee: recipe {path}: not valid TOML: Invalid value (at line 1, column 10)\n"
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "epoch=2",
            "unknown key 'epoch' (did you mean 'epochs'?); known: output, tokenizer, ",
        ),
        (
            "optimizer.learning_rat=1",
            "unknown key 'optimizer.learning_rat' (did you mean 'learning_rate'?); known: ",
        ),
        ("epochs=two", "epochs = 'two': expected a whole number"),
        ("epochs=0", "epochs = 0: expected at least 1"),
        ("shuffle=1", "shuffle = 1: expected true or false"),
        ("precision=float33", "precision = 'float33': expected one of float32, bfloat16 "),
        ("epochs", "--set epochs: expected key=value, such as optimizer.clip=0.5"),
        ("epochs.x=1", "unknown key 'epochs.x'"),
    ],
)
def test_a_key_or_value_that_is_wrong_is_one_line(fourbee, recipe, assignment, message):
    outcome = fourbee("train", "sft", recipe, "--set", assignment)
    if assignment == "epochs.x=1":
        message = "epochs = {'x': 1}: expected a whole number"
    assert outcome.code == 2
    assert outcome.err.startswith(f"fourbee: {message}")
    assert outcome.err.count("\n") == 1


def test_a_missing_key_is_one_line(fourbee, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('output = "x"\n')
    outcome = fourbee("train", "tokenizer", path)
    assert (outcome.code, outcome.err) == (2, "fourbee: missing key 'data'\n")


def test_explain_prints_every_setting_and_where_it_came_from_and_does_nothing(
    fourbee, recipe, tmp_path
):
    words = ("--set", "epochs=3", "--set", "optimizer.learning_rate=0.5", "--explain")
    outcome = fourbee("train", "sft", recipe, *words)
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err) == (0, "")
    assert "optimizer.clip = 0.5  (recipe)" in lines
    assert "optimizer.beta2 = 0.95  (default)" in lines
    assert "epochs = 3  (--set)" in lines
    assert "optimizer.learning_rate = 0.5  (--set)" in lines
    assert "model.hidden_size = 256  (default)" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml"]
