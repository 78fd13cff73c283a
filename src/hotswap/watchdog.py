"""A thread that looks at whichever engine is current, and at the event loop.

It is a thread because a task cannot see that its own loop is stuck. It only tells: what follows
from its findings is decided by those who read them (`/readyz`, `/health`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from hotswap.contracts import Engine, EngineStats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRules:
    """When something counts as stuck."""

    period_s: float = 1.0
    """Pause between two looks."""
    hang_s: float = 60.0
    """An engine with work and no finished step for this long hangs. A first step may compile
    kernels, and a long prompt on two cores takes seconds."""
    stall_s: float = 5.0
    """An event loop that did not answer for this long is stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one look found; ``problems`` is empty when all is well."""

    problems: tuple[str, ...] = ()
    looks: int = 0
    loop_lag_s: float = 0.0
    """Of the event loop, at the last look."""
    worst_loop_lag_s: float = 0.0


def engine_problem(stats: EngineStats, now: float, rules: WatchRules) -> str | None:
    """What is wrong with an engine, judged from one reading."""
    if not stats.alive:
        return f"the engine of {stats.model!r} is dead"
    idle_s = now - stats.last_progress
    if (stats.running or stats.waiting) and idle_s > rules.hang_s:
        return f"the engine of {stats.model!r} has not finished a step for {idle_s:.0f} s"
    return None


class Watchdog:
    """Use as a context manager, from a task of the loop that it is to watch."""

    def __init__(
        self, current: Callable[[], Engine | None], rules: WatchRules | None = None
    ) -> None:
        self._current = current
        self._rules = rules or WatchRules()
        self._findings = Findings()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat = _Heartbeat()

    def __enter__(self) -> Watchdog:
        self._loop = asyncio.get_running_loop()
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
        while not self._stop.wait(self._rules.period_s):
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        lag_s = self._beat(now)
        problems = [*self._engine_problems(now), *self._loop_problems(lag_s)]
        known = self._findings.problems
        for problem in problems:
            if problem.rpartition(" for ")[0] not in {old.rpartition(" for ")[0] for old in known}:
                logger.error("watchdog: %s", problem)
        if known and not problems:
            logger.warning("watchdog: all is well again")
        self._findings = Findings(
            problems=tuple(problems),
            looks=self._findings.looks + 1,
            loop_lag_s=lag_s,
            worst_loop_lag_s=max(lag_s, self._findings.worst_loop_lag_s),
        )

    def _engine_problems(self, now: float) -> list[str]:
        engine = self._current()
        if engine is None:
            return []
        stats = engine.stats()
        problem = engine_problem(stats, now, self._rules)
        after = self._current()
        # An engine that left while it was looked at is not a dead one.
        replaced = after is None or after.generation != stats.generation
        return [] if problem is None or replaced else [problem]

    def _loop_problems(self, lag_s: float) -> list[str]:
        if lag_s < self._rules.stall_s:
            return []
        return [f"the event loop has not answered for {lag_s:.0f} s"]

    def _beat(self, now: float) -> float:
        """Ask the loop for a sign of life; returns how late the last one is or was."""
        assert self._loop is not None
        lag_s = self._heartbeat.lag(now)
        if self._heartbeat.answered and not self._loop.is_closed():
            self._heartbeat = beat = _Heartbeat(asked=now, answered=False)
            self._loop.call_soon_threadsafe(beat.answer)
        return lag_s


@dataclass(slots=True)
class _Heartbeat:
    asked: float = 0.0
    answered: bool = True
    late_s: float = field(default=0.0)

    def answer(self) -> None:
        self.late_s = time.monotonic() - self.asked
        self.answered = True

    def lag(self, now: float) -> float:
        return self.late_s if self.answered else now - self.asked
