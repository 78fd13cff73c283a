"""How the answers of a model that has to leave come to their end: awaited for as long as the rules
allow, then cut or left alone."""

from __future__ import annotations

import logging

import anyio

from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import ModelUnloaded, ShuttingDown, SwapInProgress
from hotswap.policy import WAITING
from hotswap.residency.desk import UNLOADED, Desk, UnloadWish, is_for
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.stay import Residency
from hotswap.residency.succession import Succession

logger = logging.getLogger(__name__)

ABORT_GRACE_S = 5.0
"""How long aborted answers may take to leave before the engine is torn down under them."""


class Drain:
    """Awaited by the owner of the device, for one stay after the other."""

    def __init__(self, desk: Desk, occupancy: Occupancy, succession: Succession) -> None:
        self._desk = desk
        self._occupancy = occupancy
        self._succession = succession

    async def for_another(self, stay: Residency, load: Load) -> bool:
        """Drain the resident model for a prepared one. False: it stays after all."""
        prepared_at = anyio.current_time()
        if stay.leases:
            load.meter.advance(WAITING, 0.0, prepared_at)
            self._desk.ring()
        await self._desk.until(
            lambda: (
                not self._succession.is_due(load)
                or anyio.current_time() >= self._succession.leave_at()
            ),
            deadline=self._succession.leave_at,
        )
        load.timings["patience"] = anyio.current_time() - prepared_at
        if not self._succession.is_due(load):
            return False
        self._occupancy.enter(SwapPhase.DRAINING)
        begun = anyio.current_time()
        in_time = await self._desk.until(
            lambda: stay.leases == 0 or not self._succession.is_due(load),
            deadline=lambda: begun + self._desk.rules.drain_timeout_s,
        )
        load.timings["drain"] = stay.drained_s = anyio.current_time() - begun
        if stay.leases == 0 and self._succession.is_due(load):
            return True
        if not in_time:
            self._refuse_others(stay, load)
        self._occupancy.enter(SwapPhase.READY)
        return False

    async def for_none(self, stay: Residency) -> bool:
        """End the stay for an unload, a shutdown or a failed engine. False: it goes on, because
        an unload's drain time was too short."""
        occupancy = self._occupancy
        occupancy.enter(SwapPhase.DRAINING)
        begun = anyio.current_time()
        wish = None if occupancy.closing else self._desk.unload_wish
        failed = stay.engine.failure is not None or occupancy.lost is not None
        if not failed and (wish is None or wish.mode == "drain"):
            limit = self._desk.rules.drain_timeout_s if wish is None else wish.drain_timeout_s
            await self._desk.until(
                lambda: not stay.leases or (wish is not None and occupancy.closing),
                deadline=lambda: begun + limit,
            )
            if stay.leases and wish is not None:
                if not occupancy.closing:
                    self._refuse_unload(stay, wish)
                occupancy.enter(SwapPhase.READY)
                return False
        if stay.leases:
            await self._cut(stay)
        stay.drained_s = anyio.current_time() - begun
        return True

    def _refuse_others(self, stay: Residency, load: Load) -> None:
        limit = self._desk.rules.drain_timeout_s
        error = SwapInProgress(
            f"{stay.spec.id!r} still had running answers after {limit:g} s; it goes on serving."
        )
        logger.warning("not swapping to %r: %s", load.spec.id, error)
        self._desk.refuse(is_for(load.spec.id), error)

    def _refuse_unload(self, stay: Residency, wish: UnloadWish) -> None:
        self._desk.unload_wish = None
        error = SwapInProgress(
            f"{stay.leases} answers of {stay.spec.id!r} were still running after "
            f"{wish.drain_timeout_s:g} s; it goes on serving."
        )
        wish.verdict.refuse(error)

    async def _cut(self, stay: Residency) -> None:
        """End the answers that still run, with an error their clients can see."""
        wish = self._desk.unload_wish
        if stay.engine.failure is None and self._occupancy.lost is None:
            stay.engine.abort(
                ShuttingDown("The server is shutting down.")
                if self._occupancy.closing
                else ModelUnloaded(UNLOADED if wish is None else wish.told)
            )
        deadline = anyio.current_time() + ABORT_GRACE_S
        if not await self._desk.until(lambda: not stay.leases, deadline=lambda: deadline):
            logger.warning("%d answers did not end in time", stay.leases)
