# ruff: noqa: E501  (a case of a table is kept on one line)
"""Every refusal of a request: its status, its exact words, its code and its parameter."""

import json
import socket

import httpx
import openai
import pytest

from fourbee.foundation.errors import ModelFileError
from fourbee.server import app as app_module

from .fakes import CONTEXT, make_model

CHAT = "/v1/chat/completions"
RAW = "/v1/completions"
MESSAGES = [{"role": "user", "content": "say hello"}]
TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def refusal(http, path: str, body, **options) -> tuple[int, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | options
    answer = http.post(path, content=content, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json().keys() == {"error"}
    return answer.status_code, answer.json()["error"]


def check(http, path, body, message, parameter, code="invalid_value", status=400):
    assert refusal(http, path, body) == (
        status,
        {
            "message": message,
            "type": "invalid_request_error",
            "param": parameter,
            "code": code,
        },
    )


NUMBERS = [
    ("temperature", '"hot"', "a number from 0 to 2"),
    ("temperature", "-1", "a number from 0 to 2"),
    ("temperature", "2.1", "a number from 0 to 2"),
    ("temperature", "true", "a number from 0 to 2"),
    ("top_p", "0", "a number above 0 and not above 1"),
    ("top_p", "1.1", "a number above 0 and not above 1"),
    ("top_k", "-2", "a whole number, 0 for no limit"),
    ("top_k", "1.5", "a whole number, 0 for no limit"),
    ("min_p", "2", "a number from 0 to 1"),
    ("presence_penalty", "3", "a number from -2 to 2"),
    ("frequency_penalty", "-3", "a number from -2 to 2"),
    ("n", "0", "a whole number from 1 to 128"),
    ("n", "129", "a whole number from 1 to 128"),
    ("n", "1000000000", "a whole number from 1 to 128"),
    ("n", "true", "a whole number from 1 to 128"),
    ("seed", "9223372036854775808", "a whole number of 64 bits"),
    ("seed", "0.5", "a whole number of 64 bits"),
    ("stream", '"yes"', "true or false"),
    ("stop", '""', "a string of 1 to 1000 characters or a list of up to 16"),
    ("stop", "5", "a string of 1 to 1000 characters or a list of up to 16"),
    ("logit_bias", "[]", 'an object of token ids and numbers from -100 to 100, as {"42": -100}'),
    ("repetition_penalty", "1.1", "1 (use presence_penalty or frequency_penalty)"),
    ("store", "true", "false: nothing is stored here"),
    ("model", "7", "the name of the served model, or nothing"),
]


@pytest.mark.parametrize("path", [RAW, CHAT])
@pytest.mark.parametrize(("field", "value", "right_form"), NUMBERS)
def test_a_value_that_is_not_right_is_named_with_the_right_form(
    http, path, field, value, right_form
):
    start = '"prompt": "a"' if path == RAW else '"messages": [{"role": "user", "content": "a"}]'
    body = f'{{{start}, "{field}": {value}}}'.encode()
    check(http, path, body, f"{field} = {value}: expected {right_form}", field)


RAW_REFUSALS = [
    ({"max_tokens": -1}, "max_tokens = -1: expected a whole number from 1, or 0 together with echo"),
    ({"max_tokens": "5"}, 'max_tokens = "5": expected a whole number from 1, or 0 together with echo'),
    ({"max_tokens": 1.5}, "max_tokens = 1.5: expected a whole number from 1, or 0 together with echo"),
    ({"max_tokens": True}, "max_tokens = true: expected a whole number from 1, or 0 together with echo"),
    ({"max_tokens": 0}, "max_tokens = 0: expected a whole number from 1, or 0 together with echo"),
    ({"logprobs": 21}, "logprobs = 21: expected a whole number from 0 to 20"),
    ({"logprobs": True}, "logprobs = true: expected a whole number from 0 to 20"),
    ({"best_of": 3}, "best_of = 3: expected 1: candidates are not ranked here"),
    ({"suffix": "end"}, 'suffix = "end": expected nothing: this model only continues text'),
    ({"prompt": []}, "prompt = []: expected at least one token in each prompt"),
    ({"prompt": ""}, 'prompt = "": expected at least one token in each prompt'),
    ({"prompt": [[]]}, "prompt = [[]]: expected at least one token in each prompt"),
    ({"prompt": ["a", ""]}, 'prompt = ["a", ""]: expected at least one token in each prompt'),
    ({"prompt": ["a"] * 257}, "prompt has 257 entries: expected at most 256"),
    ({"stop": ["a"] * 17}, f"stop = {json.dumps(['a'] * 17)[:80]}...: expected a string of 1 to 1000 characters or a list of up to 16"),
    ({"stream_options": {}}, "stream_options: expected only with stream = true"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), RAW_REFUSALS)
def test_a_completion_is_refused(http, fields, message):
    parameter = next(iter(fields))
    body = {"prompt": "a", **fields}
    check(http, RAW, body, message, parameter)


def test_a_place_inside_of_a_list_is_named(http):
    form = "a string, a list of strings, a list of token ids or a list of lists of token ids"
    check(http, RAW, {"prompt": [1, 2, "a"]}, f'prompt[2] = "a": expected {form}', "prompt[2]")
    check(http, RAW, {"prompt": ["a", 1]}, f"prompt[1] = 1: expected {form}", "prompt[1]")
    check(http, RAW, {"prompt": 5}, f"prompt = 5: expected {form}", "prompt")
    check(http, RAW, {"prompt": None}, f"prompt = null: expected {form}", "prompt")


@pytest.mark.parametrize("bad", [-1, 999_999])
def test_a_token_out_of_vocabulary_is_refused(http, tokenizer, bad):
    message = (
        f"prompt has the token id {bad}, which is out of vocabulary: expected ids from 0 to "
        f"{tokenizer.vocab_size - 1}"
    )
    check(http, RAW, {"prompt": [1, bad]}, message, "prompt")


def test_more_answers_than_a_request_may_have_are_refused(http):
    message = "n = 100 for 3 prompts: expected at most 256 answers in one request"
    check(http, RAW, {"prompt": ["a"] * 3, "n": 100}, message, "n")


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({"x": 1}, 'logit_bias has the key "x": expected a token id from 0 to {last}'),
        ({"-1": 1}, 'logit_bias has the key "-1": expected a token id from 0 to {last}'),
        ({"99999": 1}, 'logit_bias has the key "99999": expected a token id from 0 to {last}'),
        ({"1" * 50: 1}, f'logit_bias has the key "{"1" * 50}": expected a token id from 0 to {{last}}'),
        ({"5": 200}, 'logit_bias["5"] = 200: expected a number from -100 to 100'),
        ({"5": "a"}, 'logit_bias["5"] = "a": expected a number from -100 to 100'),
        ({"5": True}, 'logit_bias["5"] = true: expected a number from -100 to 100'),
    ],
)  # fmt: skip
def test_a_wrong_bias_is_named(http, tokenizer, bias, message):
    message = message.format(last=tokenizer.vocab_size - 1)
    check(http, RAW, {"prompt": "a", "logit_bias": bias}, message, "logit_bias")


CHAT_REFUSALS = [
    ({"messages": []}, "messages", "messages = []: expected a list of at least one message"),
    ({"messages": None}, "messages", "messages = null: expected a list of at least one message"),
    ({"messages": "hi"}, "messages", 'messages = "hi": expected a list of at least one message'),
    ({"messages": [123]}, "messages[0]", "messages[0] = 123: expected an object"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", 'messages[0].role = "king": expected one of system, developer, user, assistant, tool'),
    ({"messages": [{"role": 123, "content": "a"}]}, "messages[0].role", "messages[0].role = 123: expected one of system, developer, user, assistant, tool"),
    ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content", "messages[1].content = null: expected a string or a list of text parts"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": None}]}, "messages[1].content", "messages[1].content = null: expected a string or a list of text parts"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "messages[0].content = 5: expected a string or a list of text parts"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0].type", 'messages[0].content[0].type = "image_url": expected "text": this model reads nothing else'),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages[0].tool_calls", "messages[0].tool_calls: expected only in messages of the assistant"),
    ({"messages": [{"role": "user", "content": "a", "tool_call_id": "c1"}]}, "messages[0].tool_call_id", "messages[0].tool_call_id: expected only in messages with the role tool"),
    ({"messages": [*MESSAGES, {"role": "tool", "content": "3", "tool_call_id": "c9"}]}, "messages[1].tool_call_id", 'messages[1].tool_call_id = "c9": expected the id of a tool call in a message before it'),
    ({"messages": [*MESSAGES, {"role": "tool", "content": "3"}]}, "messages[1].tool_call_id", "messages[1].tool_call_id = null: expected the id of a tool call in a message before it"),
    ({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "add", "arguments": "{1"}}]}]}, "messages[1].tool_calls[0].function.arguments", 'messages[1].tool_calls[0].function.arguments = "{1": expected the text of a JSON object'),
    ({"max_tokens": 0}, "max_tokens", "max_tokens = 0: expected a whole number from 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens = -1: expected a whole number from 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "max_tokens = 5 and max_completion_tokens = 6: expected one of them"),
    ({"logprobs": 1}, "logprobs", "logprobs = 1: expected true or false"),
    ({"top_logprobs": 5}, "top_logprobs", "top_logprobs: expected only with logprobs = true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs = 21: expected a whole number from 0 to 20"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name", 'tools[1].function.name = "add": expected another name than those of the tools before it'),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", 'tools[0].function.name = "a b": expected 1 to 64 letters, digits, underscores or hyphens'),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "tools[0].function.strict", "tools[0].function.strict = true: expected false: arguments are not constrained here"),
    ({"tool_choice": "required"}, "tool_choice", 'tool_choice = "required": expected "auto" or "none": a call cannot be forced here'),
    ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice", 'tool_choice = {"type": "function", "function": {"name": "add"}}: expected "auto" or "none": a call cannot be forced here'),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "parallel_tool_calls = false: expected true: the number of calls is not limited here"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", 'response_format.type = "json_object": expected "text": JSON is not enforced here'),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.type", 'response_format.type = "json_schema": expected "text": JSON is not enforced here'),
    ({"reasoning_effort": "high"}, "reasoning_effort", 'reasoning_effort = "high": expected "none": this model does not reason aloud'),
    ({"functions": []}, "functions", "functions = []: expected null: use tools"),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", 'chat_template_kwargs = {"a": 1}: expected null: the chat template is fixed'),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options: expected only with stream = true"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "parameter", "message"), CHAT_REFUSALS)
def test_a_chat_is_refused(http, fields, parameter, message):
    check(http, CHAT, {"messages": MESSAGES, **fields}, message, parameter)


UNKNOWN = [
    (RAW, {"prompt": "a", "temprature": 1}, "temprature", " (did you mean 'temperature'?)"),
    (RAW, {"prompt": "a", "messages": []}, "messages", ""),
    (CHAT, {"messages": MESSAGES, "max_token": 1}, "max_token", " (did you mean 'max_tokens'?)"),
    (CHAT, {"messages": [{"rol": "user", "role": "user", "content": "a"}]}, "messages[0].rol", " (did you mean 'role'?)"),
    (CHAT, {"messages": MESSAGES, "stream": True, "stream_options": {"usage": True}}, "stream_options.usage", " (did you mean 'include_usage'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field", "hint"), UNKNOWN)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(http, path, body, field, hint):
    check(http, path, body, f"unknown field {field!r}{hint}", field, code="unknown_field")


def test_a_missing_field_is_named(http):
    form = "a string, a list of strings, a list of token ids or a list of lists of token ids"
    check(http, RAW, {}, f"missing field 'prompt': expected {form}", "prompt", "missing_field")
    form = "a list of at least one message"
    check(http, CHAT, {}, f"missing field 'messages': expected {form}", "messages", "missing_field")


@pytest.mark.parametrize("path", [RAW, CHAT])
@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b"", "EOF while parsing a value at line 1 column 0", "invalid_json"),
        (b'{"prompt": ', "EOF while parsing a value at line 1 column 11", "invalid_json"),
        (b"{} {}", "trailing characters at line 1 column 4", "invalid_json"),
        (b"{'a': 1}", "key must be a string at line 1 column 2", "invalid_json"),
    ],
)
def test_a_body_that_is_not_json_is_refused_with_the_position(http, path, body, message, code):
    check(http, path, body, f"the body is not valid JSON: {message}", None, code)


@pytest.mark.parametrize("body", ['"str"', "[1]", "42", "null"])
def test_a_body_that_is_no_object_is_refused(http, body):
    check(http, RAW, body.encode(), f"the body is {body}; expected a JSON object", None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"\\ud800": 1}',
        b'{"prompt": "a", "\xff": 1}',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_text_and_numbers_that_are_none_are_refused(http, body):
    status, error = refusal(http, RAW, body)
    assert status == 400 and error["type"] == "invalid_request_error"


def test_many_mistakes_are_not_listed(http):
    body = {f"field{number}": 1 for number in range(2000)}
    message = "the body has 2001 mistakes; send a CompletionRequest"
    check(http, RAW, body, message, None)


def test_a_long_value_is_cut_in_the_message(http):
    shown = '"' + "x" * 79
    message = f"temperature = {shown}...: expected a number from 0 to 2"
    check(http, RAW, {"prompt": "a", "temperature": "x" * 500}, message, "temperature")


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused(http, given):
    status, error = refusal(http, RAW, {"prompt": "a"}, **{"Content-Type": given})
    assert (status, error["code"]) == (415, "unsupported_media_type")
    assert error["message"] == f'Content-Type is "{given}"; expected application/json'


def test_a_compressed_body_is_refused(http):
    status, error = refusal(http, RAW, {"prompt": "a"}, **{"Content-Encoding": "gzip"})
    assert (status, error["code"]) == (415, "unsupported_media_type")
    assert error["message"] == 'Content-Encoding is "gzip"; send the body uncompressed'


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(start, tokenizer, declared):
    server = start(make_model(tokenizer), max_body_bytes=1000)
    body = json.dumps({"prompt": "a" * 1000}).encode()
    content = body if declared else iter([body[:500], body[500:]])
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + RAW, content=content, headers=headers, trust_env=False)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["message"] == (
        "the request's body is larger than 1000 bytes; send less"
    )
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_arrive_is_not_waited_for(start, tokenizer, monkeypatch):
    monkeypatch.setattr("fourbee.server.body.BODY_SECONDS", 0.2)
    server = start(make_model(tokenizer))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the request's body did not arrive within 0 seconds" in answer


def test_the_default_limit_of_bodies_is_32_megabytes():
    assert app_module.MAX_BODY_BYTES == 32 * 2**20


def test_a_prompt_longer_than_the_context_is_refused_with_the_counts(http, tokenizer):
    ids = tokenizer.encode("a", True) * CONTEXT
    status, error = refusal(http, RAW, {"prompt": ids, "max_tokens": 1})
    assert (status, error) == (
        400,
        {
            "message": (
                "this model's maximum context length is 512 tokens, but 512 tokens of prompt and "
                "1 of completion were requested; shorten the prompt or lower max_tokens"
            ),
            "type": "invalid_request_error",
            "param": None,
            "code": "context_length_exceeded",
            "n_prompt_tokens": 512,
            "n_ctx": 512,
        },
    )
    assert http.post(RAW, json={"prompt": ids[:-1], "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("max_tokens", [CONTEXT, 10**12])
def test_an_answer_that_the_context_cannot_hold_is_refused(http, max_tokens):
    body = {"messages": MESSAGES, "max_tokens": max_tokens}
    status, error = refusal(http, CHAT, body)
    assert (status, error["code"]) == (400, "context_length_exceeded")


def test_an_unknown_model_is_not_found(http):
    message = 'model "gpt-4" does not exist here; this server serves "tiny"'
    for path, body in ((RAW, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        check(http, path, {"model": "gpt-4", **body}, message, "model", "model_not_found", 404)


def test_a_checkpoint_without_chat_template_does_not_chat(start, tokenizer):
    server = start(make_model(tokenizer, chat_format=None))
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        message = "tiny has no chat template: use /v1/completions"
        check(http, CHAT, {"messages": MESSAGES}, message, "messages")


def test_routes_and_methods_that_do_not_exist_are_said_so(http):
    check(http, "/v1/embeddings", {}, 'there is nothing at "/v1/embeddings"; the API is at /v1', None, "not_found", 404)  # fmt: skip
    check(http, "/v1/completions/", {}, 'there is nothing at "/v1/completions/"; the API is at /v1', None, "not_found", 404)  # fmt: skip
    check(http, "/health", {}, '"/health" does not take POST; use GET', None, "method_not_allowed", 405)  # fmt: skip
    answer = http.get(RAW)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == f'"{RAW}" does not take GET; use POST'


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"temperature": 9}, openai.BadRequestError),
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"max_tokens": 10**6}, openai.BadRequestError),
    ],
)
def test_the_client_raises_its_own_kinds_of_errors(client, options, kind):
    with pytest.raises(kind) as caught:
        client.completions.create(**({"model": "tiny", "prompt": "a"} | options))
    assert caught.value.request_id.startswith("req_")
    assert caught.value.type == "invalid_request_error"


def test_a_full_queue_is_429_with_the_time_to_come_back(http, client, engine):
    engine.max_waiting = 0
    for options in ({}, {"stream": True}):
        answer = http.post(RAW, json={"prompt": "a", **options})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"] == {
            "message": "0 requests are waiting already: try again later",
            "type": "capacity_error",
            "param": None,
            "code": "over_capacity",
        }
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt="a")


def test_when_one_of_several_prompts_finds_no_place_none_is_kept(http, engine):
    engine.max_waiting = 2
    assert http.post(RAW, json={"prompt": ["say forever"] * 3}).status_code == 429
    assert len(engine.aborted) == 2


def test_an_error_that_may_name_files_is_for_the_log_alone(start, tokenizer, caplog):
    class Broken:
        def encode(self, messages, tools):
            raise ModelFileError("/home/me/model: forbidden in the sandbox")

    server = start(make_model(tokenizer, chat_format=Broken()))
    answer = httpx.post(server.url + CHAT, json={"messages": MESSAGES}, trust_env=False)
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the server failed on this request; its log says why",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "/home/me/model: forbidden in the sandbox" in caplog.text
