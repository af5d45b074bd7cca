"""What goes wrong, as OpenAI's envelope and a status: the one place where errors become answers.

Every answer of the server that is not a success is made here, whether a request was refused, a
route does not exist or the engine crashed. A crash is logged in full and answered without detail.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fourbee.foundation.errors import CapacityError, FourbeeError, UsageError

logger = logging.getLogger(__name__)

# Longer values are cut in messages: a prompt does not belong into an error.
SHOWN_CHARACTERS = 80

# Seconds after which a client may try again, where that helps.
RETRY_SOON = {"Retry-After": "1"}

INTERNAL_MESSAGE = "the server failed on this request; its log says why"


@dataclass
class ApiError(FourbeeError):
    """A refusal with everything that its answer needs; `kind` is OpenAI's `error.type`."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    parameter: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    # More fields of the error object, as counts of tokens.
    details: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def shown(value: object) -> str:
    """A value as JSON writes it, in one line, cut when it is long, fit for any encoding."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def as_api_error(error: BaseException) -> ApiError:
    """The answer to any error; for what is nobody's to read, one that tells nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, str(error), code="invalid_value", parameter=error.parameter)
    if isinstance(error, CapacityError):
        return ApiError(429, str(error), "capacity_error", "over_capacity", headers=RETRY_SOON)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, FourbeeError):
        # It may name files of this machine: for the log, not for the client.
        logger.error("%s", error)
    return internal_error()


def internal_error(message: str = INTERNAL_MESSAGE) -> ApiError:
    """500: our fault."""
    return ApiError(500, message, "server_error", "internal_error")


def model_loading(model: str) -> ApiError:
    """503 until the model is there; OpenAI's clients wait as the header says and try again."""
    message = f"{model} is still loading; try again in a moment"
    return ApiError(503, message, "server_error", "model_loading", headers=RETRY_SOON)


def engine_failed() -> ApiError:
    """503 when the engine has been given up."""
    message = "the engine has failed and serves no more requests; restart the server"
    return ApiError(503, message, "server_error", "engine_failed")


def engine_restarting() -> ApiError:
    """503 for requests that come while there is no engine process."""
    message = "the engine is being started again; try again in a moment"
    return ApiError(503, message, "server_error", "engine_restarting", headers=RETRY_SOON)


def engine_ended() -> ApiError:
    """503 for requests whose engine process has ended."""
    message = "the engine ended while it worked on this and is started again; try again in a moment"
    return ApiError(503, message, "server_error", "engine_ended", headers=RETRY_SOON)


def shutting_down() -> ApiError:
    """503 for requests that the server's end cuts off."""
    return ApiError(503, "the server is shutting down", "server_error", "shutting_down")


def context_length_exceeded(prompt: int, completion: int, limit: int) -> ApiError:
    """400; clients recognise the words "maximum context length is" and the code."""
    message = (
        f"this model's maximum context length is {limit} tokens, but {prompt} tokens of prompt and "
        f"{completion} of completion were requested; shorten the prompt or lower max_tokens"
    )
    return ApiError(
        400,
        message,
        code="context_length_exceeded",
        details={"n_prompt_tokens": prompt, "n_ctx": limit},
    )


def model_not_found(model: str, served: str) -> ApiError:
    """404 for a model that is not the served one."""
    message = f"model {shown(model)} does not exist here; this server serves {shown(served)}"
    return ApiError(404, message, code="model_not_found", parameter="model")


def envelope(error: ApiError) -> dict[str, object]:
    """The body of an answer, or of an event that ends a stream."""
    fields: dict[str, object] = {
        "message": error.message,
        "type": error.kind,
        "param": error.parameter,
        "code": error.code,
    }
    return {"error": fields | dict(error.details)}


def error_response(error: BaseException) -> Response:
    """The HTTP answer to any error."""
    answer = as_api_error(error)
    return Response(
        json.dumps(envelope(answer)),
        status_code=answer.status,
        headers=dict(answer.headers),
        media_type="application/json",
    )


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler of all routes."""
    return error_response(error)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """The exception handler of routing: it knows the path and the method."""
    answer = as_api_error(error)
    if answer.code == "not_found":
        answer.message = f"there is nothing at {shown(request.url.path)}; the API is at /v1"
    elif answer.code == "method_not_allowed":
        allowed = answer.headers.get("Allow") or answer.headers.get("allow", "another method")
        answer.message = f"{shown(request.url.path)} does not take {request.method}; use {allowed}"
    return error_response(answer)


def _of_http(error: HTTPException) -> ApiError:
    codes = {404: "not_found", 405: "method_not_allowed"}
    return ApiError(
        error.status_code,
        str(error.detail),
        code=codes.get(error.status_code),
        headers=error.headers or {},
    )
