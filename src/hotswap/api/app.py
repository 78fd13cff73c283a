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

from hotswap.api import ollama
from hotswap.api.admin import ManagementRoutes, ModelEvents
from hotswap.api.edge import Edge, ErrorEnvelope, http_exception
from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.gate import Gate, Management
from hotswap.api.listing import ListingRoutes
from hotswap.api.metrics import MetricsRoute
from hotswap.api.ollama_endpoints import EmbedEndpoint, OllamaEndpoint, PullEndpoint
from hotswap.api.ollama_models import OllamaModels, refuse_changes
from hotswap.api.openai import parse_chat, parse_completion
from hotswap.api.pace import Pace
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
            *_ollama_model_routes(service),
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
    pace = Pace()
    endpoint = partial(GenerationEndpoint, service, keepalive_s=server.keepalive_s, pace=pace)
    prompted = partial(OllamaEndpoint, service, keepalive_s=server.keepalive_s, pace=pace)
    return [
        Route("/v1/chat/completions", endpoint(parse_chat), methods=["POST"]),
        Route("/v1/completions", endpoint(parse_completion), methods=["POST"]),
        Route("/api/chat", prompted(ollama.parse_chat, ollama.chat_presence), methods=["POST"]),
        Route(
            "/api/generate",
            prompted(ollama.parse_generate, ollama.generate_presence),
            methods=["POST"],
        ),
        Route("/api/embed", EmbedEndpoint(service, ollama.parse_embed), methods=["POST"]),
        Route("/api/embeddings", EmbedEndpoint(service, ollama.parse_embeddings), methods=["POST"]),
        Route("/api/pull", PullEndpoint(service, keepalive_s=server.keepalive_s), methods=["POST"]),
    ]


def _ollama_model_routes(service: ModelService) -> list[Route]:
    models = OllamaModels(service)
    return [
        Route("/api/version", models.version),
        Route("/api/tags", models.tags),
        Route("/api/ps", models.running),
        Route("/api/show", models.show, methods=["POST"]),
        Route("/api/delete", refuse_changes, methods=["DELETE"]),
        Route("/api/create", refuse_changes, methods=["POST"]),
        Route("/api/copy", refuse_changes, methods=["POST"]),
        Route("/api/push", refuse_changes, methods=["POST"]),
        Route("/api/blobs/{digest}", refuse_changes, methods=["HEAD", "POST"]),
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
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
