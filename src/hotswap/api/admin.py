"""The management routes: load, unload, and the feed of what happens to the models."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import anyio
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotswap.api.body import parse_object, read_body, read_object
from hotswap.api.documents import json_response
from hotswap.api.fields import decode
from hotswap.api.headers import content_type
from hotswap.api.listing import status_event
from hotswap.api.query import TRUTH, single
from hotswap.api.sse import EventStream, comment, while_connected
from hotswap.api.uploads import read_upload
from hotswap.contracts.listing import ModelListing
from hotswap.contracts.reports import LoadForecast, LoadReport, MemoryReport, UnloadReport
from hotswap.contracts.service import ModelService, UnloadMode
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot
from hotswap.errors import InvalidRequest

Choice = TypeVar("Choice")
Order = TypeVar("Order", bound=Struct)

_OVER = (SwapPhase.CLOSED, SwapPhase.FAILED)
"""Nothing changes any more in this process."""

SURVEY_PAUSE_S = 1.0
"""Least time between two looks at the disk for the feed."""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What is to be loaded, and with which settings over the start-up ones."""

    model: str | None
    config: dict[str, Any]
    source: str = "request"


class LoadBody(Struct):
    """What a load is read as first. Without a ``config`` it is flat: all keys but the model's are
    settings."""

    model: str | None = None
    config: dict[str, Any] | None = None


class NestedLoad(Struct, forbid_unknown_fields=True):
    model: str | None = None
    config: dict[str, Any] | None = None


class NamedModel(Struct):
    model: Annotated[str, Meta(min_length=1)]


class UnloadOrder(Struct, forbid_unknown_fields=True):
    model: str | None = None
    drain_timeout_s: Annotated[float, Meta(ge=0)] | None = None
    mode: Literal["drain", "abort"] | None = None
    park: bool | None = None


class SleepOrder(Struct, forbid_unknown_fields=True):
    """The body that ``/sleep`` may have in place of its query."""

    level: Literal[1, 2] | None = None
    mode: Literal["wait", "abort"] | None = None


class WakeOrder(Struct, forbid_unknown_fields=True):
    """The same of ``/wake_up``."""

    tags: list[Literal["weights", "kv_cache"]] | None = None


SLEEP_LEVELS = {"1": True, "2": False}
"""Whether a model that sleeps so is kept in host memory."""
WAKE_TAGS = ("weights", "kv_cache")
"""The parts that vLLM wakes one after the other."""
SLEEP_MODES: Mapping[str, UnloadMode] = {"wait": "drain", "abort": "abort"}


_NOT_PARKED = (
    "It was let go of, not kept in host memory (--park-memory says how much may be): "
    "waking it up reads its files."
)


class ManagementRoutes:
    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def load_model(self, request: Request) -> Response:
        """``/v1/load_model`` in its five forms; answers when the model serves, or with
        ``?dry_run=true`` at once what would happen."""
        _check_query(request, "dry_run")
        is_dry_run = _choice(request, "dry_run", TRUTH)
        order = await _read_load(request)
        if is_dry_run:
            forecast = await self._service.forecast(order.model, order.config, order.source)
            return json_response(_forecast_answer(forecast))
        report = await self._service.load(order.model, order.config, order.source)
        return json_response(_load_answer(report))

    async def unload_model(self, request: Request) -> Response:
        """``/v1/unload_model``."""
        _check_query(request)
        order = await _read_order(request, UnloadOrder)
        device = _device(self._service)
        report = await self._service.unload(
            order.model or None,
            drain_timeout_s=order.drain_timeout_s,
            mode=order.mode or "drain",
            park=order.park is not False,
        )
        return json_response(_unload_answer(report, device, self._parked()))

    async def request_load(self, request: Request) -> Response:
        """``/models/load``: answers at once, the load goes on."""
        await self._service.request_load(await _read_name(request))
        return json_response({"success": True})

    async def request_unload(self, request: Request) -> Response:
        """``/models/unload``: also takes back a load that goes on."""
        await self._service.unload(await _read_name(request))
        return json_response({"success": True})

    async def sleep(self, request: Request) -> Response:
        """``/sleep``: answers as an unload does, where vLLM's has no body. Running answers end
        first, unless ``mode=abort``."""
        _check_query(request, "level", "mode", elsewhere="")
        order = await _read_order(request, SleepOrder)
        park = _choice(request, "level", SLEEP_LEVELS, order.level)
        mode = _choice(request, "mode", SLEEP_MODES, order.mode)
        device = _device(self._service)
        report = await self._service.sleep(park=park, mode=mode)
        answer = _unload_answer(report, device, self._parked())
        if report.called_off is not None:
            answer["message"] += f" {report.model!r} sleeps."
        was_there = report.model not in (None, report.called_off)
        if was_there and park and not report.parked:
            answer["message"] += f" {_NOT_PARKED}"
        return json_response(answer)

    async def wake_up(self, request: Request) -> Response:
        """``/wake_up``: 200 without a body once the model serves. Whatever ``tags`` name, all of it
        is woken: weights and room for keys and values come together."""
        _check_query(request, "tags", elsewhere="")
        for tag in request.query_params.getlist("tags"):
            _one_of(WAKE_TAGS, tag, "tags")
        await _read_order(request, WakeOrder)
        await self._service.wake_up()
        return Response()

    def _parked(self) -> Sequence[str]:
        return [parked.model for parked in self._service.snapshot().parked]

    async def is_sleeping(self, request: Request) -> Response:
        """``/is_sleeping``: whether ``/wake_up`` would wake a model up, and none is on its way."""
        _check_query(request, elsewhere="")
        return json_response({"is_sleeping": self._service.snapshot().is_sleeping})


class ModelEvents:
    """``/models/sse``: the status of all models, then each change, until shutdown or a fault that
    ends the process."""

    def __init__(self, service: ModelService, *, keepalive_s: float) -> None:
        self._service = service
        self._keepalive_s = keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, scope)
        stream = EventStream(send)
        async with while_connected(receive):
            await self._feed(stream)
            await stream.finish()

    async def _feed(self, stream: EventStream) -> None:
        told: dict[str, bytes] = {}
        due = anyio.current_time()
        while True:
            snapshot = self._service.snapshot()
            next_survey = anyio.current_time() + SURVEY_PAUSE_S
            fresh = _changes(await self._service.models(), told)
            if fresh or anyio.current_time() >= due:
                await stream.write(fresh or comment("no news"))
                due = anyio.current_time() + self._keepalive_s
            if snapshot.phase in _OVER:
                return
            with anyio.CancelScope(deadline=due):
                await self._news(snapshot, next_survey)

    async def _news(self, told: SwapSnapshot, not_before: float) -> None:
        """Wait for something that the feed would show, or for the end."""
        snapshot, shown = told, _shown(told)
        while snapshot.phase not in _OVER:
            differs = _shown(snapshot) != shown
            if differs and anyio.current_time() >= not_before:
                return
            with anyio.CancelScope(deadline=not_before if differs else math.inf):
                snapshot = await self._service.changed(snapshot.version)


def _shown(snapshot: SwapSnapshot) -> tuple[Any, ...]:
    """As much of a snapshot as a listing depends on; each request changes the rest."""
    progress = snapshot.progress
    return (
        snapshot.phase,
        snapshot.resident and snapshot.resident.id,
        progress and (progress.model, progress.stage, progress.value),
        {failure.model: failure.message for failure in snapshot.failures.values()},
        {parked.model for parked in snapshot.parked},
    )


def _changes(listings: tuple[ModelListing, ...], told: dict[str, bytes]) -> bytes:
    """Events for what differs from ``told``, which is brought up to date."""
    events = {listing.id: status_event(listing) for listing in listings}
    fresh = [event for model, event in events.items() if told.get(model) != event]
    told.update(events)
    return b"".join(fresh)


def _check_query(request: Request, *known: str, elsewhere: str = ", put it in the body") -> None:
    """Refuse what would be ignored: ``?model=m`` must not load the start-up model."""
    for name in request.query_params:
        if name not in known:
            shown = name[:200]
            raise InvalidRequest(f"{shown}: not a query parameter{elsewhere}", param=shown)


def _choice(
    request: Request, name: str, meanings: Mapping[str, Choice], in_body: object = None
) -> Choice:
    """What a query parameter, or the same field of the body, means; where neither is given, the
    first of ``meanings``."""
    told = None if in_body is None else str(in_body)
    written = single(request.query_params, name)
    if written is None:
        return meanings[next(iter(meanings)) if told is None else told]
    written = written.lower()
    _one_of(meanings, written, name)
    if told not in (None, written):
        problem = f"{written} in the query, but {told} in the body"
        raise InvalidRequest(f"{name}: {problem}", param=name)
    return meanings[written]


def _one_of(known: Collection[str], written: str, name: str) -> None:
    """Raises: InvalidRequest: it is none of those that a query parameter can be."""
    if written not in known:
        raise InvalidRequest(f"{name}: must be one of {', '.join(known)}", param=name)


async def _read_load(request: Request) -> LoadOrder:
    if content_type(request.scope) == "multipart/form-data":
        model, config = await read_upload(request)
        return LoadOrder(model, config, "uploaded")
    body = await read_body(request.receive, request.scope)
    fields = parse_object(body) if body.strip() else {}
    flat = decode(fields, LoadBody)
    if "config" not in fields:
        settings = {key: value for key, value in fields.items() if key != "model"}
        return LoadOrder(flat.model or None, settings)
    nested = decode(fields, NestedLoad)
    return LoadOrder(nested.model or None, nested.config or {})


async def _read_order(request: Request, kind: type[Order]) -> Order:
    """From a body that may be empty."""
    body = await read_body(request.receive, request.scope)
    return decode(parse_object(body) if body.strip() else {}, kind)


async def _read_name(request: Request) -> str:
    named = await read_object(
        request.receive, request.scope, lambda fields: decode(fields, NamedModel)
    )
    return named.model


def _load_answer(report: LoadReport) -> dict[str, Any]:
    if report.already_loaded:
        message = "Model is already loaded."
    else:
        message = f"Model loaded successfully in {report.load_time_s:.2f}s."
    if report.memory is not None and report.memory.leaked_bytes > 0:
        held = f"{report.memory.leaked_bytes} bytes of the memory of the model before it"
        message = f"{message} {held} are still held."
    return {
        "status": "success",
        "message": message,
        "load_time_s": report.load_time_s,
        "model": report.model,
        "already_loaded": report.already_loaded,
        "config_applied": report.config_applied,
        "previous_model": report.previous_model,
        "timings": report.timings,
        "memory": report.memory,
    }


def _forecast_answer(forecast: LoadForecast) -> dict[str, Any]:
    estimate = forecast.estimate
    return {
        "status": "info",
        "message": _forecast_sentence(forecast),
        "dry_run": True,
        "model": forecast.model,
        "already_loaded": forecast.already_loaded,
        "fits": estimate.fits,
        "reason": estimate.reason,
        "leaves": forecast.leaves,
        "expected_s": forecast.expected_s,
        "weights_bytes": estimate.weights_bytes,
        "kv_bytes": estimate.kv_bytes,
        "device_free_bytes": estimate.device_free_bytes,
        "host_free_bytes": estimate.host_free_bytes,
        "spread": estimate.spread,
    }


def _forecast_sentence(forecast: LoadForecast) -> str:
    if forecast.already_loaded:
        return "Model is already loaded."
    if not forecast.estimate.fits:
        return "Model would not fit."
    goes = f"; {forecast.leaves} would go" if forecast.leaves else ""
    return f"Model would fit{goes}."


def _unload_answer(report: UnloadReport, device: str, parked: Sequence[str]) -> dict[str, Any]:
    """``parked``: the models in host memory."""
    if report.model is None:
        return {"status": "info", "message": _nothing_loaded(parked)}
    message = f"Model unloaded successfully in {report.total_time_s:.2f}s."
    if report.was_parked:
        message = f"{report.model!r} was parked in host memory, and has been let go of."
    elif report.called_off is not None:
        took = f" in {report.total_time_s:.2f}s" if report.total_time_s else ""
        message = f"Loading {report.called_off!r} was called off{took}."
    if report.memory is not None:
        message = f"{message} {_memory_sentence(report.memory, device, parked=report.parked)}"
    return {
        "status": "success",
        "message": message,
        "model": report.model,
        "drain_time_s": report.drain_time_s,
        "shutdown_time_s": report.shutdown_time_s,
        "total_time_s": report.total_time_s,
        "memory": report.memory,
        "parked": report.parked,
    }


def _nothing_loaded(parked: Sequence[str]) -> str:
    told = "No model is loaded."
    if not parked:
        return told
    names = ", ".join(map(repr, parked))
    return f"{told} Parked in host memory: {names}; an unload that names one lets go of it."


def _memory_sentence(memory: MemoryReport, device: str, *, parked: bool) -> str:
    if memory.leaked_bytes > 0:
        return f"{memory.leaked_bytes} bytes of its memory are still held."
    if device.startswith("cuda"):
        return f"All GPU memory was freed.{' It is kept in host memory.' * parked}"
    return "It is kept in memory." if parked else "All of its memory was freed."


def _device(service: ModelService) -> str:
    engine = service.snapshot().engine
    return str(engine.details.get("device", "")) if engine else ""
