# SPDX-License-Identifier: Apache-2.0
"""The application: paths, and what each of them does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ...system.memory import resident_memory_mb
from ..model import ServedModel
from .answering import JsonResponse, read_json
from .bodies import CHAT, COMPLETION, RESPONSE
from .chats import chat
from .completions import complete
from .fields import Record
from .guard import Guard
from .metrics import CONTENT_TYPE, HttpCounters
from .openapi import document
from .options import ServeOptions
from .page import read_page
from .problems import Problem
from .responses import respond

__all__ = ["make_app"]

Answering = Callable[[ServedModel, Request, dict[str, Any]], Awaitable[Response]]


def make_app(model: ServedModel, options: ServeOptions | None = None) -> Starlette:
    """The application that serves a model; whoever opened the model closes it.

    Args:
        model: an opened model.
        options: what it bears and asks for; where it listens is `run`'s business.
    """
    options = options or ServeOptions()
    counters = HttpCounters()
    model.observe = counters.text
    about = document(version("nanoquant-edge"), options.api_key is not None)

    def writes(body: Record, answering: Answering) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            read = body.read(await read_json(request, options.body_s), "")
            _check_model(model, read["model"])
            try:
                return await answering(model, request, read)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it; nginx's number for it, in the counts

        return endpoint

    async def models(_request: Request) -> Response:
        return JsonResponse({"object": "list", "data": [_model_entry(model, name) for name in _names(model)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        _check_model(model, name)
        return JsonResponse(_model_entry(model, name))

    async def health(_request: Request) -> Response:
        found, settings = model.writer.statistics(), model.settings
        return JsonResponse(
            {
                "status": "ok",
                "model": settings.name,
                "max_context": settings.max_context,
                "kernel": settings.kernel,
                "device": settings.device,
                "slots": found.slots,
                "active": found.active,
                "waiting": found.waiting,
                "memory_mb": round(resident_memory_mb(), 1),
            }
        )

    async def metrics(_request: Request) -> Response:
        return Response(counters.exposition(model.writer.statistics()), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(_request: Request) -> Response:
        return JsonResponse(about)

    page = read_page()

    async def root(_request: Request) -> Response:
        return Response(page.content, media_type="text/html", headers=page.headers)

    routes = [
        Route("/", root),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", writes(COMPLETION, complete), methods=["POST"]),
        Route("/v1/chat/completions", writes(CHAT, chat), methods=["POST"]),
        Route("/v1/responses", writes(RESPONSE, respond), methods=["POST"]),
    ]
    layers = [Middleware(Guard, options=options, counters=counters)]
    if options.origins:
        headers = ["Authorization", "Content-Type"]
        layers.insert(
            0, Middleware(CORSMiddleware, allow_origins=options.origins, allow_methods=["*"], allow_headers=headers)
        )
    return Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: _refused})


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, f"{error.detail}.", code="not_found" if error.status_code == 404 else None)
    return JsonResponse(problem.body(), problem.status, error.headers)


def _names(model: ServedModel) -> tuple[str, ...]:
    return (model.settings.name, *model.settings.aliases)


def _check_model(model: ServedModel, name: str | None) -> None:
    if name is not None and name not in _names(model):
        raise Problem(
            404, f"there is no model {name[:100]!r}; this is {model.settings.name!r}.", param="model",
            code="model_not_found",
        )  # fmt: skip


def _model_entry(model: ServedModel, name: str) -> dict[str, Any]:
    entry = {"id": name, "object": "model", "created": model.settings.created, "owned_by": "nanoquant-edge"}
    return {**entry, "max_model_len": model.settings.max_context}
