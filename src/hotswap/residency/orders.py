"""What operators order: that a model comes or goes, or that the device sleeps."""

from __future__ import annotations

import logging

import anyio

from hotswap.audit import BY_HAND, Cause
from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.reports import LoadReport, UnloadReport
from hotswap.contracts.service import UnloadMode
from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import ModelUnloaded, NotLoaded
from hotswap.residency.desk import (
    PUT_TO_SLEEP,
    UNLOADED,
    Desk,
    LoadWish,
    UnloadWish,
    anyone,
    is_for,
)
from hotswap.residency.downloads import Downloads
from hotswap.residency.history import History
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy

logger = logging.getLogger(__name__)


class Orders:
    """An order becomes a wish at the desk, and its verdict is awaited."""

    def __init__(
        self,
        desk: Desk,
        occupancy: Occupancy,
        downloads: Downloads,
        history: History,
        registry: EngineRegistry,
    ) -> None:
        self._desk = desk
        self._occupancy = occupancy
        self._downloads = downloads
        self._history = history
        self._registry = registry

    # -- that a model comes

    async def load(self, spec: ModelSpec, cause: Cause = BY_HAND) -> LoadReport:
        """Put a model on the device, with just these settings, and wait for it. The load goes on
        if the caller leaves.

        Args:
            cause: For the log.

        Raises:
            ModelLoadFailed, InsufficientMemory, SwapInProgress, ModelUnloaded, ShuttingDown,
            DeviceLost
        """
        return await self._desk.await_load(self._wish_load(spec, cause))

    def begin_load(self, spec: ModelSpec) -> None:
        """Put a model on the device unless it is there, whatever its settings; do not wait."""
        occupancy = self._occupancy
        if not (occupancy.is_resident(spec.id) and occupancy.phase is SwapPhase.READY):
            self._wish_load(spec, BY_HAND, shared=True)

    def _wish_load(self, spec: ModelSpec, cause: Cause, *, shared: bool = False) -> LoadWish:
        """``shared``: nobody waits for the verdict, so it may be somebody else's."""
        self._occupancy.check_open()
        self._occupancy.keep_empty(kept=False)
        wish = (self._desk.share_load if shared else self._desk.wish_load)(spec, cause)
        self._downloads.begin(wish.spec)
        self._occupancy.admit()
        return wish

    # -- that it goes

    async def unload(
        self,
        model: str | None,
        drain_timeout_s: float | None,
        mode: UnloadMode,
        *,
        park: bool,
        told: str = UNLOADED,
    ) -> UnloadReport:
        """See `ModelService.unload`. ``told``: to those whose answers it ends."""
        occupancy = self._occupancy
        if model is not None and not occupancy.is_resident(model):
            return self._cancel_load(model)
        if occupancy.stay is None and occupancy.load is not None:
            return self._cancel_load(occupancy.load.spec.id)
        await self._desk.until(lambda: self._desk.unload_wish is None)
        if occupancy.stay is None:
            return UnloadReport(model=None)
        timeout_s = self._desk.rules.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        wish = self._desk.unload_wish = UnloadWish(timeout_s, mode, park, told)
        error = ModelUnloaded("The model is being unloaded.")
        self._desk.refuse(is_for(occupancy.stay.spec.id), error)
        return await wish.verdict.wait()

    def _cancel_load(self, model: str) -> UnloadReport:
        load = self._occupancy.load
        coming = () if load is None else (load.spec,)
        if all(spec.id != model for spec in (*coming, *self._downloads.models())):
            raise NotLoaded(f"The model {model!r} is not loaded.")
        if load is not None and load.spec.id == model:
            load.cancel()
        error = ModelUnloaded(f"Loading {model!r} was cancelled.")
        self._desk.refuse(self._occupancy.waits_for(model), error)
        return UnloadReport(model=model, called_off=model)

    # -- that there is none

    async def sleep(self, mode: UnloadMode, *, park: bool) -> UnloadReport:
        """See `ModelService.sleep`."""
        occupancy = self._occupancy
        load, resident = occupancy.load, occupancy.resident
        self._call_off_all_loads()
        if resident is None:
            occupancy.keep_empty(kept=True)
            report = UnloadReport(model=None)
            if load is not None:
                report = await self._fall_asleep_on_the_way(load, park=park)
        else:
            told = "The model was put to sleep; POST /wake_up wakes it."
            report = await self.unload(None, None, mode, park=park, told=told)
            if resident.id == report.model:
                occupancy.fall_asleep(resident)
        if not park:
            # What sleeps may have slept more lightly before, and what came has been on the device.
            for spec in (occupancy.asleep, load.spec if load is not None else None):
                if spec is not None:
                    self._registry.forget(spec.id)
        elif report.model is not None and not report.parked:
            logger.warning(
                "%r was put to sleep and let go of, not kept in host memory (--park-memory says "
                "how much may be): waking it up reads its files",
                report.model,
            )
        self._desk.ring()
        return report

    def _call_off_all_loads(self) -> None:
        """Whatever is wanted by now will not come, nor the model before it come back."""
        self._occupancy.call_off()
        self._desk.refuse(anyone, ModelUnloaded(PUT_TO_SLEEP))

    async def _fall_asleep_on_the_way(self, load: Load, *, park: bool) -> UnloadReport:
        """What sleeps is the model that was there last, though it had left for another one."""
        occupancy = self._occupancy
        before = occupancy.asleep if load.fallback is None else load.fallback.spec
        sleeper = before or load.spec
        occupancy.fall_asleep(sleeper)
        load.fallback = None
        begun = anyio.current_time()
        await self._desk.until(lambda: occupancy.load is not load)
        if occupancy.phase is SwapPhase.FAILED:
            occupancy.check_open()
        waited_s = anyio.current_time() - begun
        return UnloadReport(
            model=sleeper.id,
            shutdown_time_s=waited_s,
            total_time_s=waited_s,
            parked=park and self._history.is_parked(sleeper.id),
            called_off=load.spec.id,
        )
