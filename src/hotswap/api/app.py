"""The layers around the routes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from hotswap.api.edge import Edge, ErrorEnvelope
from hotswap.api.gate import Crowd, Gate
from hotswap.api.openapi import OpenApiRoute
from hotswap.api.routes import operations_of
from hotswap.api.status import HealthSource
from hotswap.api.traffic import Traffic
from hotswap.api.unrouted import Unrouted
from hotswap.config import ServerConfig, Settings
from hotswap.contracts.service import ModelService

BESIDE_THE_QUEUE = 768
"""Requests that may be in hand and do not wait for a model: they are read, or answered."""

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    service: ModelService,
    settings: Settings,
    health: HealthSource,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """The whole HTTP side as one ASGI app."""
    server = settings.server
    traffic = Traffic()
    operations = operations_of(service, server, health, traffic)
    openapi = OpenApiRoute(operations, keyed=bool(server.api_keys))
    routes = [
        *(operation.route() for operation in operations),
        Route("/openapi.json", openapi.document),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Edge, traffic=traffic),
            *((_cors(server),) if server.cors_origins else ()),
            Middleware(ErrorEnvelope, loading=lambda: service.snapshot().progress),
            Middleware(Crowd, most=settings.swap.max_queue + BESIDE_THE_QUEUE),
            Middleware(Gate, server=server),
        ],
        exception_handlers={HTTPException: Unrouted(routes).answer},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header it was given
    return app


def _cors(server: ServerConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=server.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
