"""What is wanted of the device: the requests that queue for a model and the operators' wishes.

Everything here happens between two awaits, so nothing needs a lock; whoever waits, waits for a
condition (`Desk.until`), because an event that is set before anybody listens is lost.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
from anyio import CancelScope, Event, create_task_group

from hotswap.audit import Cause
from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import LoadReport, UnloadReport
from hotswap.contracts.service import UnloadMode
from hotswap.contracts.snapshot import LoadFailure
from hotswap.errors import HotswapError
from hotswap.policy import FailureLedger, Meter
from hotswap.residency.stay import Residency

T = TypeVar("T")

UNLOADED = "The model was unloaded."
PUT_TO_SLEEP = (
    "The server was put to sleep (POST /sleep) before the model was ready; POST /wake_up wakes it."
)
_ON_ITS_WAY = Cause("request", "it is on its way, and any model will do")


class Verdict(Generic[T]):
    """What somebody waits for: granted or refused, once."""

    def __init__(self) -> None:
        self._decided = Event()
        self._error: HotswapError | None = None
        self.granted: T | None = None

    def grant(self, result: T) -> None:
        self.granted = result
        self._decided.set()

    def refuse(self, error: HotswapError) -> None:
        # A copy for each: an exception that is raised in many tasks collects all their frames.
        self._error = copy.copy(error)
        self._decided.set()

    async def wait(self) -> T:
        """Raises: HotswapError, if it was refused."""
        if not self._decided.is_set():  # else it would let all other tasks go first
            await self._decided.wait()
        if self._error is not None:
            raise self._error
        assert self.granted is not None
        return self.granted


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """By whom a request wants to be answered: by one model, or by whichever is there. Each request
    has its own, and finds it again without a look at what all the others' specs hold."""

    spec: ModelSpec
    """Where any model will do: the one to bring if there is none."""
    is_any: bool = False
    """Any for the same task."""

    @property
    def model(self) -> str | None:
        """None: any will do."""
        return None if self.is_any else self.spec.id

    def takes(self, spec: ModelSpec) -> bool:
        return _takes(self.spec, spec, is_any=self.is_any)


@dataclass(eq=False)
class Waiter:
    """A request in the queue."""

    spec: ModelSpec
    since: float
    cause: Cause
    is_any: bool = False
    verdict: Verdict[Residency] = field(default_factory=Verdict)

    @property
    def model(self) -> str | None:
        """None: any will do."""
        return None if self.is_any else self.spec.id

    def takes(self, spec: ModelSpec) -> bool:
        return _takes(self.spec, spec, is_any=self.is_any)


@dataclass(eq=False)
class LoadWish:
    """An operator's load, or one that outlived the requests it was begun for."""

    spec: ModelSpec
    since: float
    cause: Cause
    is_awaited: bool = False
    """Somebody is there whom the verdict is told."""
    verdict: Verdict[LoadReport] = field(default_factory=Verdict)

    @property
    def model(self) -> str | None:
        return self.spec.id


@dataclass(eq=False)
class UnloadWish:
    drain_timeout_s: float
    mode: UnloadMode
    park: bool
    told: str
    """To those whose answers it ends."""
    verdict: Verdict[UnloadReport] = field(default_factory=Verdict)


class Desk:
    """The queue, the wishes, which loads failed, the rules that all of it goes by; and the bell
    that rings whenever any of it changed."""

    def __init__(self, rules: SwapRules) -> None:
        self.rules = rules
        self.arriving: list[Target] = []
        """Of requests that were accepted, and whose prompts are being read before they queue."""
        self.queue: list[Waiter] = []
        self.load_wishes: list[LoadWish] = []
        self.unload_wish: UnloadWish | None = None
        self._failures = FailureLedger()
        self.version = 0
        """Grows with each change."""
        self._bell = Event()

    # -- telling and waiting

    def ring(self) -> None:
        self.version += 1
        self._bell.set()

    async def until(
        self, condition: Callable[[], bool], deadline: Callable[[], float] = lambda: math.inf
    ) -> bool:
        """Wait until a condition on the state holds.

        Returns:
            False if the deadline, which may move meanwhile, passed first.
        """
        while not condition():
            if anyio.current_time() >= deadline():
                return False
            if self._bell.is_set():
                self._bell = Event()
            ends = deadline()
            if ends == math.inf:  # as most waits: without a scope, which costs as much as the wait
                await self._bell.wait()
            else:
                with CancelScope(deadline=ends):
                    await self._bell.wait()
        return True

    async def during(
        self, condition: Callable[[], bool], work: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Do ``work``; cancel it, and return None, when ``condition`` stops holding."""
        result: T | None = None
        failure: Exception | None = None
        async with create_task_group() as tasks:

            async def watch() -> None:
                await self.until(lambda: not condition())
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            try:
                result = await work()
            except Exception as error:  # raised below: a task group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    def report_to(self, meter: Meter) -> Report:
        def report(stage: str, done: float) -> None:
            if meter.advance(stage, done, anyio.current_time()):
                self.ring()

        return report

    def idle_limit_s(self, spec: ModelSpec) -> float | None:
        """How long a model may stay idle, unless a request has it otherwise; None: for ever."""
        return self.rules.idle_timeout_s if spec.ttl_s is None else spec.ttl_s

    # -- which loads failed

    def note_failure(self, model: str, error: HotswapError, *, restoring: bool = False) -> None:
        """See `FailureLedger.note`."""
        self._failures.note(model, error, anyio.current_time(), restoring=restoring)
        self.ring()

    def forgive(self, model: str) -> None:
        """It may be tried again at once."""
        self._failures.forgive(model)
        self.ring()

    def check_cooldown(self, model: str) -> None:
        """See `FailureLedger.check`."""
        self._failures.check(model, anyio.current_time())

    def is_cooling(self, model: str | None) -> bool:
        return self._failures.cooling(model, anyio.current_time())

    def failures(self) -> dict[str, LoadFailure]:
        """By model."""
        return self._failures.readings()

    # -- requests

    @contextmanager
    def seen(self, target: Target) -> Iterator[None]:
        """Have a request counted that does not queue yet."""
        self.arriving.append(target)
        try:
            yield
        finally:
            self.arriving.remove(target)
            self.ring()

    def join(self, target: Target, cause: Cause) -> Waiter:
        waiter = Waiter(target.spec, anyio.current_time(), cause, target.is_any)
        self.queue.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        if waiter in self.queue:
            self.queue.remove(waiter)

    def admit(self, stay: Residency) -> None:
        """Let in whoever waits for the resident model or for any, as one batch."""
        self.part_from(stay.spec)
        for waiter in [one for one in self.queue if one.takes(stay.spec)]:
            self.queue.remove(waiter)
            stay.leases += 1
            stay.leaves = False
            waiter.verdict.grant(stay)

    def part_from(self, resident: ModelSpec) -> None:
        """Whom any model would suit, but none for another task, now waits for his own."""
        for waiter in self.takers_of_any():
            waiter.is_any = waiter.takes(resident)

    def refuse(self, which: Callable[[Waiter | LoadWish], bool], error: HotswapError) -> None:
        """Send such waiters away, requests and operators alike."""
        for waiter in [waiter for waiter in self.queue if which(waiter)]:
            self.queue.remove(waiter)
            waiter.verdict.refuse(error)
        for wish in [wish for wish in self.load_wishes if which(wish)]:
            self.load_wishes.remove(wish)
            wish.verdict.refuse(error)
        self.ring()

    # -- operators

    def wish_load(self, spec: ModelSpec, cause: Cause) -> LoadWish:
        wish = LoadWish(spec, anyio.current_time(), cause)
        self.load_wishes.append(wish)
        self.ring()
        return wish

    def share_load(self, spec: ModelSpec, cause: Cause) -> LoadWish:
        """A wish that there is already, if it comes to the same, else a new one."""
        same = (wish for wish in self.load_wishes if is_same_load(wish.spec, spec))
        return next(same, None) or self.wish_load(spec, cause)

    async def await_load(self, wish: LoadWish) -> LoadReport:
        """Raises: HotswapError, if it was refused."""
        wish.is_awaited = True
        try:
            return await wish.verdict.wait()
        finally:
            wish.is_awaited = False
            self.ring()

    def grant_loads(self, spec: ModelSpec, report: LoadReport) -> None:
        for wish in [wish for wish in self.load_wishes if is_same_load(wish.spec, spec)]:
            self.load_wishes.remove(wish)
            wish.verdict.grant(report)

    def keep_loading(self, spec: ModelSpec, cause: Cause) -> None:
        """A load that a request gave up waiting for goes on, so that a retry finds it done: with
        whatever settings the model comes."""
        if all(wish.spec.id != spec.id for wish in self.load_wishes):
            self.wish_load(spec, cause)

    # -- what models are wanted

    def takers_of_any(self) -> list[Waiter]:
        """Who would be answered by any model, the oldest first."""
        return [waiter for waiter in self.queue if waiter.is_any]

    def wanted(self) -> list[ModelSpec]:
        return [*(one.spec for one in self.queue), *(one.spec for one in self.load_wishes)]

    def first_for(self, spec: ModelSpec) -> Waiter | LoadWish | None:
        """Who has waited longest for just this load."""
        waiting: list[Waiter | LoadWish] = [*self.queue, *self.load_wishes]
        same = (one for one in waiting if is_same_load(one.spec, spec))
        return min(same, key=lambda one: one.since, default=None)

    def cause_of(self, spec: ModelSpec) -> Cause:
        """Why such a load is wanted."""
        first = self.first_for(spec)
        return _ON_ITS_WAY if first is None else first.cause

    def awaits(self, spec: ModelSpec) -> bool:
        """Whether anybody waits for just this model, with just these settings."""
        return spec in self.wanted()

    def adopt(self, spec: ModelSpec, local: ModelSpec) -> None:
        """What waited for ``spec`` now waits for what was downloaded."""
        for waiter in self.queue:
            waiter.spec = local if waiter.spec == spec else waiter.spec
        for wish in self.load_wishes:
            wish.spec = local if wish.spec == spec else wish.spec
        self.ring()


def is_for(model: str | None) -> Callable[[Waiter | LoadWish], bool]:
    return lambda one: one.model == model


def anyone(_: Waiter | LoadWish) -> bool:
    return True


def _takes(own: ModelSpec, spec: ModelSpec, *, is_any: bool) -> bool:
    return spec.id == own.id or (is_any and spec.task == own.task)


def is_same_load(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether loading the one makes loading the other needless. Where its settings came from,
    its other names and the age of its files do not matter."""
    return (one.id, one.path, one.engine, one.sampling, one.ttl_s) == (
        *(other.id, other.path, other.engine, other.sampling, other.ttl_s),
    )
