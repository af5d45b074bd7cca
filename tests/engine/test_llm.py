"""LLM: text in, text out, the same whether streamed or not, and clean when it is interrupted."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from fourbee.engine.llm import LLM, Usage
from fourbee.engine.sampling import SamplingDefaults, SamplingParams
from fourbee.engine.scheduler import EngineSettings
from fourbee.foundation.errors import FourbeeError, ModelFileError
from fourbee.model.checkpoint_files import save_weights
from fourbee.text.bpe import save_tokenizer
from fourbee.text.tokenizer import Tokenizer

from .conftest import CHATML

PARAMS = SamplingParams(temperature=0.8, seed=1, max_tokens=20)
PROMPTS = ["the reader", "读者", "a model of the"]


@pytest.fixture
def llm(weights, ops, tokenizer) -> LLM:
    return LLM(weights, ops, tokenizer)


def joined(deltas) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_stream_is_the_answer_in_pieces(llm) -> None:
    for prompt in PROMPTS:
        deltas = list(llm.stream(prompt, PARAMS))
        completion = llm.generate([prompt], PARAMS)[0]
        assert joined(deltas) == completion.text
        assert len(deltas) > 3
        assert deltas[-1].finish_reason == completion.finish_reason == "length"
        tokens = [token.scored.token_id for delta in deltas for token in delta.tokens]
        assert tuple(tokens) == completion.token_ids
        assert completion.text == llm.tokenizer.decode(tokens, skip_control_tokens=True)


def test_answers_come_in_the_order_of_prompts_however_long(llm) -> None:
    several = [dataclasses.replace(PARAMS, max_tokens=9 - 3 * i) for i in range(3)]
    completions = llm.generate(PROMPTS, several)
    assert [len(c.token_ids) for c in completions] == [9, 6, 3]
    alone = [llm.generate([p], one)[0] for p, one in zip(PROMPTS, several, strict=True)]
    assert completions == alone


def test_more_prompts_than_the_queue_holds_are_answered(weights, ops, tokenizer) -> None:
    llm = LLM(weights, ops, tokenizer, settings=EngineSettings(max_running=2, max_waiting=1))
    params = dataclasses.replace(PARAMS, max_tokens=2)
    assert len(llm.generate([[1, 2, 3]] * 9, params)) == 9


def test_text_and_its_tokens_are_the_same_prompt(llm) -> None:
    ids = llm.tokenizer.encode("the <|im_end|> reader", control_tokens=True)
    assert llm.generate(["the <|im_end|> reader"], PARAMS) == llm.generate([ids], PARAMS)
    assert llm.tokenizer.token_id("<|im_end|>") in ids


def test_a_stop_string_ends_the_answer_before_it(llm) -> None:
    whole = llm.generate(["the reader"], PARAMS)[0]
    stop = whole.text[7:9]
    params = dataclasses.replace(PARAMS, stop=(stop,), logprobs=1)
    cut = llm.generate(["the reader"], params)[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    assert cut.logprobs is not None
    assert tuple(token.scored.token_id for token in cut.logprobs) == cut.token_ids
    assert all(len(token.scored.top) == 1 for token in cut.logprobs)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert joined(llm.stream("the reader", params)) == cut.text
    assert not llm.engine.num_running


def test_usage_counts_prompt_and_answer(llm) -> None:
    assert llm.generate([[1, 2, 3, 4]], PARAMS)[0].usage == Usage(4, 20)


def test_a_chat_is_its_template_continued(llm) -> None:
    messages = [{"role": "user", "content": "the reader"}]
    ids = llm.chat_format.encode(messages)
    completion, again = llm.chat(messages, PARAMS), llm.generate([ids], PARAMS)[0]
    assert (completion.text, completion.token_ids) == (again.text, again.token_ids)
    assert (completion.usage.cached_tokens, again.usage.cached_tokens) == (0, len(ids) - 1)
    assert joined(llm.stream_chat(messages, PARAMS)) == completion.text


def test_interleaved_streams_do_not_mix(llm) -> None:
    expected = [completion.text for completion in llm.generate(PROMPTS[:2], PARAMS)]
    first, second = (llm.stream(prompt, PARAMS) for prompt in PROMPTS[:2])
    texts = ["", ""]
    for one, other in itertools.zip_longest(first, second):
        texts[0] += one.text if one else ""
        texts[1] += other.text if other else ""
    assert texts == expected


def test_closing_a_stream_aborts_its_request(llm) -> None:
    stream = llm.stream("the reader", PARAMS)
    next(stream)
    assert llm.engine.num_running == 1
    stream.close()
    assert (llm.engine.num_running, llm._answers) == (0, {})


def test_ctrl_c_leaves_nothing_running_and_the_model_usable(weights, ops, tokenizer) -> None:
    class Interrupted:
        armed = True

        def __getattr__(self, name):
            return getattr(ops, name)

        def head(self, *arguments):
            if self.armed:
                raise KeyboardInterrupt
            return ops.head(*arguments)

    fake = Interrupted()
    llm = LLM(weights, fake, tokenizer, settings=EngineSettings(max_running=1))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, PARAMS)
    assert (llm.engine.num_running, llm.engine.num_waiting, llm._answers) == (0, 0, {})
    fake.armed = False
    assert llm.generate(PROMPTS, PARAMS) == LLM(weights, ops, tokenizer).generate(PROMPTS, PARAMS)


def test_an_error_is_told_in_the_answer_and_raised_by_a_stream(weights, ops, tokenizer) -> None:
    broken = dataclasses.replace(weights, final_norm=weights.final_norm * float("nan"))
    llm = LLM(broken, ops, tokenizer)
    message = "the model's logits are not finite: check its weights"
    completion = llm.generate(["the reader"], PARAMS)[0]
    assert (completion.text, completion.finish_reason) == ("", "error")
    assert completion.error == message
    with pytest.raises(FourbeeError) as error:
        list(llm.stream("the reader", PARAMS))
    assert str(error.value) == message
    assert not llm._answers


def test_what_cannot_work_is_refused_before_anything_is_computed(llm, error_of) -> None:
    assert error_of(llm.generate, "the reader")[0] == (
        "prompts: expected a list of prompts, not one string"
    )
    assert error_of(llm.generate, ["a", "b"], [PARAMS])[0] == (
        "params: expected one for all or 2, one a prompt, not 1"
    )
    message, parameter = error_of(llm.generate, ["the reader", ""], PARAMS)
    assert (message, parameter) == ("prompt is empty: expected at least one token", "prompt")
    assert error_of(llm.stream, [300])[0] == "prompt holds token id 300: expected from 0 to 299"
    assert not llm.engine.has_work
    assert llm.generate([]) == []


@pytest.fixture
def folder(weights, tokenizer, tmp_path):
    def save(ops) -> None:
        save_weights(tmp_path, weights, ops)
        save_tokenizer(tmp_path, tokenizer._backend, CHATML)
        values = {"do_sample": False, "eos_token_id": 7}
        (tmp_path / "generation_config.json").write_text(json.dumps(values))

    return tmp_path, save


def test_a_checkpoint_folder_is_loaded_with_its_defaults(folder, weights, ops, tokenizer) -> None:
    path, save = folder
    save(ops)
    llm = LLM.load(str(path), device="cpu")
    assert llm.defaults == SamplingDefaults(temperature=0.0, eos_token_ids=(7,))
    expected = LLM(weights, ops, tokenizer, llm.defaults)
    params = dataclasses.replace(llm.defaults.params, max_tokens=20)
    assert llm.generate(PROMPTS, params) == expected.generate(PROMPTS, params)
    assert llm.tokenizer.eos_token_ids == (7,)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(ModelFileError) as error:
        LLM.load(tmp_path)
    assert str(error.value) == f"{tmp_path}: no config.json; expected a Qwen3 folder"


def test_a_tokenizer_without_a_template_has_no_chat(weights, ops, tokenizer) -> None:
    llm = LLM(weights, ops, Tokenizer(tokenizer._backend))
    with pytest.raises(ModelFileError) as error:
        llm.chat([{"role": "user", "content": "hi"}])
    assert str(error.value) == (
        "this checkpoint has no chat template: neither chat_template.jinja nor "
        "chat_template in tokenizer_config.json"
    )
