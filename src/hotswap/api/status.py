"""Health, readiness, version and status."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from hotswap import __version__
from hotswap.api.documents import json_response
from hotswap.api.errors import envelope, error_headers
from hotswap.contracts.engines import EngineStats
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.service import ModelService
from hotswap.contracts.snapshot import LoadFailure, SwapPhase, SwapSnapshot
from hotswap.errors import (
    DeviceLost,
    EngineFailed,
    HotswapError,
    ModelLoading,
    ModelUnloaded,
    ShuttingDown,
    Unavailable,
)


class HealthSource(Protocol):
    """Whoever watches the engine; the watchdog, outside tests."""

    def problems(self) -> Sequence[str]:
        """What is wrong now, in words fit for a client; empty while all is well."""


class StatusRoutes:
    def __init__(self, service: ModelService, health: HealthSource) -> None:
        self._service = service
        self._health = health

    async def about(self, _: Request) -> Response:
        links = {
            "models": "/v1/models",
            "chat": "/v1/chat/completions",
            "completions": "/v1/completions",
            "embeddings": "/v1/embeddings",
            "health": "/health",
            "status": "/status",
        }
        return json_response({"name": "hotswap", "version": __version__, "links": links})

    async def version(self, _: Request) -> Response:
        return json_response({"version": __version__})

    async def live(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """``/readyz`` and ``/health``: 503 while a request would not be served."""
        snapshot, problems = self._service.snapshot(), self._health.problems()
        report = _health_report(snapshot, problems)
        error = _why_not_ready(snapshot, problems)
        if error is None:
            return json_response({"status": "ok", **report})
        return json_response(
            {"status": "unavailable", **report, **envelope(error)},
            status=503,
            headers=error_headers(error),
        )

    async def status(self, _: Request) -> Response:
        snapshot = self._service.snapshot()
        return json_response(
            {
                "version": __version__,
                "problems": self._health.problems(),
                **describe(snapshot, time.monotonic()),
                "unusable": self._service.unusable(),
            }
        )


def _health_report(snapshot: SwapSnapshot, problems: Sequence[str]) -> dict[str, Any]:
    return {
        "phase": snapshot.phase,
        "model": snapshot.resident.id if snapshot.resident else None,
        "progress": snapshot.progress,
        "leases": snapshot.leases,
        "queue": sum(snapshot.waiting.values()),
        "last_error": snapshot.last_error,
        "problems": problems,
    }


def _why_not_ready(snapshot: SwapSnapshot, problems: Sequence[str]) -> HotswapError | None:
    if problems:
        return EngineFailed("; ".join(problems))
    if snapshot.serviceable:
        return None
    kind, reason = _obstacle(snapshot)
    return kind(snapshot.unserviceable_reason or reason)


def _obstacle(snapshot: SwapSnapshot) -> tuple[type[Unavailable], str]:
    """What stands in the way of a snapshot that is not serviceable."""
    if snapshot.phase is SwapPhase.FAILED:
        return DeviceLost, "the device is lost"
    if snapshot.engine is not None and not snapshot.engine.alive:
        return EngineFailed, "the engine has failed"
    # A model whose engine works serves, whatever is to come, until the server drains.
    if snapshot.phase is SwapPhase.CLOSED or snapshot.resident is not None:
        return ShuttingDown, "the server is shutting down"
    if snapshot.progress is not None:
        return ModelLoading, "a model is being loaded"
    return ModelUnloaded, "no model is loaded"


def describe(snapshot: SwapSnapshot, now: float) -> dict[str, Any]:
    """Everything of ``snapshot`` but paths of this machine; ``now`` is of its clock."""
    return {
        "snapshot": snapshot.version,
        "phase": snapshot.phase,
        "serviceable": snapshot.serviceable,
        "unserviceable_reason": snapshot.unserviceable_reason,
        "resident": _describe_model(snapshot.resident) if snapshot.resident else None,
        "progress": snapshot.progress,
        "waiting": snapshot.waiting,
        "leases": snapshot.leases,
        "asleep": snapshot.asleep,
        "last_resident": snapshot.last_resident,
        "parked": snapshot.parked,
        "failures": {
            model: _describe_failure(failure, now) for model, failure in snapshot.failures.items()
        },
        "last_error": snapshot.last_error,
        "engine": _describe_engine(snapshot.engine, now) if snapshot.engine else None,
        "loads": snapshot.loads,
        "swaps": snapshot.swaps,
        "unloads": snapshot.unloads,
        "unloads_by_reason": snapshot.unloads_by_reason,
        "rebuilds": snapshot.rebuilds,
        "restarts": snapshot.restarts,
        "tokens": snapshot.tokens,
        "timings": snapshot.timings,
        "phase_seconds": snapshot.phase_seconds,
        "memory": snapshot.memory,
        "teardown_leaked_bytes": snapshot.teardown_leaked_bytes,
        "expires_in_s": snapshot.expires_in_s,
    }


def _describe_model(spec: ModelSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "task": spec.task,
        "revision": spec.revision,
        "aliases": spec.aliases,
        "engine": spec.engine,
        "sampling": spec.sampling,
        "applied": spec.applied,
        "ttl_s": spec.ttl_s,
        "pin": spec.pin,
        "background": spec.background,
        "max_position_embeddings": spec.max_position_embeddings,
        "created_unix": spec.created_unix,
    }


def _describe_failure(failure: LoadFailure, now: float) -> dict[str, Any]:
    return {
        "message": failure.message,
        "code": failure.code,
        "retry_in_s": max(0.0, failure.retry_at - now),
    }


def _describe_engine(engine: EngineStats, now: float) -> dict[str, Any]:
    described = asdict(engine)
    described["progress_age_s"] = max(0.0, now - described.pop("last_progress"))
    return described
