"""What everybody may see of the device and of what is wanted of it. Changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import anyio

from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.progress import Progress
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot
from hotswap.policy import Crashes
from hotswap.residency.desk import Desk, is_same_load
from hotswap.residency.downloads import Downloads
from hotswap.residency.history import History
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.totals import Totals

WORN_OUT = "the engine failed again and again"


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Made of the parts that know."""

    desk: Desk
    occupancy: Occupancy
    downloads: Downloads
    history: History
    totals: Totals
    crashes: Crashes
    registry: EngineRegistry
    restarts: int
    """How often this process has begun again after a fault."""

    def snapshot(self) -> SwapSnapshot:
        """The state at this moment."""
        occupancy, totals, stay = self.occupancy, self.totals, self.occupancy.stay
        reason = self._unserviceable_reason()
        engine = stay.engine.stats() if stay else None
        timings = totals.timings(stay)
        return SwapSnapshot(
            version=self.desk.version,
            phase=occupancy.phase,
            resident=occupancy.resident,
            progress=self._progress(),
            waiting=self._waiting(),
            leases=stay.leases if stay else 0,
            parked=tuple(self.registry.parked()),
            failures=self.desk.failures(),
            last_error=occupancy.last_error,
            engine=engine,
            loads=totals.loads,
            swaps=totals.swaps,
            unloads_by_reason=totals.unloads(),
            tokens=totals.tokens(engine.tokens if engine else 0),
            serviceable=reason is None,
            timings=timings,
            phase_seconds=totals.phase_seconds(timings if stay else {}),
            memory=self.registry.memory,
            teardown_leaked_bytes=totals.leaked_bytes,
            rebuilds=totals.rebuilds,
            restarts=self.restarts,
            asleep=None if occupancy.asleep is None else occupancy.asleep.id,
            last_resident=self.history.last_resident,
            unserviceable_reason=reason,
            expires_in_s=stay.expires_in_s(anyio.current_time()) if stay else None,
        )

    def progress_of(self, model: str) -> Progress | None:
        """How far a model is that is being downloaded or loaded."""
        load = self.occupancy.load
        if load is not None and load.spec.id == model:
            return load.meter.reading(anyio.current_time())
        meter = self.downloads.meter(model)
        return meter.reading(anyio.current_time()) if meter is not None else None

    def _progress(self) -> Progress | None:
        load = self.occupancy.load
        coming = () if load is None else (load.spec,)
        models = (spec.id for spec in (*coming, *self.downloads.models()))
        return next(map(self.progress_of, models), None)

    def _waiting(self) -> dict[str, int]:
        """See `SwapSnapshot.waiting`."""
        arriving = (one.model for one in self.desk.arriving if not self.occupancy.has_come(one))
        queued = (one.model for one in self.desk.queue)
        coming = self.occupancy.coming
        loads = (
            wish.model
            for wish in self.desk.load_wishes
            if wish.is_awaited and (coming is None or not is_same_load(wish.spec, coming))
        )
        return dict(Counter(model or "current" for model in chain(arriving, queued, loads)))

    def _unserviceable_reason(self) -> str | None:
        occupancy = self.occupancy
        if occupancy.closing:
            return "the server is shutting down"
        if occupancy.phase is SwapPhase.FAILED:
            return "the device is lost"
        if occupancy.stay is not None:
            return "the engine failed" if occupancy.stay.engine.failure is not None else None
        if self.crashes.worn_out:
            return WORN_OUT
        return None if self.desk.rules.on_demand else self._absence()

    def _absence(self) -> str | None:
        """Why the device is empty, where no request can change that."""
        if self.occupancy.load is not None or self.desk.load_wishes:
            return "the model is loading"
        if self.occupancy.unloaded_by_hand:
            return "the model was unloaded"
        is_cooling = self.desk.is_cooling(self.history.last_resident)
        return "the model failed to load" if is_cooling else None
