"""The ASGI application: routes, and what stands before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

import fourbee
from fourbee.foundation.errors import FourbeeError
from fourbee.server.answers import (
    ChatCompletion,
    Completion,
    ModelEntry,
    ModelList,
)
from fourbee.server.auth import Gate, is_loopback, owner_of
from fourbee.server.body import read_body
from fourbee.server.chat import ChatJob
from fourbee.server.completions import CompletionJob
from fourbee.server.errors import RETRY_SOON, answer_error, answer_http_error
from fourbee.server.generation import check_model
from fourbee.server.openapi import ERRORS, body_of, describe
from fourbee.server.pages import STATIC, Page, load_pages
from fourbee.server.served_model import ServedModel, Serving
from fourbee.server.streaming import EventStream, while_client_stays
from fourbee.server.wire import ChatRequest, CompletionRequest

MAX_BODY_BYTES = 32 * 1024 * 1024

Prepare = Callable[[ServedModel, bytes, str], CompletionJob | ChatJob]

# Answered to a client that has left, which nobody reads.
CLIENT_LEFT = 499


def create_app(
    serving: Serving,
    host: str = "127.0.0.1",
    api_keys: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    pages: Path = STATIC,
) -> ASGIApp:
    """The server for one model, which may still be loading.

    `host` is the address that is listened on: on loopback, only loopback names are answered to.
    With `api_keys`, everything but /health and the page asks for one.
    """
    app = FastAPI(
        title="fourbee",
        version=fourbee.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_exception_handler(FourbeeError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_error)
    files = load_pages(pages)
    _add_health(app, serving)
    _add_models(app, serving)
    _add_generation(app, serving, max_body_bytes)
    for path, page in files.items():
        _add_page(app, path, page)
    # Around everything, so that no answer leaves without it.
    return Gate(
        app,
        api_keys=api_keys,
        open_paths=frozenset({"/health", *files}),
        only_loopback_names=is_loopback(host),
    )


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get("/health", response_class=JSONResponse)
    async def health() -> Response:
        """200 when requests are served; else 503 with the status that says why not."""
        status = serving.status
        if status == "ok":
            return JSONResponse({"status": status})
        return JSONResponse({"status": status}, 503, RETRY_SOON)


def _add_models(app: FastAPI, serving: Serving) -> None:
    @app.get("/v1/models", response_model=ModelList, responses=ERRORS)
    async def models() -> ModelList:
        """The served model, in a list of one."""
        return ModelList(data=[serving.model.entry()])

    @app.get("/v1/models/{model_id:path}", response_model=ModelEntry, responses=ERRORS)
    async def model(model_id: str) -> ModelEntry:
        """The served model by its name."""
        check_model(serving.model, model_id)
        return serving.model.entry()


def _add_generation(app: FastAPI, serving: Serving, max_body_bytes: int) -> None:
    async def respond(request: Request, prepare: Prepare) -> Response:
        try:
            model = serving.model
            body = await read_body(request, max_body_bytes)
            # Parsing and tokenising may take long: not on the event loop.
            prepared = await asyncio.to_thread(prepare, model, body, owner_of(request))
            generation = model.engine.submit(prepared.job.requests)
            try:
                await while_client_stays(request.receive, generation.accepted())
                if prepared.request.stream:
                    return EventStream(prepared.frames(generation), generation.close)
                answer = await while_client_stays(request.receive, prepared.whole(generation))
            except BaseException:
                generation.close()
                raise
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses=ERRORS,
        openapi_extra=body_of(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Continue or score raw prompts."""
        return await respond(request, CompletionJob.prepare)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=ERRORS,
        openapi_extra=body_of(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await respond(request, ChatJob.prepare)


def _add_page(app: FastAPI, path: str, page: Page) -> None:
    async def send_page(request: Request) -> Response:
        return page.response(request)

    options: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False}
    app.add_api_route(path, send_page, **options)
