"""Which model has the device, and when it changes.

One task, `SwapController._own_device`, changes what is on the device, and it holds ``swap_lock``
for as long as it lives. Everybody else states a wish (a request in the queue, a load, an unload)
and waits for the verdict.

    EMPTY -> LOADING(m) -> READY(m) -> DRAINING(m) -> LOADING(next) or EMPTY

The next model is prepared (disk to host memory: slow, may fail) while the resident one serves;
only then is the resident one drained and left. If the next one then fails to start, the one
before it is started again from its host copy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf

import anyio
from anyio import create_task_group

from hotswap.audit import Cause
from hotswap.config import SwapRules
from hotswap.contracts.engines import Engine, EngineRegistry, PreparedModel
from hotswap.contracts.reports import UnloadReport
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot, UnloadReason
from hotswap.errors import (
    DeviceLost,
    EngineFailed,
    HotswapError,
    ModelUnloaded,
    ShuttingDown,
)
from hotswap.policy import Crashes
from hotswap.residency.admittance import Admittance
from hotswap.residency.desk import UNLOADED, Desk, anyone, is_for, is_same_load
from hotswap.residency.downloads import Downloads, Fetch
from hotswap.residency.drain import Drain
from hotswap.residency.faults import Faults
from hotswap.residency.history import History
from hotswap.residency.load import Load
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.orders import Orders
from hotswap.residency.overview import WORN_OUT, Overview
from hotswap.residency.stay import Residency
from hotswap.residency.succession import Succession
from hotswap.residency.totals import Totals


class SwapController:
    """The owner of the device.

    Use it inside ``async with controller.running():``. Leaving that block drains the running
    answers, unloads the model and ends the owner task.
    """

    def __init__(
        self, registry: EngineRegistry, fetch: Fetch, rules: SwapRules, *, restarts: int = 0
    ) -> None:
        """
        Args:
            restarts: How often this process has begun again after a fault.
        """
        self.swap_lock = anyio.Lock()
        self.desk = Desk(rules)
        self.occupancy = Occupancy(self.desk)
        self.history = History(registry)
        self._registry = registry
        self._totals = Totals()
        self._crashes = Crashes()
        self._faults = Faults(self.desk, self.occupancy, self.history)
        self._succession = Succession(self.desk, self.occupancy)
        self._drain = Drain(self.desk, self.occupancy, self._succession)
        self.downloads = Downloads(self.desk, self.history, fetch, self._faults.download_failed)
        self.admittance = Admittance(self.desk, self.occupancy, self.downloads)
        self.orders = Orders(self.desk, self.occupancy, self.downloads, self.history, registry)
        self.overview = Overview(
            desk=self.desk,
            occupancy=self.occupancy,
            downloads=self.downloads,
            history=self.history,
            totals=self._totals,
            crashes=self._crashes,
            registry=registry,
            restarts=restarts,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the device for as long as the block lasts."""
        async with create_task_group() as tasks:
            self.downloads.run_in(tasks)
            tasks.start_soon(self._own_device)
            try:
                yield
            finally:
                self.stop_admitting()

    def stop_admitting(self) -> None:
        """Refuse whoever waits or comes; running answers go on to their end."""
        self.occupancy.close()
        self.desk.refuse(anyone, ShuttingDown("The server is shutting down."))

    def give_up(self, error: DeviceLost) -> None:
        """End the running answers and refuse everything else, now and from now on, with ``error``;
        what is on the device is left to itself. May be called again, for who came between."""
        stay = self.occupancy.stay
        if self.occupancy.load is not None:
            self.occupancy.load.cancel()
        self._faults.lose_device(error)
        if stay is not None:
            stay.engine.abort(error)

    def obey(self, rules: SwapRules) -> None:
        """Go by other rules from now on."""
        self.desk.rules = rules
        self.desk.ring()

    def snapshot(self) -> SwapSnapshot:
        """The state at this moment."""
        return self.overview.snapshot()

    @property
    def lost(self) -> DeviceLost | None:
        """Why nothing is served in this process any more; None while it is. From any thread."""
        stay = self.occupancy.stay
        failure = None if stay is None else stay.engine.failure
        return failure if isinstance(failure, DeviceLost) else self.occupancy.lost

    # -- below: the owner of the device, the only task that changes what is on it

    async def _own_device(self) -> None:
        async with self.swap_lock:
            load: Load | None = None
            try:
                while not self.occupancy.closing:
                    load = await (self._first_load() if load is None else self._play(load))
            finally:
                self.occupancy.drop_load()
                self._settle_unload(UnloadReport(model=None))
                self.occupancy.enter(SwapPhase.CLOSED)

    async def _first_load(self) -> Load | None:
        """Sleep with an empty device until a model is wanted, and prepare it."""
        occupancy = self.occupancy
        if occupancy.phase is SwapPhase.FAILED:
            self.desk.ring()
            await self.desk.until(lambda: occupancy.closing)
            return None
        occupancy.drop_load()
        self._settle_unload(UnloadReport(model=None))
        occupancy.enter(SwapPhase.EMPTY)
        self._send_takers_of_any_home()
        await self.desk.until(lambda: occupancy.closing or self._succession.next() is not None)
        return None if occupancy.closing else await self._prepare_next()

    def _send_takers_of_any_home(self) -> None:
        """Nothing is there and nothing on its way: those whom any model would suit now wait for
        the one that they would bring themselves, if that may be tried."""
        for waiter in self.desk.takers_of_any():
            try:
                self.desk.check_cooldown(waiter.spec.id)
                self.downloads.begin(waiter.spec)
            except HotswapError as error:
                self.desk.leave(waiter)
                waiter.verdict.refuse(error)

    async def _prepare_next(self) -> Load | None:
        """Bring the next model to host memory, for as long as somebody wants it.

        Returns:
            None if nobody does any more, or if it failed and its waiters were told.
        """
        wanted = self._succession.next()
        if wanted is None:
            return None
        resident = self.occupancy.resident
        begun = anyio.current_time()
        first = self.desk.first_for(wanted.spec)
        load = Load(
            wanted.spec,
            self.downloads.take_meter(wanted.spec.id) or self.history.meter(wanted.spec),
            cause=self.desk.cause_of(wanted.spec),
            left=None if resident is None else resident.id,
            wanted_at=begun if first is None else first.since,
            was_parked=self.history.is_parked(wanted.spec.id),
        )
        load.timings["queued"] = begun - load.wanted_at
        self.occupancy.expect(load)
        if resident is None:
            self.occupancy.enter(SwapPhase.LOADING)
        prepare = partial(self._registry.prepare, load.spec, self.desk.report_to(load.meter))
        try:
            load.prepared = await self.desk.during(lambda: self._succession.is_due(load), prepare)
        except Exception as error:
            self._faults.load_failed(load, error)
        load.timings["prepare"] = anyio.current_time() - begun
        if load.prepared is None:
            self.occupancy.drop_load()
            return None
        return load

    async def _play(self, load: Load) -> Load | None:
        """Have a model on the device until another one is due; returns what comes next."""
        assert load.prepared is not None
        occupancy = self.occupancy
        occupancy.expect(load)
        occupancy.enter(SwapPhase.LOADING)
        if load.is_cancelled() or occupancy.lost is not None:
            load.tell("called off")
            return self._back(load)
        begun = left = anyio.current_time()
        stay: Residency | None = None
        upcoming: Load | None = None
        report = self.desk.report_to(load.meter)
        try:
            async with self._registry.start(load.prepared, report, self.desk.ring) as engine:
                warm_up = float(engine.stats().details.get("warm_up_s", 0.0))
                load.timings["start"] = anyio.current_time() - begun - warm_up
                load.timings["warm_up"] = warm_up
                if not load.is_cancelled():
                    stay = self._arrive(load, engine)
                    upcoming = await self._serve(stay)
                    occupancy.enter(SwapPhase.DRAINING)  # who comes while it leaves must wait
                    left = anyio.current_time()
        except Exception as error:
            if stay is None and not isinstance(error, DeviceLost):
                self._faults.load_failed(load, error)
                return self._back(load)
            # A model that cannot be taken off the device: nobody knows what is left there.
            self._faults.lose_device(error)
            return None
        finally:
            if stay is not None:
                self._totals.ended(stay)
            self._totals.torn_down(self._registry.memory)
            occupancy.leave()
        if stay is None:
            load.tell("called off")
            return self._back(load)
        return self._depart(stay, left, upcoming)

    def _back(self, load: Load) -> Load | None:
        """The load of the model before this one."""
        if load.fallback is None:
            return None
        spec = load.fallback.spec
        return Load(
            spec,
            self.history.meter(spec),
            Cause(load.cause.by, f"{load.spec.id!r} did not come"),
            prepared=load.fallback,
            restoring=True,
            was_parked=True,
        )

    def _arrive(self, load: Load, engine: Engine) -> Residency:
        """The model is on the device: tell those who waited for it."""
        assert load.prepared is not None
        now = anyio.current_time()
        spec = load.spec
        stay = Residency(load.prepared, engine, now, now, self.desk.idle_limit_s(spec))
        self.desk.part_from(spec)
        stay.awaited = any(waiter.takes(spec) for waiter in self.desk.queue)
        report = load.arrive(now)
        swapped = self.history.last_resident not in (None, spec.id)
        self._totals.loaded(load.timings, swapped=swapped, rebuilt=load.after_failure)
        room_tokens = engine.stats().details.get("max_model_len")
        self.history.note(
            spec,
            usual_s=load.meter.spent_s(now) - load.timings["warm_up"],
            start_s=load.timings["start"],
            was_parked=load.was_parked,
            room_tokens=room_tokens,
        )
        self._crashes.recover()
        self.desk.forgive(spec.id)
        self.occupancy.arrive(stay)
        self.desk.grant_loads(spec, report)
        if not self.desk.rules.on_demand:
            error = ModelUnloaded(f"{spec.id!r} was loaded in place of this model.")
            for model in {waiter.model for waiter in self.desk.queue} - {spec.id, None}:
                self.desk.refuse(is_for(model), error)
        load.tell("restored" if load.restoring else "loaded")
        return stay

    async def _serve(self, stay: Residency) -> Load | None:
        """Admit requests until the model has to go; its answers have ended when this returns.

        Returns:
            The load of the next model, prepared; None to leave the device empty.
        """
        must_leave, wanted = self.occupancy.must_leave, self._succession.next
        while True:
            self.occupancy.admit()
            await self.desk.until(
                lambda: must_leave(stay) or wanted() is not None,
                deadline=lambda: stay.idle_until,
            )
            if must_leave(stay):
                if await self._drain.for_none(stay):
                    return None
            elif wanted() is not None:
                load = await self._prepare_next()
                if load is not None:
                    if await self._drain.for_another(stay, load):
                        return load
                    self.occupancy.drop_load()
                del load  # and what was prepared with it: nobody waits for it any more
            else:
                return None

    def _depart(self, stay: Residency, left: float, upcoming: Load | None) -> Load | None:
        """The model is off the device: tell those who asked for it to go; returns what comes
        next."""
        teardown_s = anyio.current_time() - left
        wish, model = self.desk.unload_wish, stay.spec.id
        asked = wish is not None
        if wish is not None and not wish.park:
            self._registry.forget(model)
        parked = self.history.is_parked(model)
        report = stay.unload_report(teardown_s, self._registry.memory, parked=parked)
        self._settle_unload(report)
        if upcoming is not None and not (asked and upcoming.is_cancelled()):
            upcoming.timings["teardown"] = teardown_s
            upcoming.memory = report.memory
            last = stay.engine.stats().last_token
            upcoming.silent_since = -inf if last is None else last
            upcoming.fallback = None if asked else stay.prepared
            return upcoming
        reason = self._unload_reason(stay, asked=asked)
        self._totals.unloaded(reason)
        stay.tell_unloaded(reason, report)
        occupancy = self.occupancy
        occupancy.keep_empty(kept=asked and not self.desk.load_wishes)
        if occupancy.unloaded_by_hand and not self.desk.rules.on_demand:
            self.desk.refuse(anyone, ModelUnloaded(UNLOADED))
        failure = stay.engine.failure
        if isinstance(failure, DeviceLost):
            self._faults.lose_device(failure)
        elif failure is not None and not asked:
            return self._rebuild(stay.prepared, failure)
        if occupancy.lost is None:
            occupancy.mean_empty()
        return None

    def _unload_reason(self, stay: Residency, *, asked: bool) -> UnloadReason:
        if stay.engine.failure is not None or self.occupancy.lost is not None:
            return UnloadReason.FAILURE
        if asked:
            return UnloadReason.REQUEST
        return UnloadReason.SHUTDOWN if self.occupancy.closing else UnloadReason.IDLE

    def _settle_unload(self, report: UnloadReport) -> None:
        wish, self.desk.unload_wish = self.desk.unload_wish, None
        if wish is not None:
            wish.verdict.grant(report)
            self.desk.ring()

    def _rebuild(self, prepared: PreparedModel, failure: HotswapError) -> Load | None:
        """An engine died under its requests: build it again, but not for ever."""
        spec = prepared.spec
        self.occupancy.note_error(failure.message)
        self._crashes.note(anyio.current_time())
        load = Load(
            spec,
            self.history.meter(spec),
            Cause("engine", failure.message),
            prepared=prepared,
            was_parked=True,
            after_failure=True,
        )
        if self._crashes.worn_out:
            self._faults.load_failed(load, EngineFailed(f"{WORN_OUT.capitalize()}."))
            return None
        self.occupancy.expect(load)
        wanted = self._succession.next()
        if self.occupancy.closing or (wanted is not None and not is_same_load(wanted.spec, spec)):
            return None
        return load
