"""The table of routes, and the layers around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from hotswap.api.admin import (
    SLEEP_LEVELS,
    SLEEP_MODES,
    TRUTH,
    LoadBody,
    ManagementRoutes,
    ModelEvents,
    NamedModel,
    UnloadOrder,
)
from hotswap.api.dialect import EVENT_STREAM
from hotswap.api.edge import Edge, ErrorEnvelope, http_exception
from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.gate import Gate, Management
from hotswap.api.listing import ListingRoutes
from hotswap.api.metrics import MEDIA_TYPE, MetricsRoute
from hotswap.api.openai import Chat, Completion, parse_chat, parse_completion
from hotswap.api.openai_shapes import ChatAnswer, CompletionAnswer
from hotswap.api.openapi import OpenApiRoute, Operation
from hotswap.api.pace import Pace
from hotswap.api.status import HealthSource, StatusRoutes
from hotswap.api.tokens import (
    Detokenize,
    DetokenizeAnswer,
    TokenizeAnswer,
    TokenizeChat,
    TokenizeText,
    TokenRoutes,
)
from hotswap.config import ServerConfig, Settings
from hotswap.contracts import ModelService

_SHOW_LOADING: dict[str, tuple[str, ...]] = {"show_loading": ()}

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    service: ModelService,
    settings: Settings,
    health: HealthSource,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """The whole HTTP side as one ASGI app."""
    server = settings.server
    operations = [
        *_listing_operations(service),
        *_inference_operations(service, server),
        *_status_operations(service, health),
        *(_management_operations(service, server) if server.dev_mode or server.admin_key else ()),
    ]
    openapi = OpenApiRoute(operations, keyed=bool(server.api_keys))
    app = Starlette(
        # One after the other is tried, so those that answer in microseconds come first.
        routes=[
            *(operation.route() for operation in operations),
            Route("/openapi.json", openapi.document),
        ],
        middleware=[
            Middleware(Edge),
            *((_cors(server),) if server.cors_origins else ()),
            Middleware(ErrorEnvelope, loading=lambda: service.snapshot().progress),
            Middleware(Gate, server=server),
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header it was given
    return app


# A new route is a row in one of these tables, and `/openapi.json` has it from there: `request` is
# the type that its body is decoded into (or several), `answer` the type that describes what it
# writes; an answer without a type is some object. tests/api/test_openapi.py makes requests for it.


def _inference_operations(service: ModelService, server: ServerConfig) -> list[Operation]:
    endpoint = partial(GenerationEndpoint, service, keepalive_s=server.keepalive_s, pace=Pace())
    tokens = TokenRoutes(service)
    return [
        Operation(
            "POST",
            "/v1/chat/completions",
            endpoint(parse_chat),
            "Answer a chat.",
            request=Chat,
            answer=ChatAnswer,
            stream=EVENT_STREAM,
            query=_SHOW_LOADING,
        ),
        Operation(
            "POST",
            "/v1/completions",
            endpoint(parse_completion),
            "Continue a text.",
            request=Completion,
            answer=CompletionAnswer,
            stream=EVENT_STREAM,
            query=_SHOW_LOADING,
        ),
        Operation(
            "POST",
            "/tokenize",
            tokens.tokenize,
            "Tell the tokens of a prompt.",
            request=(TokenizeText, TokenizeChat),
            answer=TokenizeAnswer,
        ),
        Operation(
            "POST",
            "/detokenize",
            tokens.detokenize,
            "Tell the text of tokens.",
            request=Detokenize,
            answer=DetokenizeAnswer,
        ),
    ]


def _listing_operations(service: ModelService) -> list[Operation]:
    listing = ListingRoutes(service)
    return [
        Operation("GET", "/v1/models", listing.all, "List the models."),
        Operation("GET", "/models", listing.all, "List the models."),
        Operation("GET", "/v1/models/{name:path}", listing.one, "Describe one model."),
    ]


def _status_operations(service: ModelService, health: HealthSource) -> list[Operation]:
    status = StatusRoutes(service, health)
    metrics = MetricsRoute(service).metrics
    return [
        Operation("GET", "/health", status.ready, "Say whether a request would be served."),
        Operation("GET", "/livez", status.live, "Say that the process lives."),
        Operation("GET", "/readyz", status.ready, "Say whether a request would be served."),
        Operation("GET", "/", status.about, "Name the server."),
        Operation("GET", "/version", status.version, "Tell the version."),
        Operation("GET", "/status", status.status, "Tell everything about the server's state."),
        Operation("GET", "/metrics", metrics, "Measure.", answer=None, media_type=MEDIA_TYPE),
    ]


def _management_operations(service: ModelService, server: ServerConfig) -> list[Operation]:
    management = ManagementRoutes(service)
    events = ModelEvents(service, keepalive_s=server.keepalive_s)
    guard = [Middleware(Management, dev_mode=server.dev_mode)]
    operation = partial(Operation, middleware=guard)
    return [
        operation(
            "POST",
            "/v1/load_model",
            management.load_model,
            "Load a model, with settings.",
            request=LoadBody,
            body_required=False,
            query={"dry_run": tuple(TRUTH)},
        ),
        operation(
            "POST",
            "/v1/unload_model",
            management.unload_model,
            "Unload the model.",
            request=UnloadOrder,
            body_required=False,
        ),
        operation(
            "POST",
            "/models/load",
            management.request_load,
            "Begin to load a model.",
            request=NamedModel,
        ),
        operation(
            "POST",
            "/models/unload",
            management.request_unload,
            "Unload a model, or call off its load.",
            request=NamedModel,
        ),
        operation(
            "GET",
            "/models/sse",
            events,
            "Follow what happens to the models.",
            answer=None,
            media_type=EVENT_STREAM,
        ),
        operation(
            "POST",
            "/sleep",
            management.sleep,
            "Take the model off the device for a while.",
            answer=None,
            query={"level": tuple(SLEEP_LEVELS), "mode": tuple(SLEEP_MODES)},
        ),
        operation("POST", "/wake_up", management.wake_up, "Bring it back.", answer=None),
        operation("GET", "/is_sleeping", management.is_sleeping, "Say whether no model is there."),
    ]


def _cors(server: ServerConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=server.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
