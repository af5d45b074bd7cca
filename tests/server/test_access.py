"""Keys, Host names, the addresses that are listened on, and the ports."""

import socket

import httpx
import openai
import pytest

from fourbee.foundation.errors import UsageError
from fourbee.server.auth import check_binding
from fourbee.server.pages import load_pages
from fourbee.server.serve import listen

from .fakes import make_model, openai_client

ASKS = "this server needs an API key: send the header Authorization: Bearer <key>"
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def locked(tokenizer):
    from .fakes import LiveServer

    server = LiveServer(make_model(tokenizer), api_keys=KEYS)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client
    server.stop()


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_everything(locked, key):
    with openai_client(str(locked.base_url).rstrip("/"), key) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        answer = client.completions.create(model="tiny", prompt="say hello")
        assert answer.choices[0].text == "hello"
    assert locked.get("/v1/models", headers={"Authorization": f"bearer  {key}"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v1/models/tiny", "/v1/completions", "/v1/chat/completions", "/openapi.json",
     "/no/such/route", "//v1/models", "/health/", "/health/../v1/models", "/page.css%2f..%2fv1"],
)  # fmt: skip
def test_without_a_key_every_route_and_method_is_closed(locked, method, path):
    answer = locked.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"] == {
        "message": ASKS,
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Bearer wrong", "the API key is not one of this server's"),
        ("Bearer first-key2", "the API key is not one of this server's"),
        ("Bearer first-key second-key", "the API key is not one of this server's"),
        (b"Bearer \xe5\xaf\x86", "the API key is not one of this server's"),
        ("Bearer " + "x" * 30_000, "the API key is not one of this server's"),
        ("Bearer", ASKS),
        ("Basic first-key", ASKS),
        ("first-key", ASKS),
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused(locked, header, message):
    answer = locked.get("/v1/models", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, message)


@pytest.mark.parametrize("path", ["/v1/models?api_key=first-key", "/v1/models?key=first-key"])
def test_a_key_in_the_address_is_none(locked, path):
    assert locked.get(path).status_code == 401


def test_health_and_the_page_are_open(locked):
    assert locked.get("/health").status_code == 200
    for path in load_pages():
        assert locked.get(path).status_code == 200


def test_the_openai_client_knows_a_wrong_key(locked):
    url = str(locked.base_url).rstrip("/")
    with openai_client(url, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:8080", "127.0.0.1:1", "127.0.0.2"]
)
def test_loopback_names_are_answered_to(http, host):
    assert http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "192.168.0.7", "", "::"]
)
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_a_foreign_host_name_is_refused(http, path, host):
    answer = http.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"] == {
        "message": f'Host is "{host}"; this server answers to localhost, 127.0.0.1, [::1] alone',
        "type": "permission_error",
        "param": None,
        "code": "host_not_allowed",
    }


def test_a_server_for_other_machines_answers_to_any_name(start, tokenizer):
    server = start(make_model(tokenizer), host="0.0.0.0", api_keys=KEYS)
    answer = httpx.get(f"{server.url}/health", headers={"Host": "box.lan"}, trust_env=False)
    assert answer.status_code == 200


def test_other_sites_get_no_cors_headers(http):
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        http.options("/v1/completions", headers=origin),
        http.get("/v1/models", headers=origin),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_key(host):
    check_binding(host, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "box.lan", ""])
def test_an_address_that_others_reach_needs_a_key(host):
    check_binding(host, ("key",))
    with pytest.raises(UsageError) as caught:
        check_binding(host, ())
    assert str(caught.value) == (
        f"--host {host} is reachable from other machines: add --api-key KEY, "
        "or listen on this machine alone with --host 127.0.0.1"
    )


@pytest.mark.parametrize("key", ["", "a b", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(UsageError) as caught:
        check_binding("127.0.0.1", (key,))
    assert str(caught.value) == "--api-key: expected printable ASCII characters without spaces"


def test_a_port_in_use_is_said_with_another_to_choose():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            listen("127.0.0.1", port)
    other = port + 1 if port < 65535 else 8080
    assert str(caught.value) == f"port {port} is in use: choose another with --port {other}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70_000, "--port 70000: expected a number from 0 to 65535"),
        ("127.0.0.1", -1, "--port -1: expected a number from 0 to 65535"),
        ("no host", 8080, "--host no host: no such host; try --host 127.0.0.1"),
        ("192.0.2.1", 0, "--host 192.0.2.1: not an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_said_in_a_line(host, port, message, monkeypatch):
    def resolve(name, *args, **kwargs):
        if name == "no host":
            raise socket.gaierror
        return resolved(name, *args, **kwargs)

    resolved = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError) as caught:
        listen(host, port)
    assert str(caught.value) == message
