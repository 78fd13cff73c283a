"""A thread that looks at whichever engine is current, and at the event loop.

It is a thread because a task cannot see that its own loop is stuck. What it finds is read by
`/readyz` and `/health`; what nothing in this process can mend is a `Fault`, and its alarm is
called.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType

from hotswap.contracts.engines import Engine, EngineStats
from hotswap.errors import HotswapError

logger = logging.getLogger(__name__)


class Fault(IntEnum):
    """What this process cannot mend. The value is the exit code that tells of it."""

    DEVICE_LOST = 70
    HANG = 71


LOOKS_BEFORE_ALARM = {Fault.DEVICE_LOST: 1, Fault.HANG: 2}
"""In a row. Between the two whoever asks whether the server is ready is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRules:
    """When something counts as stuck."""

    period_s: float = 0.25
    """Pause between two looks. A hang is to be told within a second."""
    hang_s: float = 60.0
    """An engine with work and no finished step for this long hangs, and so does an event loop that
    has not answered for this long. A first step may compile kernels, and a long prompt on two cores
    takes seconds."""
    stall_s: float = 5.0
    """An event loop that did not answer for this long is stuck."""
    pause_s: float = 5.0
    """A look that comes this much too late tells that the process was stopped or starved: time in
    which nothing could move counts as nobody's."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong."""

    text: str
    """In words fit for a client."""
    fault: Fault | None = None
    """None: it may pass, or is mended by others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one look found; ``problems`` is empty when all is well."""

    problems: tuple[str, ...] = ()
    looks: int = 0
    loop_lag_s: float = 0.0
    """Of the event loop, at the last look."""
    worst_loop_lag_s: float = 0.0


def engine_problem(
    stats: EngineStats, now: float, rules: WatchRules, awake_since: float = -math.inf
) -> Problem | None:
    """What is wrong with an engine, judged from one reading.

    Args:
        awake_since: Monotonic time from which on this process ran.
    """
    if not stats.alive:
        return Problem(f"the engine of {stats.model!r} is dead")
    idle_s = now - max(stats.last_progress, awake_since)
    if (stats.running or stats.waiting) and idle_s > rules.hang_s:
        text = f"the engine of {stats.model!r} has not finished a step for {idle_s:.0f} s"
        return Problem(text, Fault.HANG)
    return None


class Watchdog:
    """Use as a context manager, from a task of the loop that it is to watch."""

    def __init__(
        self,
        current: Callable[[], Engine | None],
        rules: WatchRules | None = None,
        *,
        lost: Callable[[], HotswapError | None] = lambda: None,
        alarm: Callable[[Problem], None] | None = None,
    ) -> None:
        """
        Args:
            lost: Why the device is lost; None while it is not.
            alarm: Called once, on the watchdog's thread, with a fault that did not pass.
        """
        self.rules = rules or WatchRules()
        """May be replaced while it watches."""
        self._current = current
        self._lost = lost
        self._alarm = alarm
        self._faulty_looks = 0
        self._findings = Findings()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat = _Heartbeat()
        self._looked = time.monotonic()
        self._awake_since = -math.inf

    def __enter__(self) -> Watchdog:
        self._loop = asyncio.get_running_loop()
        self._looked = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def findings(self) -> Findings:
        """Of the last look; safe from any thread."""
        return self._findings

    def problems(self) -> tuple[str, ...]:
        """What is wrong now; empty when all is well."""
        return self._findings.problems

    def _run(self) -> None:
        while not self._stop.wait(self.rules.period_s):
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        self._note_pause(now)
        silent = not self._heartbeat.answered
        lag_s = self._beat(now)
        problems = [*self._device_problems(), *self._engine_problems(now)]
        problems += self._loop_problems(lag_s, silent=silent)
        known = self._findings.problems
        for problem in problems:
            if _kind(problem.text) not in map(_kind, known):
                logger.error("watchdog: %s", problem.text)
        if known and not problems:
            logger.warning("watchdog: all is well again")
        self._findings = Findings(
            problems=tuple(problem.text for problem in problems),
            looks=self._findings.looks + 1,
            loop_lag_s=lag_s,
            worst_loop_lag_s=max(lag_s, self._findings.worst_loop_lag_s),
        )
        fault = next((problem for problem in problems if problem.fault is not None), None)
        self._faulty_looks = 0 if fault is None else self._faulty_looks + 1
        self._sound_alarm(fault)

    def _sound_alarm(self, problem: Problem | None) -> None:
        if problem is None or problem.fault is None or self._alarm is None:
            return
        if self._faulty_looks >= LOOKS_BEFORE_ALARM[problem.fault]:
            alarm, self._alarm = self._alarm, None
            alarm(problem)

    def _note_pause(self, now: float) -> None:
        late_s = now - self._looked - self.rules.period_s
        self._looked = now
        if late_s > self.rules.pause_s:
            logger.warning("watchdog: this process did not run for %.0f s", late_s)
            self._awake_since = now

    def _device_problems(self) -> list[Problem]:
        lost = self._lost()
        return [] if lost is None else [Problem("the device is lost", Fault.DEVICE_LOST)]

    def _engine_problems(self, now: float) -> list[Problem]:
        engine = self._current()
        if engine is None:
            return []
        stats = engine.stats()
        problem = engine_problem(stats, now, self.rules, self._awake_since)
        after = self._current()
        # An engine that left while it was looked at is not a dead one.
        replaced = after is None or after.generation != stats.generation
        return [] if problem is None or replaced else [problem]

    def _loop_problems(self, lag_s: float, *, silent: bool) -> list[Problem]:
        if lag_s < self.rules.stall_s:
            return []
        hangs = silent and lag_s > self.rules.hang_s
        text = f"the event loop has not answered for {lag_s:.0f} s"
        return [Problem(text, Fault.HANG if hangs else None)]

    def _beat(self, now: float) -> float:
        """Ask the loop for a sign of life; returns how late the last one is or was."""
        assert self._loop is not None
        lag_s = self._heartbeat.lag(now, self._awake_since)
        if self._heartbeat.answered and not self._loop.is_closed():
            self._heartbeat = beat = _Heartbeat(asked=now, answered=False)
            self._loop.call_soon_threadsafe(beat.answer)
        return lag_s


def _kind(problem: str) -> str:
    """What stays the same of it while it lasts."""
    return problem.rpartition(" for ")[0] or problem


@dataclass(slots=True)
class _Heartbeat:
    asked: float = 0.0
    answered: bool = True
    late_s: float = field(default=0.0)

    def answer(self) -> None:
        self.late_s = time.monotonic() - self.asked
        self.answered = True

    def lag(self, now: float, awake_since: float) -> float:
        return self.late_s if self.answered else now - max(self.asked, awake_since)
