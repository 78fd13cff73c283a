"""What Prometheus reads: the snapshot as metrics, under vLLM's names where it has them.

There is one format, version 0.0.4 of the text, which every scraper takes. Choosing by the
``Accept`` header is left out: the library's way of it fails on a version that is not a number.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from hotswap.contracts.engines import EngineStats
from hotswap.contracts.service import ModelService
from hotswap.contracts.snapshot import SwapSnapshot

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class MetricsRoute:
    def __init__(self, service: ModelService) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshots(service))

    async def metrics(self, _: Request) -> Response:
        """``/metrics``. On the event loop, which the snapshot belongs to."""
        return Response(generate_latest(self._registry), media_type=MEDIA_TYPE)


class _Snapshots(Collector):
    """Takes a new snapshot each time it is asked, and keeps nothing."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        snapshot = self._service.snapshot()
        yield from _requests(snapshot)
        yield from _changes(snapshot)
        yield from _bytes(snapshot)
        yield _model(snapshot)


def _requests(snapshot: SwapSnapshot) -> Iterator[Metric]:
    engine = snapshot.engine
    queued = sum(snapshot.waiting.values())
    yield GaugeMetricFamily(
        "hotswap:num_requests_running",
        "Requests that the engine answers now.",
        engine.running if engine else 0,
    )
    yield GaugeMetricFamily(
        "hotswap:num_requests_waiting",
        "Requests, and loads by hand, that wait for their model or for a place in its engine.",
        queued + (engine.waiting if engine else 0),
    )
    yield CounterMetricFamily(
        "hotswap:generation_tokens", "Tokens drawn, by all engines so far.", snapshot.tokens
    )
    yield GaugeMetricFamily(
        "hotswap:kv_cache_usage_perc",
        "Share of the memory for keys and values that running requests hold; 1 is all of it.",
        _kv_usage(engine) if engine else None,
    )


def _kv_usage(engine: EngineStats) -> float | None:
    """None: the engine does not say, or its model keeps no keys and values."""
    limit = engine.details.get("kv_limit_bytes")
    return engine.details["kv_used_bytes"] / limit if limit else None


def _changes(snapshot: SwapSnapshot) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "hotswap:loads", "Models put on the device, swaps included.", snapshot.loads
    )
    yield CounterMetricFamily(
        "hotswap:swaps", "Loads of another model than the one before.", snapshot.swaps
    )
    unloads = CounterMetricFamily(
        "hotswap:unloads",
        "Models that left the device with no other one in their place.",
        labels=("reason",),
    )
    for reason, count in snapshot.unloads_by_reason.items():
        unloads.add_metric((reason,), count)
    yield unloads
    yield CounterMetricFamily(
        "hotswap:engine_rebuilds", "Engines that failed and were built again.", snapshot.rebuilds
    )
    yield CounterMetricFamily(
        "hotswap:self_restarts",
        "Times that the process started itself again after a fault; all else is counted anew then.",
        snapshot.restarts,
    )
    seconds = CounterMetricFamily(
        "hotswap:load_seconds", "Seconds that loads spent, by phase.", labels=("phase",)
    )
    for phase, spent_s in snapshot.phase_seconds.items():
        if phase != "gap":  # it overlaps with the phases
            seconds.add_metric((phase,), spent_s)
    yield seconds
    yield CounterMetricFamily(
        "hotswap:gap_seconds",
        "Seconds between the last token of a model and when the next one could answer.",
        snapshot.phase_seconds.get("gap", 0.0),
    )


def _bytes(snapshot: SwapSnapshot) -> Iterator[Metric]:
    parked = GaugeMetricFamily(
        "hotswap:parked_bytes", "Host memory that parked models take.", labels=("model",)
    )
    for model in snapshot.parked:
        parked.add_metric((model.model,), model.bytes)
    yield parked
    yield GaugeMetricFamily(
        "hotswap:leaked_bytes",
        "Memory that the last model to leave the device did not give back.",
        snapshot.memory.leaked_bytes if snapshot.memory else None,
    )
    yield CounterMetricFamily(
        "hotswap:teardown_leaked_bytes",
        "Memory that models did not give back when they left the device, all of them so far.",
        snapshot.teardown_leaked_bytes,
    )


def _model(snapshot: SwapSnapshot) -> Metric:
    info = InfoMetricFamily(
        "hotswap:model", "The model on the device, else the one on its way; empty: neither."
    )
    model = ""
    if snapshot.resident is not None:
        model = snapshot.resident.id
    elif snapshot.progress is not None:
        model = snapshot.progress.model
    info.add_metric((), {"model": model, "phase": snapshot.phase})
    return info
