"""From the bytes of a request's body to a typed request, or to one line that says what is wrong.

A line names the key, the value and the right form, which is the `description` of the wire field.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from fourbee.foundation.settings import nearest
from fourbee.server.errors import ApiError, shown
from fourbee.server.wire import Wire

WireT = TypeVar("WireT", bound=Wire)

# Seconds within which a whole body has to arrive.
BODY_SECONDS = 60.0

# A body with more mistakes than this is not looked at closely.
MANY_MISTAKES = 1000


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of JSON. Raises ApiError: 408, 413 or 415."""
    _check_media_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        message = f"the request's body did not arrive within {BODY_SECONDS:.0f} seconds"
        raise ApiError(408, message, code="request_timeout", headers=CLOSE) from None
    return bytes(body)


def parse_request(kind: type[WireT], body: bytes) -> WireT:
    """The typed request. ApiError 400 names the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MANY_MISTAKES:
            message = f"the body has {error.error_count()} mistakes; send a {kind.__name__}"
            raise ApiError(400, message, code="invalid_value") from None
        raise _refusal(kind, error.errors(include_url=False, include_context=False)) from None


# What is left of the body is not read, so the connection cannot be used again.
CLOSE = {"Connection": "close"}


def _too_large(limit: int) -> ApiError:
    message = f"the request's body is larger than {limit} bytes; send less"
    return ApiError(413, message, code="request_too_large", headers=CLOSE)


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        message = f"Content-Type is {shown(given)}; expected application/json"
        raise ApiError(415, message, code="unsupported_media_type", headers=CLOSE)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"Content-Encoding is {shown(encoding)}; send the body uncompressed"
        raise ApiError(415, message, code="unsupported_media_type", headers=CLOSE)


def _refusal(kind: type[Wire], errors: Sequence[ErrorDetails]) -> ApiError:
    first = errors[0]
    if first["type"] == "json_invalid":
        message = f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
        return ApiError(400, message, code="invalid_json")
    if not first["loc"]:
        message = f"the body is {shown(first['input'])}; expected a JSON object"
        return ApiError(400, message, code="invalid_value")
    error = _closest([error for error in errors if error["loc"][0] == first["loc"][0]])
    is_unknown = error["type"] == "extra_forbidden"
    place = _Place(kind, error["loc"], is_unknown)
    if is_unknown:
        message = f"unknown field {place.path!r}{nearest(place.name, place.fields)}"
        return ApiError(400, message, code="unknown_field", parameter=place.path)
    if error["type"] == "missing":
        message = f"missing field {place.path!r}: expected {place.right_form}"
        return ApiError(400, message, code="missing_field", parameter=place.path)
    message = f"{place.path} = {shown(error['input'])}: expected {place.right_form}"
    return ApiError(400, message, code="invalid_value", parameter=place.path)


def _closest(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """Of what each form of a field says, that of the form that fitted the longest."""

    def progress(error: ErrorDetails) -> tuple[list[int], int]:
        return [part for part in error["loc"] if isinstance(part, int)], len(error["loc"])

    return max(errors, key=progress)


class _Place:
    """Where in a request an error is: pydantic's location without the names of union members."""

    def __init__(
        self, kind: type[BaseModel], location: Sequence[int | str], is_unknown: bool
    ) -> None:
        """`is_unknown`: the location ends with a name that is no field's."""
        self.path = ""
        self.name = ""
        self.right_form = ""
        self.fields: Sequence[str] = list(kind.model_fields)
        model: type[BaseModel] | None = kind
        for number, part in enumerate(location):
            if isinstance(part, int):
                self.path += f"[{part}]"
                self.right_form = "an object" if model else self.right_form
                continue
            field = model.model_fields.get(part) if model else None
            if model and (field or (is_unknown and number == len(location) - 1)):
                self.fields = list(model.model_fields)
                self.name = part
                self.path += f".{part}" if self.path else part
            if field:
                self.right_form = field.description or ""
                model = _model_within(field.annotation)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, perhaps in a list or beside other types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _model_within(inner)
        if found is not None:
            return found
    return None
