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

from hotswap.api import anthropic, responses
from hotswap.api.admin import ManagementRoutes, ModelEvents
from hotswap.api.counting import TokenCount
from hotswap.api.edge import Edge, ErrorEnvelope, http_exception
from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.gate import Gate, Management
from hotswap.api.listing import ListingRoutes
from hotswap.api.metrics import MetricsRoute
from hotswap.api.openai import parse_chat, parse_completion
from hotswap.api.pace import Pace
from hotswap.api.responses_routes import KeptResponses
from hotswap.api.responses_store import ResponseStore
from hotswap.api.status import HealthSource, StatusRoutes
from hotswap.config import ServerConfig, Settings
from hotswap.contracts import ModelService

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    service: ModelService,
    settings: Settings,
    health: HealthSource,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """The whole HTTP side as one ASGI app."""
    server = settings.server
    app = Starlette(
        # One after the other is tried, so those that answer in microseconds come first.
        routes=[
            *_listing_routes(service),
            *_inference_routes(service, server),
            *_status_routes(service, health),
            *(_management_routes(service, server) if server.dev_mode or server.admin_key else ()),
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


def _inference_routes(service: ModelService, server: ServerConfig) -> list[Route]:
    endpoint = partial(GenerationEndpoint, service, keepalive_s=server.keepalive_s, pace=Pace())
    store = ResponseStore()
    kept = KeptResponses(store)
    respond = partial(responses.parse_response, store=store)
    count = partial(responses.parse_count, store=store)
    input_tokens = TokenCount(service, count, object="response.input_tokens")
    message_tokens = TokenCount(service, anthropic.parse_count)
    return [
        Route("/v1/chat/completions", endpoint(parse_chat), methods=["POST"]),
        Route("/v1/completions", endpoint(parse_completion), methods=["POST"]),
        Route("/v1/messages", endpoint(anthropic.parse_messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", message_tokens, methods=["POST"]),
        Route("/v1/responses", endpoint(respond), methods=["POST"]),
        Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
        Route("/v1/responses/{name}", kept.one),
        Route("/v1/responses/{name}", kept.delete, methods=["DELETE"]),
        Route("/v1/responses/{name}/input_items", kept.input_items),
    ]


def _listing_routes(service: ModelService) -> list[Route]:
    listing = ListingRoutes(service)
    return [
        Route("/v1/models", listing.all),
        Route("/models", listing.all),
        Route("/v1/models/{name:path}", listing.one),
    ]


def _status_routes(service: ModelService, health: HealthSource) -> list[Route]:
    status = StatusRoutes(service, health)
    return [
        Route("/health", status.ready),
        Route("/livez", status.live),
        Route("/readyz", status.ready),
        Route("/", status.about),
        Route("/version", status.version),
        Route("/status", status.status),
        Route("/metrics", MetricsRoute(service).metrics),
    ]


def _management_routes(service: ModelService, server: ServerConfig) -> list[Route]:
    management = ManagementRoutes(service)
    events = ModelEvents(service, keepalive_s=server.keepalive_s)
    guard = [Middleware(Management, dev_mode=server.dev_mode)]
    return [
        Route("/v1/load_model", management.load_model, methods=["POST"], middleware=guard),
        Route("/v1/unload_model", management.unload_model, methods=["POST"], middleware=guard),
        Route("/models/load", management.request_load, methods=["POST"], middleware=guard),
        Route("/models/unload", management.request_unload, methods=["POST"], middleware=guard),
        Route("/models/sse", events, methods=["GET"], middleware=guard),
        Route("/sleep", management.sleep, methods=["POST"], middleware=guard),
        Route("/wake_up", management.wake_up, methods=["POST"], middleware=guard),
        Route("/is_sleeping", management.is_sleeping, methods=["GET"], middleware=guard),
    ]


def _cors(server: ServerConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=server.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
