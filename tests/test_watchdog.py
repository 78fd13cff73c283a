"""The watchdog sees what a task cannot, and only that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hotswap.contracts.engines import EngineStats
from hotswap.errors import DeviceLost
from hotswap.watchdog import (
    LOOKS_BEFORE_ALARM,
    Fault,
    Problem,
    Watchdog,
    WatchRules,
    engine_problem,
)

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
    assert (found is None) if problem is None else (found is not None and problem in found.text)


def test_an_engine_that_hangs_is_a_fault_and_a_dead_one_is_not() -> None:
    hanging = engine_problem(WORKING, 111.0, RULES)
    dead = engine_problem(replace(WORKING, alive=False), 100.0, RULES)
    assert hanging is not None
    assert dead is not None
    assert (hanging.fault, dead.fault) == (Fault.HANG, None)


def test_time_in_which_the_process_was_stopped_is_no_hang() -> None:
    assert engine_problem(WORKING, 200.0, RULES, awake_since=199.0) is None
    assert engine_problem(WORKING, 210.0, RULES, awake_since=199.0) is not None


def test_a_process_that_was_stopped_and_goes_on_raises_no_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither for its engine nor for its event loop, both of which stood still for a minute."""

    async def main() -> None:
        alarms: list[Problem] = []
        busy = Reading(replace(WORKING, last_progress=time.monotonic()))
        rules = replace(RULES, pause_s=5.0)
        watchdog = Watchdog(lambda: busy, rules, alarm=alarms.append)
        watchdog._loop = asyncio.get_running_loop()
        watchdog._look()  # asks the loop for a sign of life
        now = time.monotonic()
        monkeypatch.setattr("hotswap.watchdog.time.monotonic", lambda: now + 60.0)
        watchdog._look()
        assert not alarms
        monkeypatch.setattr("hotswap.watchdog.time.monotonic", lambda: now + 64.0)
        watchdog._look()
        assert not alarms
        for second in range(65, 80):  # from here on it runs, and they do not
            monkeypatch.setattr("hotswap.watchdog.time.monotonic", lambda s=second: now + s)
            watchdog._look()
        assert [alarm.fault for alarm in alarms] == [Fault.HANG]

    asyncio.run(main())


@dataclass
class Alarm:
    """Who is called on the watchdog's thread."""

    sounded: list[Problem] = field(default_factory=list)

    def __call__(self, problem: Problem) -> None:
        self.sounded.append(problem)


def test_a_hanging_step_sounds_the_alarm_once() -> None:
    async def main() -> None:
        hung = Reading(replace(WORKING, last_progress=time.monotonic() - RULES.hang_s - 1.0))
        alarm = Alarm()
        with Watchdog(lambda: hung, RULES, alarm=alarm) as watchdog:
            await until(lambda: bool(alarm.sounded))
            looks = watchdog.findings.looks
            await until(lambda: watchdog.findings.looks > looks + 3)
        assert [problem.fault for problem in alarm.sounded] == [Fault.HANG]

    asyncio.run(main())


def test_a_lost_device_sounds_the_alarm_within_a_period() -> None:
    async def main() -> None:
        lost: list[DeviceLost] = []
        alarm = Alarm()
        watchdog = Watchdog(
            lambda: None, RULES, lost=lambda: lost[0] if lost else None, alarm=alarm
        )
        with watchdog:
            await until(lambda: watchdog.findings.looks > 1)
            assert not alarm.sounded
            lost.append(DeviceLost("gone"))
            looks = watchdog.findings.looks
            await until(lambda: bool(alarm.sounded))
            assert watchdog.findings.looks <= looks + 1 + LOOKS_BEFORE_ALARM[Fault.DEVICE_LOST]
        assert alarm.sounded[0].fault is Fault.DEVICE_LOST

    asyncio.run(main())


def test_a_stuck_event_loop_is_a_fault_only_after_as_long_as_a_hang() -> None:
    async def main() -> None:
        alarm = Alarm()
        sounded = threading.Event()

        def note(problem: Problem) -> None:
            alarm(problem)
            sounded.set()

        rules = WatchRules(period_s=0.005, hang_s=1.0, stall_s=0.05)
        with Watchdog(lambda: None, rules, alarm=note) as watchdog:
            await until(lambda: watchdog.findings.looks > 1)
            threading.Event().wait(0.15)  # on the loop, on purpose
            await until(lambda: watchdog.findings.worst_loop_lag_s > rules.stall_s)
            assert not alarm.sounded
            assert sounded.wait(30), "this blocks the loop on purpose"
        assert alarm.sounded[0].fault is Fault.HANG
        assert "event loop" in alarm.sounded[0].text

    asyncio.run(main())


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
    async with asyncio.timeout(120):
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
