"""Watchdog, swap floor and API together: what breaks below shows in `/readyz` and `/health`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from hotswap.api.app import create_app
from hotswap.config import Settings, SwapRules
from hotswap.contracts.engines import Engine, EngineStats
from hotswap.errors import DeviceLost
from hotswap.scripted import Script, ScriptedCatalog, ScriptedRegistry
from hotswap.service import SwapService
from hotswap.swap import SwapController
from hotswap.watchdog import Watchdog, WatchRules
from tests.swap.house import spec

RULES = WatchRules(period_s=0.01, hang_s=5.0, stall_s=0.5)
"""A machine that is busy with other things must not look stuck."""
QUICK = Script(prepare_s=0.0, start_s=0.0, stop_s=0.0, token_s=0.01)


@dataclass
class House:
    registry: ScriptedRegistry
    http: httpx2.AsyncClient
    watchdog: Watchdog
    may_look: threading.Event
    """While it is not set the watchdog's findings stay what they are."""

    async def ready(self) -> bool:
        return (await self.http.get("/readyz")).status_code == 200

    async def health(self) -> dict[str, Any]:
        body: dict[str, Any] = (await self.http.get("/health")).json()
        return body


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    registry, rules = ScriptedRegistry(QUICK), SwapRules(on_demand=True)
    catalog = ScriptedCatalog(spec("A"), spec("B"), startup="A")
    controller = SwapController(registry, catalog.fetch, rules)
    service = SwapService(controller, registry, catalog)
    may_look = threading.Event()
    may_look.set()

    def current() -> Engine | None:
        may_look.wait()
        return registry.current

    with Watchdog(current, RULES) as watchdog:
        app = create_app(service, Settings(swap=rules), watchdog)
        transport = httpx2.ASGITransport(app=app)
        async with (
            controller.running(),
            httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            await service.load("A", {}, "request")
            try:
                yield House(registry, http, watchdog, may_look)
            finally:
                may_look.set()


def play(scenario: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), house() as built:
            await scenario(built)

    asyncio.run(main())


async def one_period(house: House) -> None:
    """Until the watchdog has made one look that began after this call: the one under way may have
    read its engine before."""
    enough = house.watchdog.findings.looks + 2
    while house.watchdog.findings.looks < enough:
        await asyncio.sleep(0.001)


def test_a_hung_step_is_told_within_a_period_and_forgotten_when_it_moves() -> None:
    async def scenario(house: House) -> None:
        assert await house.ready()
        engine = house.registry.engines[-1]
        truth = engine.stats

        def hung() -> EngineStats:
            return replace(truth(), running=1, last_progress=time.monotonic() - RULES.hang_s - 1)

        engine.stats = hung  # type: ignore[method-assign]
        await one_period(house)
        assert not await house.ready()
        assert "not finished a step" in (await house.health())["problems"][0]
        engine.stats = truth  # type: ignore[method-assign]
        await one_period(house)
        assert await house.ready()

    play(scenario)


def test_a_dead_engine_is_told_within_a_period() -> None:
    async def scenario(house: House) -> None:
        house.registry.engines[-1].alive = False
        await one_period(house)
        assert not await house.ready()
        assert "dead" in (await house.health())["problems"][0]
        house.registry.engines[-1].alive = True

    play(scenario)


def test_a_lost_device_is_not_ready_but_alive() -> None:
    async def scenario(house: House) -> None:
        house.registry.engines[-1].fail(DeviceLost("gone"))
        while (await house.health())["phase"] != "failed":
            await asyncio.sleep(0)
        assert not await house.ready()
        assert (await house.http.get("/livez")).status_code == 200

    play(scenario)


def test_a_stuck_event_loop_is_told_as_soon_as_it_answers_again() -> None:
    async def scenario(house: House) -> None:
        assert await house.ready()
        stuck = threading.Event()
        stuck.wait(3 * RULES.stall_s)  # on the loop, on purpose
        house.may_look.clear()  # a look under way has seen the loop stuck
        assert not await house.ready()
        assert "event loop" in (await house.health())["problems"][0]
        house.may_look.set()
        while not await house.ready():
            await asyncio.sleep(0.001)

    play(scenario)


def test_swapping_raises_no_false_alarm() -> None:
    async def scenario(house: House) -> None:
        for number in range(12):
            body = {"model": "BA"[number % 2], "messages": [{"role": "user", "content": "hi"}]}
            answer = await house.http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            assert (await house.health())["problems"] == []

    play(scenario)
