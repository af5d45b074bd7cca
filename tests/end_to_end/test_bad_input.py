"""What goes wrong as people meet it: one line that starts with `fourbee: `, or one OpenAI error."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from .checkpoints import CONTEXT
from .conftest import KEY
from .programs import ServeProcess, free_port, run

USAGE, OTHER = 2, 3  # exit codes


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and the one line of a command that has to fail without a word besides it."""
    ended = run(*arguments)
    assert ended.out == ""
    assert ended.err.endswith("\n") and ended.err.startswith("fourbee: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.code, ended.err.removesuffix("\n")


def not_served(folder: Path) -> tuple[int, str]:
    """The same for `serve`, which says before its one line what it is loading, and no more."""
    ended = run("serve", "--port", str(free_port()), "--model", str(folder))
    assert ended.out == ""
    step, line, nothing = ended.err.split("\n")
    assert (step, nothing) == (f"loading {folder.name} ...", "")
    return ended.code, line


A_MODEL = "a folder with config.json or a hub id such as Qwen/Qwen3-0.6B"

NO_MODEL = [
    (["serve"], "/no/such/folder", f"no such folder; expected {A_MODEL}"),
    (["chat"], "gpt-4", f"no such folder; expected {A_MODEL}"),
    (
        ["serve"],
        "nobody/nothing",
        "no such folder, and not downloaded: run `fourbee pull nobody/nothing`",
    ),
]


@pytest.mark.parametrize(("command", "name", "reason"), NO_MODEL)
def test_a_model_that_is_not_there_is_said_in_one_line(command, name, reason):
    expected = f"fourbee: model {name!r}: {reason}"
    assert refused(*command, "--model", name) == (USAGE, expected)


def test_a_file_is_not_a_model(tiny):
    name = str(tiny / "model.safetensors")
    expected = (
        f"fourbee: model {name!r}: a file; expected a folder with config.json or a .gguf file"
    )
    assert refused("generate", "hi", "--model", name) == (USAGE, expected)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensor(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)


def reshape(tensors: dict) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:16].copy()


DAMAGES = {
    "truncated weights": (
        truncate,
        "{0}/model.safetensors: not a whole safetensors file: 100000 bytes, expected {1}",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "{0}: no weights; expected model.safetensors",
    ),
    "wrong shape": (
        lambda folder: change_tensor(folder, reshape),
        "{0}: tensors 1 of the wrong shape: model.norm.weight is [16], expected [32]",
    ),
    "missing tensor": (
        lambda folder: change_tensor(folder, lambda tensors: tensors.pop("model.norm.weight")),
        "{0}: tensors 1 missing: model.norm.weight",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "{0}: tokenizer.json is missing; copy it from the checkpoint that the weights come from",
    ),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model"'),
        "{0}/tokenizer.json: not a tokenizer: Cannot instantiate Tokenizer from buffer: "
        "EOF while parsing an object at line 1 column 8",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "{0}: no config.json; expected a Qwen3 folder",
    ),
    "broken config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "qwen3",'),
        "{0}/config.json: not valid JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 24 (char 23)",
    ),
    "another network": (
        lambda folder: change_config(folder, model_type="llama"),
        "{0}/config.json: model_type = 'llama': expected 'qwen3'",
    ),
    "wrong value": (
        lambda folder: change_config(folder, hidden_size="wide"),
        "{0}/config.json: hidden_size = 'wide': expected a whole number",
    ),
}


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    """Damages a copy of the tiny checkpoint in a way that has a name: the folder and the line."""

    def damage(name: str) -> tuple[Path, str]:
        change, text = DAMAGES[name]
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder)
        size = (folder / "model.safetensors").stat().st_size
        change(folder)
        return folder, "fourbee: " + text.format(folder, size)

    return damage


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_ends_generate_with_one_line(damaged, name):
    folder, line = damaged(name)
    assert refused("generate", "hi", "--model", str(folder)) == (OTHER, line)


@pytest.mark.parametrize("name", ["truncated weights", "wrong shape", "no tokenizer"])
def test_a_damaged_checkpoint_ends_serve_with_the_same_line(damaged, name):
    folder, line = damaged(name)
    assert not_served(folder) == (OTHER, line)


def test_a_port_in_use_is_said_with_the_way_out(tiny, locked_server):
    port = locked_server.port
    expected = f"fourbee: port {port} is in use: choose another with --port {port + 1}"
    assert refused("serve", "--model", str(tiny), "--port", str(port)) == (USAGE, expected)


REFUSED_OPTIONS = [
    (
        ["--host", "0.0.0.0"],
        "--host 0.0.0.0 is reachable from other machines: add --api-key KEY, or listen on this "
        "machine alone with --host 127.0.0.1",
    ),
    (["--port", "99999"], "--port 99999: expected a number from 0 to 65535"),
    (["--port", "http"], "--port http: expected a whole number"),
    (["--prot", "8081"], "no such option: --prot (Possible options: --host, --port)"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED_OPTIONS)
def test_an_option_that_is_not_right_ends_serve_with_one_line(tiny, options, line):
    assert refused("serve", "--model", str(tiny), *options) == (USAGE, f"fourbee: {line}")


CHAT, RAW = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def http(locked_server: ServeProcess):
    with httpx.Client(base_url=locked_server.url, timeout=60, trust_env=False) as client:
        yield client


def error(answer: httpx.Response) -> tuple[int, dict]:
    """Status and error; OpenAI's envelope with nothing beside it."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    return answer.status_code, answer.json()["error"]


def invalid(message: str, parameter: str | None, code: str = "invalid_value") -> dict:
    return {"message": message, "type": "invalid_request_error", "param": parameter, "code": code}


BAD_FIELDS = [
    (RAW, {"temperature": "hot"}, 'temperature = "hot": expected a number from 0 to 2'),
    (CHAT, {"temperature": "hot"}, 'temperature = "hot": expected a number from 0 to 2'),
    (
        RAW,
        {"max_tokens": -1},
        "max_tokens = -1: expected a whole number from 1, or 0 together with echo",
    ),
    (CHAT, {"max_tokens": -1}, "max_tokens = -1: expected a whole number from 1"),
    (RAW, {"prompt": ""}, 'prompt = "": expected at least one token in each prompt'),
    (CHAT, {"messages": []}, "messages = []: expected a list of at least one message"),
    (
        CHAT,
        {"messages": "hello"},
        'messages = "hello": expected a list of at least one message',
    ),
    (RAW, {"stop": 5}, "stop = 5: expected a string of 1 to 1000 characters or a list of up to 16"),
    (RAW, {"stream": "yes"}, 'stream = "yes": expected true or false'),
]


@pytest.mark.parametrize(("path", "fields", "message"), BAD_FIELDS)
def test_a_field_that_is_not_right_is_named_with_the_right_form(http, path, fields, message):
    start = {"prompt": "hello"} if path == RAW else {"messages": HELLO}
    answer = http.post(path, json=start | fields, headers=AUTHORIZED)
    assert error(answer) == (400, invalid(message, next(iter(fields))))


def test_a_role_that_does_not_exist_is_named(http):
    body = {"messages": [{"role": "wizard", "content": "hello"}]}
    message = (
        'messages[0].role = "wizard": expected one of system, developer, user, assistant, tool'
    )
    answer = http.post(CHAT, json=body, headers=AUTHORIZED)
    assert error(answer) == (400, invalid(message, "messages[0].role"))


def test_an_unknown_field_is_refused_with_the_nearest_known_one(http):
    answer = http.post(RAW, json={"prompt": "hello", "max_token": 5}, headers=AUTHORIZED)
    message = "unknown field 'max_token' (did you mean 'max_tokens'?)"
    assert error(answer) == (400, invalid(message, "max_token", "unknown_field"))


def test_a_missing_field_is_named(http):
    answer = http.post(CHAT, json={}, headers=AUTHORIZED)
    message = "missing field 'messages': expected a list of at least one message"
    assert error(answer) == (400, invalid(message, "messages", "missing_field"))


def test_a_model_that_is_not_served_is_not_found(http):
    message = 'model "gpt-4" does not exist here; this server serves "tiny"'
    for path, body in ((RAW, {"prompt": "hello"}), (CHAT, {"messages": HELLO})):
        answer = http.post(path, json=body | {"model": "gpt-4"}, headers=AUTHORIZED)
        assert error(answer) == (404, invalid(message, "model", "model_not_found"))


def test_a_body_that_is_not_json_is_refused_with_the_place(http):
    headers = AUTHORIZED | {"Content-Type": "application/json"}
    answer = http.post(RAW, content=b'{"prompt": "hello"', headers=headers)
    message = "the body is not valid JSON: EOF while parsing an object at line 1 column 18"
    assert error(answer) == (400, invalid(message, None, "invalid_json"))


@pytest.mark.parametrize("form", ["text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(http, form):
    headers = AUTHORIZED | {"Content-Type": form}
    answer = http.post(RAW, content=b'{"prompt": "hello"}', headers=headers)
    message = f'Content-Type is "{form}"; expected application/json'
    assert error(answer) == (415, invalid(message, None, "unsupported_media_type"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_refused_with_the_counts(http, stream):
    body = {"prompt": "我" * (CONTEXT + 7), "max_tokens": 5, "stream": stream}
    message = (
        f"this model's maximum context length is {CONTEXT} tokens, but {CONTEXT + 7} tokens of "
        "prompt and 5 of completion were requested; shorten the prompt or lower max_tokens"
    )
    expected = invalid(message, None, "context_length_exceeded")
    counts = {"n_prompt_tokens": CONTEXT + 7, "n_ctx": CONTEXT}
    assert error(http.post(RAW, json=body, headers=AUTHORIZED)) == (400, expected | counts)


def test_a_route_that_does_not_exist_is_not_found(http):
    answer = http.post("/v1/chat", json={}, headers=AUTHORIZED)
    message = 'there is nothing at "/v1/chat"; the API is at /v1'
    assert error(answer) == (404, invalid(message, None, "not_found"))


def test_a_method_that_a_route_does_not_take_is_refused_with_the_one_it_takes(http):
    answer = http.get(CHAT, headers=AUTHORIZED)
    message = f'"{CHAT}" does not take GET; use POST'
    assert error(answer) == (405, invalid(message, None, "method_not_allowed"))
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "this server needs an API key: send the header Authorization: Bearer <key>"),
        ({"Authorization": "Bearer sk-wrong"}, "the API key is not one of this server's"),
        (
            {"Authorization": f"Basic {KEY}"},
            "this server needs an API key: send the header Authorization: Bearer <key>",
        ),
    ],
)
def test_a_missing_or_wrong_key_is_refused(http, headers, message):
    expected = {
        "message": message,
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    for answer in (
        http.get("/v1/models", headers=headers),
        http.post(CHAT, json={"messages": HELLO}, headers=headers),
    ):
        assert error(answer) == (401, expected)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_after_all_refusals_the_server_answers_and_has_said_nothing_of_them(http, locked_server):
    answer = http.post(RAW, json={"prompt": "hello", "max_tokens": 3}, headers=AUTHORIZED)
    assert answer.status_code == 200
    loading, loaded, ready = locked_server.lines
    assert loading == "loading tiny ..."
    assert re.fullmatch(
        rf"loaded in \d+\.\d s: 0\.0 million parameters, context of {CONTEXT} tokens", loaded
    )
    assert ready == f"ready: {locked_server.url} (chat page; the API is at /v1)"
