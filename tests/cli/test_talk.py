"""generate, chat, tokens and eval with a model that answers every chat with "ok"."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from fourbee.cli.talk import HELP
from fourbee.engine.llm import LLM
from fourbee.text.bpe import save_tokenizer, train_bpe

from .conftest import CONFIG

MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ok"},
]


@pytest.fixture
def typed(monkeypatch):
    """Sets what standard input holds."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def asked(monkeypatch) -> list[list[dict[str, str]]]:
    """The conversations that the model is asked, as they are then."""
    conversations: list[list[dict[str, str]]] = []
    stream_chat = LLM.stream_chat

    def noting(self, messages, params=None, tools=None):
        conversations.append([dict(message) for message in messages])
        return stream_chat(self, messages, params, tools)

    monkeypatch.setattr(LLM, "stream_chat", noting)
    return conversations


# ---- generate


def test_generate_answers_on_standard_output(fourbee, model, asked):
    outcome = fourbee("generate", "hi", "-m", model)
    assert (outcome.code, outcome.out) == (0, "ok\n")
    assert asked == [[{"role": "user", "content": "hi"}]]


def test_generate_takes_a_system_message(fourbee, model, asked):
    assert fourbee("generate", "hi", "--model", model, "--system", "be kind").out == "ok\n"
    assert asked[0][0] == {"role": "system", "content": "be kind"}


def test_generate_reads_standard_input(fourbee, model, asked, typed):
    typed("two\nlines\n")
    assert fourbee("generate", "-", "-m", model).out == "ok\n"
    assert asked == [[{"role": "user", "content": "two\nlines\n"}]]


def test_raw_goes_on_with_the_text_itself(fourbee, model, typed):
    assert fourbee("generate", "to", "--raw", "-m", model).out == "k\n"
    assert fourbee("generate", "x", "--raw", "-m", model).out == "\n"
    typed("line\n")
    assert fourbee("generate", "-", "--raw", "-m", model).out == "ok\n"


def test_max_tokens_cuts(fourbee, model):
    assert fourbee("generate", "hi", "-m", model, "--max-tokens", 1).out == "o\n"


def test_the_same_seed_gives_the_same_text(fourbee, model):
    words = ("generate", "hi", "-m", model, "--temperature", 9, "--seed", 3, "--max-tokens", 30)
    first = fourbee(*words)
    assert first.code == 0
    assert first.out == fourbee(*words).out != "ok\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--raw", "--system", "s"), 2, "--system needs the chat format: leave out --raw"),
        (("--temperature", "-1"), 2, "temperature = -1.0: expected at least 0"),
        (("--top-p", "0"), 2, "top_p = 0.0: expected more than 0 and at most 1"),
        (("--max-tokens", "0"), 2, "max_tokens = 0: expected at least 1"),
    ],
)
def test_what_generate_cannot_do_is_one_line(fourbee, model, words, code, message):
    outcome = fourbee("generate", "hi", "-m", model, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.splitlines()[-1] == f"fourbee: {message}"


def test_a_prompt_beyond_the_context_is_one_line(fourbee, model):
    outcome = fourbee("generate", "x" * 600, "--raw", "-m", model)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == (
        "fourbee: prompt has 600 tokens, but this model's context is 512: shorten the prompt or "
        "max_tokens"
    )


def test_a_model_that_is_not_there_is_one_line(fourbee, tmp_path):
    for command in ("generate hi", "chat", "tokens hi"):
        outcome = fourbee(*command.split(), "-m", tmp_path / "no")
        assert outcome.code == 2
        assert outcome.err == (
            f"fourbee: model '{tmp_path / 'no'}': no such folder; expected a folder with "
            "config.json or a hub id such as Qwen/Qwen3-0.6B\n"
        )


def test_a_folder_may_have_brackets_in_its_name(fourbee, model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "a[" / "b]"))
    assert fourbee("generate", "hi", "-m", folder).out == "ok\n"


# ---- chat


def test_a_chat_remembers_until_it_is_reset_and_ends_with_exit(fourbee, model, asked, typed):
    typed("hi\n  and  \n\n/reset\nagain\n/exit\nnever\n")
    outcome = fourbee("chat", "-m", model, "--system", "be kind")
    assert (outcome.code, outcome.out) == (0, "ok\nok\nok\n")
    assert HELP in outcome.err
    system = {"role": "system", "content": "be kind"}
    assert asked == [
        [system, {"role": "user", "content": "hi"}],
        [system, *MESSAGES, {"role": "user", "content": "and"}],
        [system, {"role": "user", "content": "again"}],
    ]


def test_a_chat_ends_at_the_end_of_input(fourbee, model, typed):
    typed("hi")
    assert fourbee("chat", "-m", model).out == "ok\n"
    typed("")
    assert fourbee("chat", "-m", model).code == 0


def test_an_unknown_word_of_the_chat_shows_its_words(fourbee, model, asked, typed):
    typed("/hepl\n")
    outcome = fourbee("chat", "-m", model)
    assert outcome.err.count(HELP) == 2
    assert (outcome.code, outcome.out, asked) == (0, "", [])


def test_a_message_that_does_not_fit_is_told_and_forgotten(fourbee, model, asked, typed):
    typed(f"{'x' * 600}\nhi\n")
    outcome = fourbee("chat", "-m", model)
    assert (outcome.code, outcome.out) == (0, "ok\n")
    told = " ".join(outcome.err.split())
    assert "fourbee: prompt has 619 tokens, but this model's context is 512" in told
    assert asked[-1] == [{"role": "user", "content": "hi"}]


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(fourbee, model, monkeypatch, typed):
    stream_chat, conversations = LLM.stream_chat, []

    def interrupted(self, messages, params=None, tools=None):
        conversations.append([message["content"] for message in messages])
        yield next(stream_chat(self, messages, params, tools))
        if len(conversations) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "stream_chat", interrupted)
    typed("hi\nmore\n")
    assert fourbee("chat", "-m", model).out == "o\no\n"
    assert conversations == [["hi"], ["hi", "o", "more"]]


# ---- tokens


def test_tokens_of_a_text_are_pieces_ids_and_their_number(fourbee, model):
    outcome = fourbee("tokens", "a\n<|im_end|>é", "-m", model)
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert lines[:2] == ["a\\n", "<|im_end|>\\xc3\\xa9"]
    assert len(lines[2].split()) == 14
    assert lines[3] == "14 tokens"


def test_control_tokens_are_read_as_such_when_asked_for(fourbee, model):
    outcome = fourbee("tokens", "a<|im_end|>", "--control", "-m", model)
    assert outcome.out.splitlines()[-1] == "2 tokens"


def test_tokens_of_a_gguf_file(fourbee, tmp_path, write_gguf, gguf_vocabulary):
    backend = train_bpe(["the token of the reader"] * 4, 300)
    save_tokenizer(tmp_path, backend, "")
    file = write_gguf(tmp_path / "m.gguf", CONFIG, {}, **gguf_vocabulary(backend, 300))
    words = ("tokens", "the reader<|im_end|>", "--control", "-m")
    outcome = fourbee(*words, file)
    assert outcome == fourbee(*words, tmp_path)
    assert outcome.code == 0


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    lines = [{"messages": MESSAGES}, {"prompt": "ab", "completion": "c"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_tokens_of_a_conversation_count_what_is_learned(fourbee, model, conversation):
    outcome = fourbee("tokens", "--conversation", conversation, "-m", model)
    shown = "<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n⟦ok<|im_end|>⟧\\n"
    assert outcome.code == 0
    assert "".join(outcome.out.splitlines()[:-2]) == shown
    assert outcome.out.splitlines()[-1] == "25 tokens, 3 learned"
    second = fourbee("tokens", "--conversation", conversation, "--line", 2, "-m", model)
    assert second.out.splitlines()[0] == "ab⟦c<|endoftext|>⟧"
    assert second.out.splitlines()[-1] == "4 tokens, 2 learned"


def test_what_is_learned_is_green(fourbee, model, conversation, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    outcome = fourbee("tokens", "--conversation", conversation, "--line", 2, "-m", model)
    pieces = [piece for piece in outcome.out.splitlines()[0].split("\x1b[0m") if piece]
    assert [piece.rsplit("m", 1)[0].removeprefix("\x1b[") + ":" + piece.rsplit("m", 1)[1]
            for piece in pieces if piece.startswith("\x1b[30;")] == [
        "30;102:c", "30;42:<|endoftext|>",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [(), ("text", "--conversation", "chat.jsonl")])
def test_tokens_wants_a_text_or_a_conversation(fourbee, words):
    outcome = fourbee("tokens", *words)
    assert (outcome.code, outcome.err) == (
        2,
        'fourbee: expected either a text, as in fourbee tokens "Hello", or --conversation\n',
    )


def test_a_line_that_is_not_there_is_one_line(fourbee, model, conversation, tmp_path):
    outcome = fourbee("tokens", "--conversation", conversation, "--line", 3, "-m", model)
    assert (outcome.code, outcome.err) == (
        2,
        f"fourbee: --line 3: {conversation} has fewer lines\n",
    )
    outcome = fourbee("tokens", "--conversation", tmp_path / "no", "-m", model)
    assert outcome.code == 3
    assert outcome.err == (f"fourbee: data {tmp_path / 'no'}: no such file\n")


# ---- eval


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Chats that are answered "ok", and raw prompts of which one goes on with "k"."""
    lines = [
        {"skill": "chat", "messages": MESSAGES, "expect": {"kind": "one_of", "value": ["ok"]}},
        {"skill": "chat", "messages": MESSAGES[:1], "expect": {"kind": "contains", "value": ["k"]}},
        {"skill": "raw", "prompt": "so", "expect": {"kind": "one_of", "value": ["k"]}},
        {"skill": "raw", "prompt": "six", "expect": {"kind": "one_of", "value": ["k"]}},
        {"skill": "raw", "prompt": "[/b]x", "expect": {"kind": "one_of", "value": ["k"]}},
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def counted(outcome, path: Path) -> dict[str, tuple[int, int]]:
    """Right answers and samples by skill, from the last line of standard output."""
    files = json.loads(outcome.out.splitlines()[-1])["files"]
    return {skill: (share["right"], share["total"]) for skill, share in files[str(path)].items()}


def test_eval_counts_right_answers_by_skill_and_ends_with_json(fourbee, model, samples):
    outcome = fourbee("eval", samples, "-m", model)
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 1
    assert counted(outcome, samples) == {"chat": (2, 2), "raw": (1, 3)}
    document = json.loads(outcome.out)
    assert (document["model"], document["temperature"]) == (str(model), 0.0)
    assert document["files"][str(samples)]["raw"].keys() == {"right", "total", "low", "high"}
    assert "33.3%" in outcome.err
    assert "6.1% - 79.2%" in outcome.err


def test_eval_shows_so_many_wrong_answers_a_skill(fourbee, model, samples):
    outcome = fourbee("eval", samples, "-m", model, "--wrong", 1)
    assert [line for line in outcome.err.splitlines() if line.startswith("[")] == [
        "[raw] 'six' -> ''"
    ]
    outcome = fourbee("eval", samples, "-m", model, "--wrong", 5)
    assert "[raw] '[/b]x' -> ''" in outcome.err.splitlines()


def test_eval_takes_so_many_samples_a_skill_and_files_of_one_name(
    fourbee, model, samples, tmp_path
):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / samples.name
    other.write_text(samples.read_text().splitlines()[2] + "\n")
    outcome = fourbee("eval", samples, other, "-m", model, "--limit", 1)
    assert counted(outcome, samples) == {"chat": (1, 1), "raw": (1, 1)}
    assert counted(outcome, other) == {"raw": (1, 1)}


def test_eval_reads_its_samples_before_it_loads_a_model(fourbee, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prompt": "a"}\n')
    outcome = fourbee("eval", path, "-m", tmp_path / "no")
    assert (outcome.code, outcome.err) == (
        2, f'fourbee: {path}:1: expected an object with the key "expect"\n',
    )  # fmt: skip
