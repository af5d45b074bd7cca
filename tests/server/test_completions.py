"""/v1/completions as clients and evaluation harnesses use it."""

import pytest

from .fakes import eventually


def test_the_example_of_the_description_is_answered(http):
    body = {
        "prompt": "请解释量子纠缠的基本原理。",
        "temperature": 0.7,
        "max_tokens": 512 - 100,
        "stream": False,
    }
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == "nothing"


def test_a_completion_has_openai_s_form_and_exact_counts(client, tokenizer):
    answer = client.completions.create(model="tiny", prompt="say hello", max_tokens=50)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.model == "tiny"
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("hello", "stop", 0)
    assert choice.logprobs is None
    prompt = len(tokenizer.encode("say hello", True))
    completion = len(tokenizer.encode("hello", False))
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_max_tokens_is_sixteen_unless_given(client, engine):
    answer = client.completions.create(model="tiny", prompt="say forever")
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("as_ids", [False, True])
def test_several_prompts_and_choices_are_numbered_in_order(client, tokenizer, as_ids):
    prompts = ["say one", "say two"]
    if as_ids:
        prompts = [tokenizer.encode(prompt, True) for prompt in prompts]
    answer = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=50)
    texts = [(choice.index, choice.text) for choice in answer.choices]
    assert texts == [(0, "one"), (1, "one"), (2, "two"), (3, "two")]


def test_one_prompt_of_token_ids_is_one_prompt(client, tokenizer):
    ids = tokenizer.encode("say hello", True)
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=50)
    assert answer.choices[0].text == "hello"
    assert answer.usage.prompt_tokens == len(ids)


def test_control_tokens_in_a_prompt_are_control_tokens(client, engine, tokenizer):
    client.completions.create(model="tiny", prompt="<|im_start|>user", max_tokens=1)
    assert engine.added[0].prompt_ids[0] == tokenizer.control_tokens["<|im_start|>"]


def test_each_choice_has_a_seed_of_its_own_and_the_first_has_the_given_one(client):
    answer = client.completions.create(model="tiny", prompt="say seed", n=3, seed=41, max_tokens=50)
    assert [choice.text for choice in answer.choices] == ["41", "42", "43"]


def test_sampling_fields_reach_the_engine(client, engine):
    client.completions.create(
        model="tiny",
        prompt="say hello",
        temperature=0,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"42": -100},
        seed=-(2**63),
        stop=["a", "b"],
        extra_body={"top_k": 3, "min_p": 0.1, "ignore_eos": True},
        max_tokens=7,
    )
    params = engine.added[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 3, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.logit_bias == ((42, -100.0),)
    assert (params.seed, params.stop, params.max_tokens) == (-(2**63), ("a", "b"), 7)
    assert params.ignore_eos


def test_the_checkpoint_s_recommendations_hold_where_a_request_is_silent(client, engine):
    client.completions.create(model="tiny", prompt="say hello", top_p=0.9)
    params = engine.added[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.7, 20, 0.9)


def test_null_means_not_given(http, engine):
    body = {"prompt": "say hello", "temperature": None, "max_tokens": None, "stop": None}
    body |= {"n": None, "stream": None, "logit_bias": None, "suffix": None, "best_of": None}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert engine.added[0].params.temperature == 0.7


def test_fields_that_do_not_concern_the_answer_are_accepted(http):
    body = {
        "prompt": "say hello",
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "best_of": 1,
        "suffix": "",
        "repetition_penalty": 1.0,
    }
    assert http.post("/v1/completions", json=body).status_code == 200


def test_a_stop_string_is_cut_off_and_ends_the_engine_s_request(client, engine):
    answer = client.completions.create(
        model="tiny", prompt="say hello world hello", stop=" wor", max_tokens=50
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")


def test_a_stop_string_in_an_endless_answer_aborts_the_engine_s_request(client, engine):
    answer = client.completions.create(
        model="tiny", prompt="say forever", stop="hello hello", max_tokens=300
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert eventually(lambda: engine.aborted == [engine.added[0].id])
    assert answer.usage.completion_tokens < 40


def test_echo_puts_the_prompt_before_the_answer(client):
    answer = client.completions.create(model="tiny", prompt="say hello", echo=True)
    assert answer.choices[0].text == "say hellohello"


def test_echo_and_logprobs_score_the_prompt_as_harnesses_need_it(client, tokenizer):
    ids = tokenizer.encode("say hello", True)
    answer = client.completions.create(
        model="tiny", prompt=[ids, ids], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1
    )
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(ids) + 1
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.token_logprobs == [None] + [-0.25] * len(ids)
        assert logprobs.top_logprobs[0] is None
        assert all(max(top.values()) == -0.25 for top in logprobs.top_logprobs[1:])
        pieces = [len(token) for token in logprobs.tokens]
        assert logprobs.text_offset == [sum(pieces[:index]) for index in range(len(pieces))]


def test_the_token_after_a_scored_prompt_is_reported_even_if_it_ends_the_text(client, tokenizer):
    ids = tokenizer.encode("say ", True)
    answer = client.completions.create(
        model="tiny", prompt=[ids], max_tokens=1, logprobs=1, echo=True
    )
    assert answer.choices[0].logprobs.tokens == ["say", " ", "<|im_end|>"]
    assert answer.choices[0].text == "say "


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_max_tokens_zero_with_echo_gives_the_prompt_alone(client, tokenizer, engine, logprobs):
    answer = client.completions.create(
        model="tiny", prompt="say hello", max_tokens=0, logprobs=logprobs, echo=True
    )
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("say hello", "length")
    assert answer.usage.completion_tokens == 0
    if logprobs is not None:
        assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens
        assert len(choice.logprobs.top_logprobs[1]) == max(1, logprobs)


def test_part_of_a_character_is_shown_as_bytes_and_placed_rightly(client, tokenizer):
    answer = client.completions.create(model="tiny", prompt="say 🙃a", logprobs=0, max_tokens=50)
    [choice] = answer.choices
    assert choice.text == "🙃a"
    assert choice.logprobs.tokens[0].startswith("bytes:\\xf0")
    assert (choice.logprobs.tokens[-1], choice.logprobs.text_offset[-1]) == ("a", 1)
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens


def test_minus_infinity_is_written_as_a_number(http, engine, monkeypatch):
    scored = type(engine)._scored

    def impossible(self, token_id, num_top):
        return scored(self, token_id, num_top).__class__(token_id, float("-inf"))

    monkeypatch.setattr(type(engine), "_scored", impossible)
    answer = http.post("/v1/completions", json={"prompt": "say hello", "logprobs": 0}).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"][0] == -9999.0


def test_a_stream_gives_the_same_as_a_whole_answer(client):
    options = {
        "model": "tiny",
        "prompt": ["say hello 量子 🙃 world", "say the world"],
        "n": 2,
        "logprobs": 1,
        "echo": True,
        "stop": "wor",
        "max_tokens": 50,
    }
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True))
    for choice in whole.choices:
        parts = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [item for part in parts for item in getattr(part.logprobs, name)]
            assert joined == getattr(choice.logprobs, name)
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == choice.finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_the_usage_of_a_stream_comes_last_when_asked_for(client):
    options = {"model": "tiny", "prompt": "say hello", "max_tokens": 50}
    whole = client.completions.create(**options)
    *chunks, last = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
