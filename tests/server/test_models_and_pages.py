"""/v1/models, /health, /openapi.json and the page."""

from http import client as http_client

import httpx
import openai
import pytest

from fourbee.foundation.memory import memory_bytes
from fourbee.model.config import Qwen3Config
from fourbee.server.pages import HEADERS, load_pages
from fourbee.server.served_model import KNOWN_MODELS

from .fakes import CONTEXT, make_model, openai_client

CHAT = "/v1/chat/completions"


def test_the_model_is_listed_with_what_the_page_needs(http):
    [entry] = http.get("/v1/models").json()["data"]
    memory = memory_bytes()
    assert entry == {
        "id": "tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "fourbee",
        "fourbee": {
            "embedded": True,
            "parameters": 12_345,
            "max_context": CONTEXT,
            "defaults": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
            "fits": [
                {"id": name, "bytes": size, "fits": size <= 0.8 * memory}
                for name, size in KNOWN_MODELS.items()
            ],
            "memory_bytes": memory,
        },
    }
    assert http.get("/v1/models/tiny").json() == entry
    assert memory > 10**8


def test_another_model_is_not_found(client):
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("Qwen/Qwen3-8B")
    assert caught.value.body["message"] == (
        'model "Qwen/Qwen3-8B" does not exist here; this server serves "tiny"'
    )


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "layers", "heads", "tied"),
    [
        ("Qwen/Qwen3-0.6B", 1024, 3072, 28, 16, True),
        ("Qwen/Qwen3-1.7B", 2048, 6144, 28, 16, True),
        ("Qwen/Qwen3-4B-Instruct-2507", 2560, 9728, 36, 32, True),
        ("Qwen/Qwen3-8B", 4096, 12288, 36, 32, False),
    ],
)
def test_the_sizes_of_known_models_follow_from_their_shapes(
    name, hidden, inner, layers, heads, tied
):
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
    )
    assert KNOWN_MODELS[name] == 2 * config.num_parameters


def test_while_loading_health_and_the_api_are_503_and_the_page_is_there(start, tokenizer):
    server = start(None)
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        health = http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert health.headers["retry-after"] == "1"
        for answer in (
            http.get("/v1/models"),
            http.get("/v1/models/tiny"),
            http.post("/v1/completions", json={"prompt": "a"}),
            http.post(CHAT, json={"messages": []}),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"] == {
                "message": "tiny is still loading; try again in a moment",
                "type": "server_error",
                "param": None,
                "code": "model_loading",
            }
        assert http.get("/").status_code == 200
        server.attach(make_model(tokenizer))
        assert (http.get("/health").status_code, http.get("/health").json()) == (
            200,
            {"status": "ok"},
        )
    with openai_client(server.url) as client:
        answer = client.completions.create(model="tiny", prompt="say hello")
        assert answer.choices[0].text == "hello"


def test_the_api_describes_its_bodies_and_answers(http):
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/health",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/completions",
        CHAT,
    }
    schemas = document["components"]["schemas"]
    assert {"ChatRequest", "ChatCompletion", "CompletionRequest", "ErrorEnvelope"} <= set(schemas)
    assert schemas["ChatRequest"]["properties"]["messages"]["items"] == {
        "$ref": "#/components/schemas/ChatMessage"
    }
    assert set(document["paths"][CHAT]["post"]["responses"]) >= {"200", "400", "401", "503"}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ],
)
def test_the_page_is_sent_with_its_type_and_a_strict_policy(http, path, media_type):
    answer = http.get(path)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy == HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.content == load_pages()[path].content
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_a_browser_that_has_the_file_is_told_so(http):
    etag = http.get("/page.js").headers["etag"]
    for known in (etag, f'W/{etag}, "other"'):
        answer = http.get("/page.js", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert http.get("/page.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/page.js/..%2f..%2fapp.py", "/page.js%00",
     "/static/page.js", "/app.py", "/.", "//page.js", "//v1/models", "/v1/models/../../app.py"],
)  # fmt: skip
def test_nothing_else_is_served(server, path):
    # The standard library's client sends the path as it is.
    connection = http_client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, answer.read()[:9]) == (404, b'{"error":')
    connection.close()
