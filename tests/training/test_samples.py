"""Samples: what is learned of each form, other people's forms, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourbee.foundation.errors import FourbeeError, TrainingError, UsageError
from fourbee.text.chat_format import ChatFormat
from fourbee.text.tokenizer import Tokenizer
from fourbee.training.formats import to_house
from fourbee.training.samples import Loss, encode, encode_pair, encode_prompt, encode_sample
from fourbee.training.sources import Source, read_samples

CALL = {"function": {"name": "calc", "arguments": {"e": "1+2"}}}
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}


def says(role: str, content: object = "red", **more: object) -> dict:
    return {"role": role, "content": content, **more}


ASKS, ANSWERS = says("user", "say red"), says("assistant")
LONG_CHAT = {
    "tools": [TOOL],
    "messages": [
        says("system", "be kind"),
        ASKS,
        ANSWERS,
        says("user", "one and two?"),
        says("assistant", "", tool_calls=[CALL]),
        says("tool", "three"),
        says("assistant", "three<|im_end|>house"),
    ],
}


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def chat(tokenizer) -> ChatFormat:
    return ChatFormat(tokenizer)


def spans(document, tokenizer: Tokenizer) -> list[str]:
    """The texts of the runs of learned tokens."""
    runs: list[list[int]] = []
    ids, mask = document
    for index, (token_id, learned) in enumerate(zip(ids, mask, strict=True)):
        if learned and not (index and mask[index - 1]):
            runs.append([])
        if learned:
            runs[-1].append(token_id)
    return [tokenizer.decode(run) for run in runs]


# ---- what is learned


def test_only_the_assistants_words_calls_and_end_tokens_are_learned(tokenizer, chat):
    ids, mask = encode_sample(LONG_CHAT, tokenizer, chat)
    call = '<tool_call>\n{"name": "calc", "arguments": {"e": "1+2"}}\n</tool_call>'
    assert spans((ids, mask), tokenizer) == [
        "red<|im_end|>", f"{call}<|im_end|>", "three<|im_end|>house<|im_end|>",
    ]  # fmt: skip
    end = tokenizer.token_id("<|im_end|>")
    learned = [token_id for token_id, one in zip(ids, mask, strict=True) if one]
    assert learned.count(end) == 3  # the one inside of the words is text
    assert tokenizer.token_id("<|im_start|>") not in learned


@pytest.mark.parametrize(
    ("sample", "text", "learned"),
    [
        ({"prompt": "one two", "completion": " three"}, "one two three<|endoftext|>",
         [" three<|endoftext|>"]),
        ({"text": "one two"}, "one two<|endoftext|>", ["one two<|endoftext|>"]),
        ({"completion": "three"}, "three<|endoftext|>", ["three<|endoftext|>"]),
        ({"prompt": [ASKS, ANSWERS, ASKS], "completion": "blue"}, None, ["blue<|im_end|>"]),
        ({"prompt": "say red", "completion": [ANSWERS]}, None, ["red<|im_end|>"]),
    ],
)  # fmt: skip
def test_a_text_learns_its_continuation_or_all_of_itself(tokenizer, chat, sample, text, learned):
    document = encode_sample(sample, tokenizer, chat)
    assert spans(document, tokenizer) == learned
    if text is not None:
        assert tokenizer.decode(document[0]) == text


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": [ASKS, ANSWERS, ASKS], "chosen": "one", "rejected": "two red"},
        {"prompt": [ASKS, ANSWERS, ASKS], "chosen": [says("assistant", "one")],
         "rejected": says("assistant", "two red")},
        {"chosen": [ASKS, ANSWERS, ASKS, says("assistant", "one")],
         "rejected": [ASKS, ANSWERS, ASKS, says("assistant", "two red")]},
    ],
)  # fmt: skip
def test_of_a_pair_the_last_answers_alone_are_learned_after_the_same_prompt(tokenizer, chat, pair):
    chosen, rejected = encode_pair(pair, tokenizer, chat)
    assert spans(chosen, tokenizer) == ["one<|im_end|>"]
    assert spans(rejected, tokenizer) == ["two red<|im_end|>"]
    prompt = encode_prompt({"prompt": [ASKS, ANSWERS, ASKS]}, tokenizer, chat)
    assert chosen[0][: len(prompt)] == rejected[0][: len(prompt)] == prompt
    assert chosen[1].index(True) == rejected[1].index(True) == len(prompt)


def test_a_raw_pair_and_the_other_losses(tokenizer, chat):
    raw = encode_pair({"prompt": "one", "chosen": " two", "rejected": " red"}, tokenizer, chat)
    assert [tokenizer.decode(ids) for ids, _ in raw] == ["one two<|endoftext|>",
                                                         "one red<|endoftext|>"]  # fmt: skip

    def encoded(sample, loss: Loss):
        return encode(sample, loss, tokenizer, chat)

    labelled = encoded({"prompt": [ASKS], "completion": "red", "label": True}, "label")
    assert (labelled.label, spans(labelled.documents[0], tokenizer)) == (True, ["red<|im_end|>"])
    task = encoded({"prompt": "1+2=", "answer": "3"}, "prompt")
    assert (task.answer, tokenizer.decode(task.documents[0][0])) == ("3", "1+2=")
    assert not any(task.documents[0][1])
    of_chat = encoded(LONG_CHAT, "prompt").documents[0][0]
    assert tokenizer.decode(of_chat).endswith("three\n</tool_response><|im_end|>\n"
                                              "<|im_start|>assistant\n")  # fmt: skip
    everything = encoded(LONG_CHAT, "all")
    assert everything.cuttable
    assert all(everything.documents[0][1])
    assert [encoded(one, "assistant").cuttable for one in (LONG_CHAT, {"text": "red"})] == [
        False, True,
    ]  # fmt: skip


# ---- one line for what is wrong


def talk(*messages: object) -> dict:
    return {"messages": list(messages)}


KEYS = "expected one of the keys messages, completion, text"


@pytest.mark.parametrize(
    ("loss", "sample", "reason"),
    [
        ("all", {"txt": "a"}, KEYS),
        ("all", {"conversations": []},
         f"{KEYS}; found 'conversations': is it format = 'sharegpt'?"),
        ("assistant", {"prompt": "a", "chosen": "b", "rejected": "c"}, f"{KEYS}; found a pair"),
        ("pair", {"text": "a"}, "expected one of the keys chosen and rejected; found a text"),
        ("label", {"prompt": "a", "completion": "b"},
         "expected one of the keys prompt, completion and label; found a completion"),
        ("prompt", {"text": "a"},
         "expected one of the keys prompt and answer, messages, completion; found a text"),
        ("all", {"text": ""}, "nothing to learn: no assistant turn or completion"),
        ("all", {"text": 3}, "text is 3; expected a string"),
        ("all", {"text": "a", "score": float("nan")}, "score is nan; expected a finite number"),
        ("all", talk(ASKS, says("assistant", "", tool_calls=[
            {"function": {"name": "f", "arguments": {"x": [float("inf")]}}}])),
         "messages[1].tool_calls[0].function.arguments.x[0] is inf; expected a finite number"),
        ("all", talk(ASKS, says("assistant", "", tool_calls="f")),
         "messages[1].tool_calls is 'f'; expected a list"),
        ("all", talk(ASKS, says("assistant", "", tool_calls=["f"])),
         "messages[1].tool_calls[0] is 'f'; expected an object with a function"),
        ("all", talk(ASKS, says("assistant", "", tool_calls=[{"function": {"arguments": {}}}])),
         "messages[1].tool_calls[0]: name is None; expected a tool's name"),
        ("all", talk(ASKS, says("assistant", "", tool_calls=[
            {"function": {"name": "f", "arguments": "{not json"}}])),
         "messages[1].tool_calls[0]: arguments is '{not json'; expected an object, or its JSON"),
        ("all", talk(ASKS, says("assistant", weight=0)),
         "messages[1].weight is 0; expected 1, as all that the assistant says is learned"),
        ("all", {**talk(ASKS, ANSWERS), "tools": [5]}, "tools[0] is 5; expected an object"),
        ("all", {"messages": []}, "messages: expected a list of at least one message"),
        ("all", {"messages": "a"}, "messages: expected a list of at least one message"),
        ("all", talk("a"), "messages[0]: expected an object"),
        ("all", talk(says("bot")),
         "messages[0].role is 'bot'; expected one of system, user, assistant, tool"),
        ("all", talk(says("user", ["a"])), "messages[0].content is ['a']; expected a string"),
        ("all", talk(says("user", None)), "messages[0].content is None; expected a string"),
        ("all", talk(ANSWERS), "messages[0]: the first message is the assistant's; expected a "
         "user's"),
        ("all", talk(says("system"), ANSWERS),
         "messages[1]: the first message is the assistant's; expected a user's"),
        ("all", talk(ASKS, says("system")), "messages[1]: a system message after others; expected "
         "it first"),
        ("all", talk(ASKS, ASKS, ANSWERS), "messages[1]: two user messages in a row"),
        ("all", talk(ASKS, ANSWERS, says("tool"), ANSWERS),
         "messages[2]: a tool message without a tool call before it"),
        ("all", talk(ASKS), "messages: the last message is the user's; expected an answer of the "
         "assistant"),
        ("all", {**talk(ASKS, ANSWERS), "tools": "calc"}, "tools is 'calc'; expected a list"),
        ("pair", {"prompt": "a", "chosen": "b", "rejected": "b"},
         "chosen and rejected are equal, so there is nothing to prefer"),
        ("pair", {"prompt": [ANSWERS], "chosen": "b", "rejected": "c"},
         "prompt[0]: the first message is the assistant's; expected a user's"),
        ("pair", {"prompt": [ASKS, ANSWERS], "chosen": "b", "rejected": "c"},
         "prompt: the last message is the assistant's; expected what the assistant is to answer"),
        ("pair", {"prompt": [ASKS], "chosen": 1, "rejected": "c"},
         "chosen is 1; expected a string or a list of messages"),
        ("pair", {"prompt": [ASKS], "chosen": [ASKS], "rejected": "c"},
         "prompt + chosen[1]: two user messages in a row"),
        ("pair", {"chosen": "a", "rejected": "b"},
         "chosen and rejected without a prompt: expected two lists of messages"),
        ("pair", {"chosen": [ASKS, ANSWERS], "rejected": [says("user", "no"), ANSWERS]},
         "chosen and rejected share no beginning"),
        ("pair", {"chosen": [ASKS, ANSWERS], "rejected": [ASKS, ANSWERS]},
         "chosen and rejected are equal or one is the beginning of the other"),
        ("label", {"prompt": "a", "completion": "b", "label": "yes"},
         "label is 'yes'; expected true or false"),
        ("prompt", {"prompt": "a", "answer": 4}, "answer is 4; expected a string"),
        ("prompt", {"prompt": [ASKS, ANSWERS], "answer": "4"},
         "prompt: the last message is the assistant's; expected what the assistant is to answer"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_one_line(tokenizer, chat, loss, sample, reason):
    with pytest.raises(FourbeeError) as caught:
        encode(sample, loss, tokenizer, chat)
    assert str(caught.value) == reason


def test_a_turn_without_an_end_token_is_refused(tokenizer):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    with pytest.raises(UsageError, match="with none of the end tokens"):
        encode_sample(talk(ASKS, ANSWERS), tokenizer, ChatFormat(tokenizer, template))


def test_a_template_that_writes_two_prompts_for_a_pair_is_refused(tokenizer):
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    chat = ChatFormat(tokenizer, "{{ messages[-1].content | length }}" + turns + prompt)
    with pytest.raises(TrainingError, match="the chat template writes their prompt differently"):
        encode_pair({"prompt": [ASKS], "chosen": "one", "rejected": "three"}, tokenizer, chat)


# ---- other people's forms


@pytest.mark.parametrize(
    ("form", "sample", "house"),
    [
        ("auto", {"text": "a", "other": 1}, {"text": "a", "other": 1}),
        ("alpaca", {"instruction": "add", "input": "1 2", "output": "3"},
         talk(says("user", "add\n1 2"), says("assistant", "3"))),
        ("alpaca", {"instruction": "say red", "input": "", "output": "red", "system": "be kind",
                    "history": [["say red", "red"]]},
         talk(says("system", "be kind"), ASKS, ANSWERS, ASKS, ANSWERS)),
        ("alpaca", {"instruction": "say red", "output": "red", "difficulty": 7.0, "skill": "say",
                    "language": "en", "source": "x"},
         {**talk(ASKS, ANSWERS), "difficulty": 7.0, "skill": "say", "language": "en"}),
        ("dolly", {"instruction": "Who?", "context": "Ann.", "response": "Ann"},
         talk(says("user", "Ann.\n\nWho?"), says("assistant", "Ann"))),
        ("sharegpt", {"conversations": [
            {"from": "human", "value": "say red"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "7"}, {"from": "gpt", "value": "red"}],
            "tools": '[{"name": "f"}]', "system": "be kind"},
         {"messages": [
             says("system", "be kind"), ASKS,
             says("assistant", "", tool_calls=[
                 {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]),
             says("tool", "7"), ANSWERS],
          "tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "say red"}],
                      "chosen": {"from": "gpt", "value": "red"},
                      "rejected": {"from": "gpt", "value": "blue"}},
         {"prompt": [ASKS], "chosen": [ANSWERS], "rejected": [says("assistant", "blue")]}),
        ("hh", {"chosen": "\n\nHuman: say red\n\nAssistant: red",
                "rejected": "\n\nHuman: say red\n\nAssistant: no\nHuman: no"},
         {"chosen": [ASKS, ANSWERS], "rejected": [ASKS, says("assistant", "no\nHuman: no")]}),
        ("kto", {"messages": [ASKS, ANSWERS], "label": False},
         {"prompt": [ASKS], "completion": [ANSWERS], "label": False}),
        ("gsm8k", {"question": "1+2?", "answer": "It is <<1+2=3>>3.\n#### 3"},
         {**talk(says("user", "1+2?"), says("assistant", "It is <<1+2=3>>3.\n#### 3")),
          "answer": "3"}),
        ("parts", {"messages": [
            {"role": "user", "content": [{"type": "text", "value": "say red"}]},
            {"role": "assistant", "loss_weight": 1.0, "content": [
                {"type": "reasoning", "value": "hm"}, {"type": "text", "value": "red"}]}]},
         talk(ASKS, says("assistant", "red", reasoning_content="hm"))),
    ],
)  # fmt: skip
def test_other_peoples_samples_in_our_forms(form, sample, house):
    assert to_house(sample, form) == house


@pytest.mark.parametrize(
    ("form", "sample", "reason"),
    [
        ("alpaca", {"instruction": "a"}, "format 'alpaca': expected the key 'output'"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]},
         "from is 'bot'; expected one of human, user, gpt, assistant, system, observation, tool, "
         "function_call"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "f("}]},
         "not of the format 'sharegpt': Expecting value: line 1 column 1 (char 0)"),
        ("sharegpt", {"conversations": 7},
         "not of the format 'sharegpt': 'int' object is not iterable"),
        ("hh", {"chosen": "red", "rejected": "red"},
         r"expected text that begins with '\n\nHuman:'"),
        ("parts", {"messages": [{"role": "assistant", "content": [], "loss_weight": 0.0}]},
         "loss_weight = 0.0 of the assistant: expected 1 of the assistant and 0 of others"),
        ("gsm", {}, "format = 'gsm': expected one of auto, lines, alpaca, dolly, sharegpt, hh, "
         "kto, gsm8k, parts (did you mean 'gsm8k'?)"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_format_is_one_line(form, sample, reason):
    with pytest.raises(FourbeeError) as caught:
        to_house(sample, form)
    assert str(caught.value) == reason


def test_what_was_preferred_is_an_example(tmp_path, tokenizer, chat):
    """Of two conversations all turns of the assistant, after a prompt the answer alone."""
    asked = {"prompt": [ASKS, ANSWERS, ASKS], "chosen": "red", "rejected": "blue", "skill": "say"}
    told = "\n\nHuman: say red\n\nAssistant: red"
    path = tmp_path / "pairs.jsonl"
    for form, sample, expected in (
        ("auto", asked, {"prompt": asked["prompt"], "completion": "red", "skill": "say"}),
        ("hh", {"chosen": told, "rejected": f"{told}!"}, talk(ASKS, ANSWERS)),
    ):
        path.write_text(json.dumps(sample) + "\n")
        ((_, taken),) = read_samples(Source(path, format=form, take="chosen"))
        assert taken == expected
        assert spans(encode(taken, "assistant", tokenizer, chat).documents[0], tokenizer) == [
            "red<|im_end|>"
        ]
    path.write_text(json.dumps({"text": "red"}) + "\n")
    with pytest.raises(TrainingError, match=r"pairs.jsonl:1: expected one of the keys chosen and"):
        list(read_samples(Source(path, take="chosen")))


# ---- real files


REAL = [
    ("preference/dpo_en_demo.jsonl.gz", "sharegpt", "pair", 300),
    ("preference/dpo_zh_demo.jsonl.gz", "sharegpt", "pair", 300),
    ("preference/hh_harmless_base_test.jsonl.gz", "hh", "pair", 2312),
    ("preference/kto_en_demo.jsonl.gz", "kto", "label", 300),
    ("instruct/identity.jsonl", "alpaca", "assistant", 91),
    ("instruct/dolly_fixture.json", "dolly", "assistant", 12),
    ("instruct/glaive_toolcall_en_demo.jsonl.gz", "sharegpt", "assistant", 300),
    ("instruct/glaive_toolcall_zh_demo.jsonl.gz", "sharegpt", "assistant", 298),
    ("instruct/v1_sft_demo.jsonl.gz", "parts", "assistant", 500),
    ("instruct/reason_tool_use_demo_50.jsonl.gz", "parts", "assistant", 50),
    ("gsm8k/test.jsonl.gz", "gsm8k", "assistant", 1319),
    ("gsm8k/test.jsonl.gz", "gsm8k", "prompt", 1319),
    ("simple_english/wiki_demo.txt.gz", "lines", "all", 30),
]


@pytest.mark.parametrize(("name", "form", "loss", "count"), REAL)
def test_real_files_are_read_whole(test_data, embedded_model, name, form, loss, count):
    """Every 20th sample encoded; the only bad ones are two tool messages without a call."""
    tokenizer = Tokenizer.load(embedded_model)
    chat = ChatFormat(tokenizer)
    read = list(read_samples(Source(test_data / name, format=form)))
    bad = 0
    for _, sample in read if len(read) <= 300 and "glaive" in name else read[::20]:
        try:
            documents = encode(sample, loss, tokenizer, chat).documents
        except TrainingError as error:
            assert "a tool message without a tool call" in str(error)
            bad += 1
            continue
        assert len(documents) == 1 + (loss == "pair")
        if loss == "prompt":
            assert sample["answer"].replace(",", "").lstrip("-").replace(".", "").isdigit()
    assert len(read) - bad == count


def test_a_mask_of_real_tool_calls_covers_what_the_assistant_says(test_data, embedded_model):
    tokenizer = Tokenizer.load(embedded_model)
    path = test_data / "instruct/glaive_toolcall_en_demo.jsonl.gz"
    _, sample = next(read_samples(Source(path, format="sharegpt")))
    learned = spans(encode_sample(sample, tokenizer, ChatFormat(tokenizer)), tokenizer)
    turns = [one for one in sample["messages"] if one["role"] == "assistant"]
    assert len(learned) == len(turns)
    for text, turn in zip(learned, turns, strict=True):
        assert text.endswith("<|im_end|>")
        if turn.get("tool_calls"):
            call = turn["tool_calls"][0]["function"]
            inside = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
            assert json.loads(inside) == call
        else:
            assert text == turn["content"] + "<|im_end|>"
