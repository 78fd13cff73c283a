"""When the resident model changes, and for whom: pure functions of what waits and the time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from hotswap.config import SwapRules
from hotswap.contracts.progress import Progress
from hotswap.contracts.snapshot import LoadFailure
from hotswap.errors import HotswapError, ModelLoadFailed, ModelUnusable


class Waiting(Protocol):
    """A queued request."""

    @property
    def model(self) -> str | None:
        """None: it takes any, and so never is a reason to change."""

    @property
    def since(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Successor:
    """The model that should have the device next."""

    model: str
    leave_at: float
    """From then on the resident model takes no more requests, however busy it is."""


def successor(
    queue: Sequence[Waiting], resident: str | None, leases: int, rules: SwapRules
) -> Successor | None:
    """The model to bring in next; None: stay.

    Models are served in the order of their oldest waiter. A resident model that is idle is left
    at once; a busy one still takes requests for ``patience_s`` after that waiter came, which
    turns an alternating load into groups, but never for longer than ``max_wait_s``.
    """
    others = [
        (one.since, one.model) for one in queue if one.model is not None and one.model != resident
    ]
    if not others:
        return None
    since, model = min(others, key=itemgetter(0))
    patience_s = min(rules.patience_s, rules.max_wait_s) if leases else 0.0
    return Successor(model, since + patience_s)


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A model that failed to load is not tried again for a while, longer each time."""

    failures: int
    until: float

    @classmethod
    def after(
        cls, previous: Cooldown | None, now: float, *, first_s: float, longest_s: float
    ) -> Cooldown:
        failures = previous.failures + 1 if previous else 1
        # The exponent is bounded as well: 2.0 ** 1024 would overflow.
        pause = min(first_s * 2.0 ** min(failures - 1, 30), longest_s)
        return cls(failures, now + pause)


class FailureLedger:
    """Which models failed to load, why, and from when on they may be tried again."""

    def __init__(self, size: int = 256) -> None:
        self._size = size  # clients choose the names where requests may download
        self._entries: dict[str, tuple[Cooldown, HotswapError]] = {}

    def note(self, model: str, error: HotswapError, now: float, *, restoring: bool = False) -> None:
        """Several failures of one attempt count once: while the model cools down, no other one
        was allowed to begin. What is unusable, as each look at it tells anew, has no cooldown.

        Args:
            restoring: the model ran a moment ago, so it is tried again sooner.
        """
        if isinstance(error, ModelUnusable):
            return
        previous = self._entries.pop(model, None)
        cooldown = previous[0] if previous else None
        if cooldown is None or now >= cooldown.until:
            first_s, longest_s = (1.0, 60.0) if restoring else (10.0, 300.0)
            cooldown = Cooldown.after(cooldown, now, first_s=first_s, longest_s=longest_s)
        self._entries[model] = cooldown, error
        while len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]

    def forgive(self, model: str) -> None:
        self._entries.pop(model, None)

    def check(self, model: str, now: float) -> None:
        """Raises: the kind of error that was noted, while the model cools down; it says for how
        long that will be."""
        if model not in self._entries:
            return
        cooldown, error = self._entries[model]
        if now < cooldown.until:
            # The files may have been mended when the client tries again: not a final refusal.
            kind = ModelLoadFailed if isinstance(error, ModelLoadFailed) else type(error)
            left_s = cooldown.until - now
            raise kind(
                f"{model[:200]!r} failed to load and is not tried again before "
                f"{math.ceil(left_s)} s have passed, unless it is loaded by hand: {error.message}",
                retry_after_s=left_s,
            )

    def cooling(self, model: str | None, now: float) -> bool:
        return model in self._entries and now < self._entries[model][0].until

    def readings(self) -> dict[str, LoadFailure]:
        return {
            model: LoadFailure(
                model=model, message=error.message, code=error.code, retry_at=cooldown.until
            )
            for model, (cooldown, error) in self._entries.items()
        }


CRASH_WINDOW_S = 60.0
CRASHES_TOLERATED = 3
"""In that time. After each the engine is built again, but not after the next one."""


class Crashes:
    """How often engines have failed lately, and whether that was too often."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self.worn_out = False
        """The last engine that failed was not built again; nothing has worked since."""

    def note(self, now: float) -> None:
        recent = [crash for crash in self._times if now - crash < CRASH_WINDOW_S]
        self._times = [*recent, now]
        self.worn_out = len(self._times) > CRASHES_TOLERATED

    def recover(self) -> None:
        """An engine works, whichever; but those that failed are not forgotten."""
        self.worn_out = False


_LOCAL: Mapping[str, tuple[float, float]] = {
    "checking": (0.0, 0.05),
    "reading": (0.05, 0.8),
    "starting": (0.8, 1.0),
}
_DOWNLOADED: Mapping[str, tuple[float, float]] = {
    "downloading": (0.0, 0.8),
    "checking": (0.8, 0.82),
    "reading": (0.82, 0.95),
    "starting": (0.95, 1.0),
}


WAITING = "waiting"
"""The stage of a model that has been read while others' answers run: nobody knows how long."""


@dataclass(slots=True)
class Meter:
    """Turns the stages of one load into a single progress that never goes back, and measures what
    every load of the model takes: reading it and starting it. Not so its download, the imports and
    compilations that a process waits for once, and the time that a model before it needs to leave.
    """

    model: str
    download: bool
    started: float
    expected_s: float | None
    """How long reading and starting it should take; None: nobody knows."""
    stage: str = "queued"
    value: float = 0.0
    _spent_s: float = 0.0
    """On that, but for the stretch that is under way."""
    _since: float | None = None
    """When that one began; None: there is none."""
    _shares: Mapping[str, tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._shares = _DOWNLOADED if self.download else _LOCAL

    def advance(self, stage: str, done: float, now: float) -> bool:
        """Whether the change is worth telling: another stage or a whole per cent."""
        self._measure(now, goes_on=stage in ("reading", "starting") and done < 1.0)
        start, end = self._shares.get(stage, (self.value, self.value))
        value = max(self.value, start + (end - start) * min(max(done, 0.0), 1.0))
        told = stage != self.stage or int(value * 100) > int(self.value * 100)
        self.stage, self.value = stage, value
        return told

    def _measure(self, now: float, *, goes_on: bool) -> None:
        self._spent_s = self.spent_s(now)
        self._since = now if goes_on else None

    def spent_s(self, now: float) -> float:
        """On reading and starting the model so far."""
        return self._spent_s + (0.0 if self._since is None else now - self._since)

    def reading(self, now: float) -> Progress:
        expected_s = None if self.stage == WAITING else self.expected_s
        eta = None if expected_s is None else max(0.0, expected_s - self.spent_s(now))
        return Progress(model=self.model, stage=self.stage, value=self.value, eta_s=eta)
