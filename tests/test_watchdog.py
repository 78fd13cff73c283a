"""The watchdog sees what a task cannot, and only that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hotswap.contracts import EngineStats
from hotswap.watchdog import Watchdog, WatchRules, engine_problem

RULES = WatchRules(period_s=0.005, hang_s=10.0, stall_s=0.05)
WORKING = EngineStats(
    generation=1,
    model="A",
    running=1,
    waiting=0,
    steps=7,
    tokens=7,
    last_progress=100.0,
    alive=True,
)


@pytest.mark.parametrize(
    ("stats", "now", "problem"),
    [
        (WORKING, 105.0, None),
        (WORKING, 111.0, "not finished a step for 11 s"),
        (replace(WORKING, running=0, waiting=2), 111.0, "not finished a step for 11 s"),
        (replace(WORKING, running=0), 9999.0, None),
        (replace(WORKING, alive=False, running=0), 100.0, "is dead"),
    ],
)
def test_an_engine_is_judged_by_its_last_step(
    stats: EngineStats, now: float, problem: str | None
) -> None:
    found = engine_problem(stats, now, RULES)
    assert (found is None) if problem is None else (found is not None and problem in found)


@dataclass
class Reading:
    """An engine that shows what it is told to show."""

    reading: EngineStats
    generation: int = 1
    failure: None = None

    def stats(self) -> EngineStats:
        return self.reading

    def generate(self, rendered: Any) -> Any:
        raise AssertionError("the watchdog only looks")

    async def embed(self, rendered: Any) -> Any:
        raise AssertionError("the watchdog only looks")

    def abort(self, error: Exception) -> None:
        raise AssertionError("the watchdog only looks")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def test_a_dead_engine_is_seen_within_a_period_and_forgotten_when_it_is_replaced() -> None:
    async def main() -> None:
        current: list[Reading] = [Reading(replace(WORKING, alive=False))]
        with Watchdog(lambda: current[0], RULES) as watchdog:
            await until(lambda: bool(watchdog.problems()))
            assert "dead" in watchdog.problems()[0]
            healthy = replace(WORKING, generation=2, running=0)
            current[0] = Reading(healthy, generation=2)
            await until(lambda: not watchdog.problems())

    asyncio.run(main())


def test_an_engine_that_leaves_while_it_is_looked_at_is_not_a_dead_one() -> None:
    async def main() -> None:
        leaving = Reading(replace(WORKING, alive=False))
        looks = 0

        def current() -> Reading | None:
            nonlocal looks
            looks += 1
            return leaving if looks % 2 else None

        with Watchdog(current, RULES) as watchdog:
            await until(lambda: watchdog.findings.looks > 5)
            assert watchdog.problems() == ()

    asyncio.run(main())


def test_a_stuck_event_loop_is_seen_while_it_is_stuck() -> None:
    async def main() -> None:
        with Watchdog(lambda: None, RULES) as watchdog:
            await until(lambda: watchdog.findings.looks > 1)
            seen = threading.Event()

            def look() -> None:
                while not any("event loop" in problem for problem in watchdog.problems()):
                    time.sleep(0.001)  # another thread's state: there is nothing to wait on
                seen.set()

            thread = threading.Thread(target=look, daemon=True)
            thread.start()
            assert seen.wait(30), "this blocks the loop on purpose"
            thread.join()
            await until(lambda: not watchdog.problems())
            assert watchdog.findings.worst_loop_lag_s >= RULES.stall_s

    asyncio.run(main())
