"""Who may use the device: requests are let in, wait or are refused, and give their lease back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from hotswap.audit import Cause
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import HotswapError, ModelLoading, ModelUnloaded, Overloaded
from hotswap.residency.desk import PUT_TO_SLEEP, Desk, Target, Waiter
from hotswap.residency.downloads import Downloads
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.stay import Residency


class Admittance:
    """A request is always in exactly one place: queued, holding a lease, or gone. It waits for a
    verdict, and changes nothing on the device."""

    def __init__(self, desk: Desk, occupancy: Occupancy, downloads: Downloads) -> None:
        self._desk = desk
        self._occupancy = occupancy
        self._downloads = downloads

    @contextmanager
    def arriving(self, target: Target) -> Iterator[None]:
        """Have a request that was accepted seen while its prompt is read, which takes seconds where
        the engines are being imported. It has no claim yet: nothing is loaded for it.

        Raises:
            ModelUnloaded: on leaving; meanwhile everything that was wanted was called off.
        """
        sleeps = self._occupancy.sleeps
        with self._desk.seen(target):
            if not self._occupancy.has_come(target):
                self._desk.ring()
            yield
        if self._occupancy.sleeps > sleeps:
            raise ModelUnloaded(PUT_TO_SLEEP)

    @asynccontextmanager
    async def lease(
        self, target: Target, keep_alive_s: float | None = None, *, request_id: str = ""
    ) -> AsyncIterator[Residency]:
        """Wait until such a model is resident, and keep it so for as long as the block lasts.

        Args:
            keep_alive_s: How long it may stay, idle, from the end of the block on, whatever other
                requests said; negative: for ever; None: as its settings or else the server's have
                it. Where requests may not load models it means nothing.
            request_id: For the log.

        Raises:
            ModelLoadFailed, InsufficientMemory, ModelLoading, SwapInProgress, ModelUnloaded,
            Overloaded, ShuttingDown, DeviceLost
        """
        who = f"request {request_id}".rstrip()
        stay = await self._wait_for(target, Cause(who, "a request waits for it"))
        own_s = keep_alive_s if self._desk.rules.on_demand else None
        limit_s = self._desk.idle_limit_s(stay.spec) if own_s is None else own_s
        self._limit_idleness(stay, limit_s)
        try:
            yield stay
        finally:
            self._limit_idleness(stay, limit_s)
            self._release(stay)

    def _limit_idleness(self, stay: Residency, limit_s: float | None) -> None:
        if not stay.leaves:
            stay.idle_limit_s = limit_s

    async def let_go(self, model: str) -> None:
        """Have a model leave once no lease of it is held, and wait for that if none is; nothing
        happens where it is not on the device, or is leaving for another one anyway."""
        stay = self._occupancy.stay
        if stay is None or stay.spec.id != model:
            return
        stay.idle_limit_s, stay.leaves = 0.0, True
        self._desk.ring()
        await self._desk.until(
            lambda: (
                self._occupancy.stay is not stay
                or stay.leases > 0
                or self._occupancy.load is not None
            )
        )

    def check(self, target: Target) -> None:
        """Raise now what such a request would be refused with anyway."""
        occupancy, rules = self._occupancy, self._desk.rules
        occupancy.check_open()
        if occupancy.unloaded_by_hand and not rules.on_demand:
            if occupancy.asleep is not None:
                raise ModelUnloaded("The model was put to sleep; POST /wake_up wakes it.")
            raise ModelUnloaded("The model was unloaded; load it with POST /v1/load_model.")
        if occupancy.waiting_before(target) >= rules.max_queue:
            raise Overloaded(f"The queue is full ({rules.max_queue} requests wait).")
        if not occupancy.is_near(target):
            self._desk.check_cooldown(target.spec.id)

    def note_failure(self, spec: ModelSpec, error: HotswapError) -> None:
        """A model turned out to be unusable before anybody queued for it."""
        if not self._occupancy.is_resident(spec.id):
            self._desk.note_failure(spec.id, error)

    async def _wait_for(self, target: Target, cause: Cause) -> Residency:
        self.check(target)
        waiter = self._desk.join(target, cause)
        if not target.is_any or not self._occupancy.is_near(target):
            self._downloads.begin(target.spec)
        self._occupancy.admit()
        self._desk.ring()
        try:
            with anyio.move_on_after(self._desk.rules.swap_timeout_s):
                return await waiter.verdict.wait()
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)
        self._keep_loading(waiter)
        name = "" if waiter.model is None else f" {waiter.model!r}"
        raise ModelLoading(f"The model{name} {self._what_keeps_it()}; try again.")

    def _what_keeps_it(self) -> str:
        """Why a request has waited in vain, for a person to read."""
        stay = self._occupancy.stay
        if stay is not None and self._occupancy.phase is SwapPhase.DRAINING:
            return f"waits for {stay.spec.id!r} to end its answers"
        return "is still loading"

    def _keep_loading(self, waiter: Waiter) -> None:
        """The load that a request gave up waiting for goes on."""
        if not waiter.is_any:
            self._desk.keep_loading(waiter.spec, waiter.cause)
        elif self._occupancy.stay is None:
            load = self._occupancy.load
            self._desk.keep_loading(load.spec if load is not None else waiter.spec, waiter.cause)

    def _leave(self, waiter: Waiter) -> None:
        self._desk.leave(waiter)
        if waiter.verdict.granted is not None:
            self._release(waiter.verdict.granted)
        self._desk.ring()

    def _release(self, stay: Residency) -> None:
        stay.leases -= 1
        stay.idle_since = anyio.current_time()
        self._desk.ring()
