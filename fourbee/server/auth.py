"""Who may ask: API keys, the Host header, and on which addresses the server may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from uuid import uuid4

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fourbee.foundation.errors import UsageError
from fourbee.server.errors import ApiError, error_response, shown

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_binding(host: str, api_keys: Sequence[str]) -> None:
    """UsageError for an address that others can reach without a key, or for a key that is none."""
    for key in api_keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                "--api-key: expected printable ASCII characters without spaces",
                parameter="api_key",
            )
    if not api_keys and not is_loopback(host):
        raise UsageError(
            f"--host {host} is reachable from other machines: add --api-key KEY, "
            "or listen on this machine alone with --host 127.0.0.1",
            parameter="host",
        )


class Gate:
    """ASGI middleware around all routes: foreign Host names and missing keys do not pass.

    Deny by default: what is not in `open_paths` needs a key when there are keys. It also gives
    every answer its `x-request-id`.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: Sequence[str],
        open_paths: frozenset[str],
        only_loopback_names: bool,
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._open_paths = open_paths
        self._only_loopback_names = only_loopback_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identified = _Identified(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await error_response(refusal)(scope, receive, identified)
        else:
            scope.setdefault("state", {})["owner"] = self._owner(scope)
            await self._app(scope, receive, identified)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._only_loopback_names and not _is_loopback_name(host):
            # A page elsewhere whose name was pointed at this machine (DNS rebinding) ends here.
            names = ", ".join(LOOPBACK_NAMES)
            message = f"Host is {shown(host)}; this server answers to {names} alone"
            return ApiError(403, message, "permission_error", "host_not_allowed")
        if not self._digests or scope["path"] in self._open_paths:
            return None
        return self._key_refusal(headers.get(b"authorization", b""))

    def _owner(self, scope: Scope) -> str:
        """Whose request it is: a name for the key, none where the server has no keys."""
        if not self._digests:
            return ""
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        return _digest(authorization.partition(b" ")[2].strip()).hex()[:16]

    def _key_refusal(self, authorization: bytes) -> ApiError | None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            message = "this server needs an API key: send the header Authorization: Bearer <key>"
        else:
            given = _digest(key.strip())
            # Every key is compared, in constant time.
            if any([hmac.compare_digest(given, known) for known in self._digests]):
                return None
            message = "the API key is not one of this server's"
        headers = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, "authentication_error", "invalid_api_key", headers=headers)


def owner_of(request: Request) -> str:
    """Who sent a request; what is kept of it is shared with nobody else."""
    return str(request.state.owner)


class _Identified:
    """A `send` that puts the common headers on the answer."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            common = [(b"x-request-id", _request_id()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", []), *common]}
        await self._send(message)


def _is_loopback_name(host: str) -> bool:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in LOOPBACK_NAMES or is_loopback(name)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _request_id() -> bytes:
    return b"req_" + uuid4().hex.encode()
