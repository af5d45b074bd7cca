"""The description of the API at /openapi.json: bodies and answers as the wire types have them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from fourbee.server.answers import ErrorEnvelope
from fourbee.server.wire import ChatRequest, CompletionRequest, Wire

SCHEMA = "#/components/schemas/{model}"

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": description}
    for status, description in {
        400: "The request is not valid",
        401: "The API key is missing or wrong",
        403: "The Host is not this machine",
        404: "There is no such model or route",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "The body is not JSON",
        429: "Too many requests are waiting",
        500: "The server failed",
        503: "The model is loading, has failed, or the server is shutting down",
    }.items()
}


def body_of(kind: type[Wire]) -> dict[str, Any]:
    """What describes a route's body, which the route reads itself."""
    schema = {"$ref": SCHEMA.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document, with the types of the bodies."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds: list[tuple[type[Wire], Any]] = [
        (CompletionRequest, "validation"),
        (ChatRequest, "validation"),
    ]
    _, definitions = models_json_schema(kinds, ref_template=SCHEMA)
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return document
