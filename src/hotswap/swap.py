"""Which model has the device, who may use it, and when it changes.

One task, `SwapController._own_device`, changes what is on the device, and it holds ``swap_lock``
for as long as it lives. Everybody else states a wish (a request in the queue, a load, an unload)
and waits for the verdict. A request is always in exactly one place: queued, holding a lease, or
gone.

    EMPTY -> LOADING(m) -> READY(m) -> DRAINING(m) -> LOADING(next) or EMPTY

The next model is prepared (disk to host memory: slow, may fail) while the resident one serves;
only then is the resident one drained and left. If the next one then fails to start, the one
before it is started again from its host copy.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import anyio
from anyio import create_task_group
from anyio.abc import TaskGroup

from hotswap import audit
from hotswap.audit import Cause, Change
from hotswap.config import SwapRules
from hotswap.contracts import (
    Engine,
    EngineRegistry,
    LoadReport,
    MemoryReport,
    ModelSpec,
    PreparedModel,
    Progress,
    SwapPhase,
    SwapSnapshot,
    Task,
    UnloadMode,
    UnloadReason,
    UnloadReport,
)
from hotswap.desk import Desk, LoadWish, Residency, Target, UnloadWish, Waiter, is_same_load
from hotswap.downloads import Downloads, Fetch
from hotswap.errors import (
    DeviceLost,
    EngineFailed,
    HotswapError,
    ModelLoadFailed,
    ModelLoading,
    ModelUnloaded,
    NotLoaded,
    Overloaded,
    ShuttingDown,
    SwapInProgress,
)
from hotswap.policy import Meter, successor

logger = logging.getLogger(__name__)

ABORT_GRACE_S = 5.0
"""How long aborted answers may take to leave before the engine is torn down under them."""

_A_LOADS_OWN = ("request", "uploaded")
"""Where settings come from that hold for one load only."""

_UNLOADED = "The model was unloaded."
_PUT_TO_SLEEP = (
    "The server was put to sleep (POST /sleep) before the model was ready; POST /wake_up wakes it."
)

CRASH_WINDOW_S = 60.0
CRASHES_TOLERATED = 3
"""In that time. After each the engine is built again; the next one leaves the server not ready."""

BY_HAND = Cause("operator", "asked for by hand")
_ON_ITS_WAY = Cause("request", "it is on its way, and any model will do")
_WORN_OUT = "the engine failed again and again"


@dataclass(frozen=True)
class _Next:
    """What should be on the device instead of what is there."""

    spec: ModelSpec
    leave_at: float


@dataclass(eq=False)
class _Load:
    """One model on its way to the device."""

    spec: ModelSpec
    meter: Meter
    cause: Cause
    left: str | None = None
    """The model that is there when it is begun."""
    prepared: PreparedModel | None = None
    fallback: PreparedModel | None = None
    """The model before it, to go back to if this one does not start."""
    restoring: bool = False
    """This one is what was gone back to."""
    timings: dict[str, float] = field(default_factory=dict)
    memory: MemoryReport | None = None
    """Around the teardown of the model before it."""
    wanted_at: float = math.inf
    """Since when somebody has waited for it."""
    silent_since: float = math.inf
    """When the model before it gave its last token; infinite: there is none before it."""
    was_parked: bool = False
    """Its weights were in host memory when it was begun."""
    after_failure: bool = False
    """It was there, and its engine failed."""
    _cancelled: bool = False

    def cancel(self) -> None:
        self._cancelled = True

    def is_cancelled(self) -> bool:
        return self._cancelled


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
        self.desk = Desk()
        self._registry = registry
        self._rules = rules
        self._downloads = Downloads(self.desk, fetch, self._download_failed)
        self._tasks: TaskGroup | None = None
        self._phase = SwapPhase.EMPTY
        self._residency: Residency | None = None
        self._load: _Load | None = None
        self._load_seconds: dict[tuple[str, bool], float] = {}
        """By model, and whether it was parked."""
        self._room: dict[str, tuple[ModelSpec, int]] = {}
        self._last_resident: str | None = None
        self._last_for: dict[Task, str] = {}
        self._unloaded_by_hand = False
        self._asleep: ModelSpec | None = None
        self._sleeps = 0
        """How often it was put to sleep."""
        self._closing = False
        self._crashes: list[float] = []
        self._worn_out = False
        self._lost: DeviceLost | None = None
        self._last_good: ModelSpec | None = None
        self._last_error: str | None = None
        self._timings: Mapping[str, float] = {}
        self._loads = self._swaps = self._rebuilds = 0
        self._restarts = restarts
        self._unloads = dict.fromkeys(UnloadReason, 0)
        # Of the stays that have ended; what the resident model has so far comes on top.
        self._past_tokens = 0
        self._past_seconds: Mapping[str, float] = {}
        self._leaked_bytes = 0
        self._last_memory: MemoryReport | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the device for as long as the block lasts."""
        async with create_task_group() as self._tasks:
            self._tasks.start_soon(self._own_device)
            try:
                yield
            finally:
                self.stop_admitting()

    def stop_admitting(self) -> None:
        """Refuse whoever waits or comes; running answers go on to their end."""
        self._closing = True
        self.desk.refuse(_anything, ShuttingDown("The server is shutting down."))

    def give_up(self, error: DeviceLost) -> None:
        """End the running answers and refuse everything else, now and from now on, with ``error``;
        what is on the device is left to itself. May be called again, for who came between."""
        stay = self._residency
        if self._load is not None:
            self._load.cancel()
        self._lose_device(error)
        if stay is not None:
            stay.engine.abort(error)

    def obey(self, rules: SwapRules) -> None:
        """Go by other rules from now on."""
        self._rules = rules
        self.desk.ring()

    # -- what is on the device, and what is coming

    @property
    def phase(self) -> SwapPhase:
        return self._phase

    @property
    def resident(self) -> ModelSpec | None:
        return self._residency.spec if self._residency else None

    @property
    def coming(self) -> ModelSpec | None:
        """The model that is being brought in, unless that has been called off."""
        load = self._load
        return None if load is None or load.is_cancelled() else load.spec

    @property
    def lost(self) -> DeviceLost | None:
        """Why nothing is served in this process any more; None while it is. From any thread."""
        stay = self._residency
        failure = None if stay is None else stay.engine.failure
        return failure if isinstance(failure, DeviceLost) else self._lost

    @property
    def last_good(self) -> ModelSpec | None:
        """The model that is on the device, or was until something went wrong, with its settings;
        None: the device is meant to be empty. From any thread."""
        return self._last_good

    @property
    def last_resident(self) -> str | None:
        """Id of the model that is or was the last one on the device."""
        return self._last_resident

    def last_for(self, task: Task) -> str | None:
        """The same of the models for a task."""
        return self._last_for.get(task)

    @property
    def asleep(self) -> ModelSpec | None:
        """The model that was put to sleep, until one is on the device again."""
        return self._asleep

    def is_resident(self, model: str) -> bool:
        return self._residency is not None and self._residency.spec.id == model

    def expected_load_s(self, model: str) -> float | None:
        """As long as reading and starting it took the last time, from where it is now, parked or
        not; None: it has not been loaded yet. What is only done once is left out, and so is all
        waiting for others: see `hotswap.policy.Meter`. As long as it has not come from the park,
        that is what starting it took: there is nothing to be read."""
        return self._load_seconds.get((model, self._is_parked(model)))

    def room(self) -> Mapping[str, tuple[ModelSpec, int]]:
        """By model: with which settings it was started last, and for how many tokens of prompt and
        answer together there was memory then; that may be fewer than it was to have."""
        return dict(self._room)

    def progress_of(self, model: str) -> Progress | None:
        """How far a model is that is being downloaded or loaded."""
        if self._load is not None and self._load.spec.id == model:
            return self._load.meter.reading(anyio.current_time())
        meter = self._downloads.meter(model)
        return meter.reading(anyio.current_time()) if meter is not None else None

    # -- requests

    @contextmanager
    def arriving(self, target: Target) -> Iterator[None]:
        """Have a request that was accepted seen while its prompt is read, which takes seconds where
        the engines are being imported. It has no claim yet: nothing is loaded for it.

        Raises:
            ModelUnloaded: on leaving; meanwhile everything that was wanted was called off.
        """
        sleeps = self._sleeps
        with self.desk.seen(target):
            if not self._has_come(target):
                self.desk.ring()
            yield
        if self._sleeps > sleeps:
            raise ModelUnloaded(_PUT_TO_SLEEP)

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
        own_s = keep_alive_s if self._rules.on_demand else None
        limit_s = self._idle_limit_s(stay.spec) if own_s is None else own_s
        self._limit_idleness(stay, limit_s)
        try:
            yield stay
        finally:
            self._limit_idleness(stay, limit_s)
            self._release(stay)

    def _limit_idleness(self, stay: Residency, limit_s: float | None) -> None:
        if not stay.leaves:
            stay.idle_limit_s = limit_s

    def _idle_limit_s(self, spec: ModelSpec) -> float | None:
        return self._rules.idle_timeout_s if spec.ttl_s is None else spec.ttl_s

    async def let_go(self, model: str) -> None:
        """Have a model leave once no lease of it is held, and wait for that if none is; nothing
        happens where it is not on the device, or is leaving for another one anyway."""
        stay = self._residency
        if stay is None or stay.spec.id != model:
            return
        stay.idle_limit_s, stay.leaves = 0.0, True
        self.desk.ring()
        await self.desk.until(
            lambda: self._residency is not stay or stay.leases > 0 or self._load is not None
        )

    def check_admittance(self, target: Target) -> None:
        """Raise now what such a request would be refused with anyway."""
        self.check_open()
        if self._unloaded_by_hand and not self._rules.on_demand:
            if self._asleep is not None:
                raise ModelUnloaded("The model was put to sleep; POST /wake_up wakes it.")
            raise ModelUnloaded("The model was unloaded; load it with POST /v1/load_model.")
        if self._waiting_before(target) >= self._rules.max_queue:
            raise Overloaded(f"The queue is full ({self._rules.max_queue} requests wait).")
        if not self._is_near(target):
            self.desk.failures.check(target.spec.id, anyio.current_time())

    def note_failure(self, spec: ModelSpec, error: HotswapError) -> None:
        """A model turned out to be unusable before anybody queued for it."""
        if not self.is_resident(spec.id):
            self.desk.failures.note(spec.id, error, anyio.current_time())

    def check_open(self) -> None:
        """Raises: ShuttingDown, DeviceLost: nothing is served or loaded any more."""
        if self._closing:
            raise ShuttingDown("The server is shutting down.")
        if self._lost is not None:
            raise DeviceLost(self._lost.message)

    def _waiting_before(self, target: Target) -> int:
        """Requests in front of a new one: in the engine if it would be let in at once."""
        stay = self._residency
        if stay is None or not self._is_open(stay):
            return len(self.desk.queue)
        return stay.engine.stats().waiting if target.takes(stay.spec) else len(self.desk.queue)

    def _is_near(self, target: Target) -> bool:
        """Whether the named model is on the device; or, where any will do, one that is also is
        while it is on its way."""
        if not target.is_any:
            return self.is_resident(target.spec.id)
        return any(spec is not None and target.takes(spec) for spec in (self.resident, self.coming))

    async def _wait_for(self, target: Target, cause: Cause) -> Residency:
        self.check_admittance(target)
        waiter = self.desk.join(target, cause)
        if not target.is_any or not self._is_near(target):
            self._begin_download(target.spec)
        self._admit()
        self.desk.ring()
        try:
            with anyio.move_on_after(self._rules.swap_timeout_s):
                return await waiter.verdict.wait()
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)
        self._keep_loading(waiter)
        name = "" if waiter.model is None else f" {waiter.model!r}"
        raise ModelLoading(f"The model{name} is still loading; try again.")

    def _keep_loading(self, waiter: Waiter) -> None:
        """The load that a request gave up waiting for goes on."""
        if not waiter.is_any:
            self.desk.keep_loading(waiter.spec, waiter.cause)
        elif self._residency is None:
            spec = self._load.spec if self._load is not None else waiter.spec
            self.desk.keep_loading(spec, waiter.cause)

    def _leave(self, waiter: Waiter) -> None:
        self.desk.leave(waiter)
        if waiter.verdict.granted is not None:
            self._release(waiter.verdict.granted)
        self.desk.ring()

    def _release(self, stay: Residency) -> None:
        stay.leases -= 1
        stay.idle_since = anyio.current_time()
        self.desk.ring()

    def _has_come(self, target: Target) -> bool:
        """Such a request would be let in at once."""
        stay = self._residency
        return stay is not None and self._is_open(stay) and target.takes(stay.spec)

    def _is_open(self, stay: Residency) -> bool:
        return self._phase is SwapPhase.READY and not self._must_leave(stay)

    def _admit(self) -> None:
        """Let in the requests, and grant the loads, that ask for what is on the device."""
        stay = self._residency
        if stay is not None and self._is_open(stay):
            self.desk.admit(stay)
            report = _load_report(stay.spec, None, 0.0, {}, already_loaded=True)
            self.desk.grant_loads(stay.spec, report)

    # -- operators

    async def load(self, spec: ModelSpec, cause: Cause = BY_HAND) -> LoadReport:
        """Put a model on the device, with just these settings, and wait for it. The load goes on
        if the caller leaves.

        Args:
            cause: For the log.

        Raises:
            ModelLoadFailed, InsufficientMemory, SwapInProgress, ModelUnloaded, ShuttingDown,
            DeviceLost
        """
        return await self.desk.await_load(self._wish_load(spec, cause))

    def begin_load(self, spec: ModelSpec) -> None:
        """Put a model on the device unless it is there, whatever its settings; do not wait."""
        if not (self.is_resident(spec.id) and self._phase is SwapPhase.READY):
            self._wish_load(spec, BY_HAND, shared=True)

    def _wish_load(self, spec: ModelSpec, cause: Cause, *, shared: bool = False) -> LoadWish:
        """``shared``: nobody waits for the verdict, so it may be somebody else's."""
        self.check_open()
        self._unloaded_by_hand = False
        wish = (self.desk.share_load if shared else self.desk.wish_load)(spec, cause)
        self._begin_download(wish.spec)
        self._admit()
        return wish

    async def sleep(self, mode: UnloadMode, *, park: bool) -> UnloadReport:
        """See `ModelService.sleep`."""
        load, resident = self._load, self.resident
        self._call_off_all_loads()
        if resident is None:
            self._unloaded_by_hand = True
            report = UnloadReport(model=None)
            if load is not None:
                report = await self._fall_asleep_on_the_way(load, park=park)
        else:
            told = "The model was put to sleep; POST /wake_up wakes it."
            report = await self.unload(None, None, mode, park=park, told=told)
            if resident.id == report.model:
                self._asleep = resident
        if not park:
            # What sleeps may have slept more lightly before, and what came has been on the device.
            for spec in (self._asleep, load.spec if load is not None else None):
                if spec is not None:
                    self._registry.forget(spec.id)
        elif report.model is not None and not report.parked:
            logger.warning(
                "%r was put to sleep and let go of, not kept in host memory (--park-memory says "
                "how much may be): waking it up reads its files",
                report.model,
            )
        self.desk.ring()
        return report

    def _call_off_all_loads(self) -> None:
        """Whatever is wanted by now will not come, nor the model before it come back."""
        if self._load is not None:
            self._load.cancel()
        self._sleeps += 1
        self.desk.refuse(_anything, ModelUnloaded(_PUT_TO_SLEEP))

    async def _fall_asleep_on_the_way(self, load: _Load, *, park: bool) -> UnloadReport:
        """What sleeps is the model that was there last, though it had left for another one."""
        if load.fallback is not None:
            self._asleep = load.fallback.spec
        elif self._asleep is None:
            self._asleep = load.spec
        sleeper = self._asleep.id
        load.fallback = None
        begun = anyio.current_time()
        await self.desk.until(lambda: self._load is not load)
        if self._phase is SwapPhase.FAILED:
            self.check_open()
        waited_s = anyio.current_time() - begun
        return UnloadReport(
            model=sleeper,
            shutdown_time_s=waited_s,
            total_time_s=waited_s,
            parked=park and self._is_parked(sleeper),
            called_off=load.spec.id,
        )

    async def unload(
        self,
        model: str | None,
        drain_timeout_s: float | None,
        mode: UnloadMode,
        *,
        park: bool,
        told: str = _UNLOADED,
    ) -> UnloadReport:
        """See `ModelService.unload`. ``told``: to those whose answers it ends."""
        if model is not None and not self.is_resident(model):
            return self._cancel_load(model)
        if self._residency is None and self._load is not None:
            return self._cancel_load(self._load.spec.id)
        await self.desk.until(lambda: self.desk.unload_wish is None)
        if self._residency is None:
            return UnloadReport(model=None)
        timeout = self._rules.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        wish = self.desk.unload_wish = UnloadWish(timeout, mode, park, told)
        error = ModelUnloaded("The model is being unloaded.")
        self.desk.refuse(_is(self._residency.spec.id), error)
        return await wish.verdict.wait()

    def _cancel_load(self, model: str) -> UnloadReport:
        coming = [self._load.spec.id] if self._load is not None else []
        if model not in (*coming, *self._downloads.models()):
            raise NotLoaded(f"The model {model!r} is not loaded.")
        if self._load is not None and self._load.spec.id == model:
            self._load.cancel()
        error = ModelUnloaded(f"Loading {model!r} was cancelled.")
        self.desk.refuse(self._waits_for(model), error)
        return UnloadReport(model=model, called_off=model)

    def _waits_for(self, model: str) -> Callable[[Waiter | LoadWish], bool]:
        """Who waits for a model that will not come: also those whom any would suit, where no
        other one is there, on its way, or comes back."""
        coming = self._load
        others = coming is not None and (coming.spec.id != model or coming.fallback is not None)
        alone = self._residency is None and not others
        return lambda one: one.spec.id == model and (alone or one.model is not None)

    # -- what everybody may see

    def snapshot(self) -> SwapSnapshot:
        """The state at this moment."""
        stay = self._residency
        reason = self._unserviceable_reason()
        engine = stay.engine.stats() if stay else None
        timings = self._shown_timings(stay)
        return SwapSnapshot(
            version=self.desk.version,
            phase=self._phase,
            resident=self.resident,
            progress=self._shown_progress(),
            waiting=self._waiting(),
            leases=stay.leases if stay else 0,
            parked=tuple(self._registry.parked()),
            failures=self.desk.failures.readings(),
            last_error=self._last_error,
            engine=engine,
            loads=self._loads,
            swaps=self._swaps,
            unloads_by_reason=dict(self._unloads),
            tokens=self._past_tokens + (engine.tokens if engine else 0),
            serviceable=reason is None,
            timings=timings,
            phase_seconds=_added(self._past_seconds, timings) if stay else self._past_seconds,
            memory=self._registry.memory,
            teardown_leaked_bytes=self._leaked_bytes,
            rebuilds=self._rebuilds,
            restarts=self._restarts,
            asleep=None if self._asleep is None else self._asleep.id,
            last_resident=self._last_resident,
            unserviceable_reason=reason,
            expires_in_s=stay.expires_in_s(anyio.current_time()) if stay else None,
        )

    def _waiting(self) -> dict[str, int]:
        """See `SwapSnapshot.waiting`."""
        arriving = (one.model for one in self.desk.arriving if not self._has_come(one))
        queued = (one.model for one in self.desk.queue)
        coming = self.coming
        loads = (
            wish.model
            for wish in self.desk.load_wishes
            if wish.is_awaited and (coming is None or not is_same_load(wish.spec, coming))
        )
        return dict(Counter(model or "current" for model in chain(arriving, queued, loads)))

    def _shown_timings(self, stay: Residency | None) -> dict[str, float]:
        """The first token comes when the load has been told already."""
        timings = dict(self._timings)
        first = stay.engine.stats().first_token if stay is not None else None
        if stay is not None and stay.awaited and first is not None:
            timings["first_token"] = max(0.0, first - stay.arrived)
        return timings

    def _shown_progress(self) -> Progress | None:
        coming = [self._load.spec.id] if self._load is not None else []
        return next(map(self.progress_of, (*coming, *self._downloads.models())), None)

    def _unserviceable_reason(self) -> str | None:
        if self._closing:
            return "the server is shutting down"
        if self._phase is SwapPhase.FAILED:
            return "the device is lost"
        if self._residency is not None:
            return "the engine failed" if self._residency.engine.failure is not None else None
        if self._worn_out:
            return _WORN_OUT
        return None if self._rules.on_demand else self._absence()

    def _absence(self) -> str | None:
        """Why the device is empty, where no request can change that."""
        if self._load is not None or self.desk.load_wishes:
            return "the model is loading"
        if self._unloaded_by_hand:
            return "the model was unloaded"
        cooling = self.desk.failures.cooling(self._last_resident, anyio.current_time())
        return "the model failed to load" if cooling else None

    # -- below: the owner of the device, the only task that changes what is on it

    async def _own_device(self) -> None:
        async with self.swap_lock:
            load: _Load | None = None
            try:
                while not self._closing:
                    load = await (self._first_load() if load is None else self._play(load))
            finally:
                self._load = None
                self._settle_unload(UnloadReport(model=None))
                self._set_phase(SwapPhase.CLOSED)

    async def _first_load(self) -> _Load | None:
        """Sleep with an empty device until a model is wanted, and prepare it."""
        if self._phase is SwapPhase.FAILED:
            self.desk.ring()
            await self.desk.until(lambda: self._closing)
            return None
        self._load = None
        self._settle_unload(UnloadReport(model=None))
        self._set_phase(SwapPhase.EMPTY)
        self._send_takers_of_any_home()
        await self.desk.until(lambda: self._closing or self._next() is not None)
        return None if self._closing else await self._prepare_next()

    def _send_takers_of_any_home(self) -> None:
        """Nothing is there and nothing on its way: those whom any model would suit now wait for
        the one that they would bring themselves, if that may be tried."""
        for waiter in self.desk.takers_of_any():
            try:
                self.desk.failures.check(waiter.spec.id, anyio.current_time())
                self._begin_download(waiter.spec)
            except HotswapError as error:
                self.desk.leave(waiter)
                waiter.verdict.refuse(error)

    async def _play(self, load: _Load) -> _Load | None:
        """Have a model on the device until another one is due; returns what comes next."""
        assert load.prepared is not None
        self._load = load
        self._set_phase(SwapPhase.LOADING)
        if load.is_cancelled() or self._lost is not None:
            self._tell(load, "called off")
            return self._back(load)
        begun = left = anyio.current_time()
        stay: Residency | None = None
        upcoming: _Load | None = None
        report = self.desk.report_to(load.meter)
        try:
            async with self._registry.start(load.prepared, report, self.desk.ring) as engine:
                warm_up = float(engine.stats().details.get("warm_up_s", 0.0))
                load.timings["start"] = anyio.current_time() - begun - warm_up
                load.timings["warm_up"] = warm_up
                if not load.is_cancelled():
                    stay = self._arrive(load, engine)
                    upcoming = await self._serve(stay)
                    self._set_phase(SwapPhase.DRAINING)  # who comes while it leaves must wait
                    left = anyio.current_time()
        except Exception as error:
            if stay is None and not isinstance(error, DeviceLost):
                self._load_failed(load, error)
                return self._back(load)
            # A model that cannot be taken off the device: nobody knows what is left there.
            self._lose_device(error)
            return None
        finally:
            if stay is not None:
                self._add_up(stay)
            self._add_up_leaks()
            self._residency = None
        if stay is None:
            self._tell(load, "called off")
            return self._back(load)
        return self._depart(stay, left, upcoming)

    def _add_up(self, stay: Residency) -> None:
        """Keep what a stay that ends has counted."""
        self._timings = self._shown_timings(stay)
        self._past_seconds = _added(self._past_seconds, self._timings)
        self._past_tokens += stay.engine.stats().tokens

    def _add_up_leaks(self) -> None:
        """Of each teardown once, that of a model which did not get as far as to serve too."""
        memory = self._registry.memory
        if memory is not None and memory is not self._last_memory:
            self._leaked_bytes += memory.leaked_bytes
        self._last_memory = memory

    def _back(self, load: _Load) -> _Load | None:
        """The load of the model before this one."""
        if load.fallback is None:
            return None
        spec = load.fallback.spec
        cause = Cause(load.cause.by, f"{load.spec.id!r} did not come")
        return _Load(
            spec,
            self._new_meter(spec),
            cause,
            prepared=load.fallback,
            restoring=True,
            was_parked=True,
        )

    def _arrive(self, load: _Load, engine: Engine) -> Residency:
        """The model is on the device: tell those who waited for it."""
        assert load.prepared is not None
        now = anyio.current_time()
        spec = load.prepared.spec
        limit_s = self._idle_limit_s(spec)
        stay = self._residency = Residency(load.prepared, engine, now, now, limit_s)
        self.desk.part_from(spec)
        stay.awaited = any(waiter.takes(spec) for waiter in self.desk.queue)
        seconds = now - load.meter.started
        usual_s = load.meter.spent_s(now) - load.timings["warm_up"]
        self._load_seconds[spec.id, load.was_parked] = usual_s
        self._load_seconds.setdefault((spec.id, True), load.timings["start"])
        if (tokens := engine.stats().details.get("max_model_len")) is not None:
            self._room[spec.id] = spec, int(tokens)
        previous = load.fallback.spec.id if load.fallback is not None else None
        self._loads += 1
        self._swaps += self._last_resident not in (None, spec.id)
        self._rebuilds += load.after_failure
        self._last_resident = self._last_for[spec.task] = spec.id
        self._last_good = spec
        self._asleep = None
        self._worn_out = False
        if load.silent_since < math.inf:
            load.timings["gap"] = now - max(load.silent_since, load.wanted_at)
        self._timings = load.timings
        load.fallback = None  # it is not needed any more, and its weights take host memory
        self._load = None
        self.desk.failures.forgive(spec.id)
        self._set_phase(SwapPhase.READY)
        report = _load_report(spec, previous, seconds, load.timings, memory=load.memory)
        self.desk.grant_loads(spec, report)
        if not self._rules.on_demand:
            error = ModelUnloaded(f"{spec.id!r} was loaded in place of this model.")
            for model in {waiter.model for waiter in self.desk.queue} - {spec.id, None}:
                self.desk.refuse(_is(model), error)
        self._tell(load, "restored" if load.restoring else "loaded")
        return stay

    async def _serve(self, stay: Residency) -> _Load | None:
        """Admit requests until the model has to go; its answers have ended when this returns.

        Returns:
            The load of the next model, prepared; None to leave the device empty.
        """
        while True:
            self._admit()
            await self.desk.until(
                lambda: self._must_leave(stay) or self._next() is not None,
                deadline=lambda: stay.idle_until,
            )
            if self._must_leave(stay):
                if await self._clear(stay):
                    return None
            elif self._next() is not None:
                load = await self._prepare_next()
                if load is not None and await self._make_way(stay, load):
                    return load
                del load  # and what was prepared with it: nobody waits for it any more
            else:
                return None

    def _must_leave(self, stay: Residency) -> bool:
        over = self._closing or self._lost is not None
        return over or self.desk.unload_wish is not None or stay.engine.failure is not None

    def _next(self) -> _Next | None:
        for wish in self.desk.load_wishes:
            if wish.spec.path is not None:
                return _Next(wish.spec, leave_at=-math.inf)
        stay = self._residency
        resident, leases = (stay.spec.id, stay.leases) if stay else (None, 0)
        waiting_for_any = [] if stay else self.desk.takers_of_any()
        coming = self.coming
        if coming is not None and any(one.takes(coming) for one in waiting_for_any):
            return _Next(coming, leave_at=-math.inf)  # what is on its way suits them
        local = [waiter for waiter in self.desk.queue if waiter.spec.path is not None]
        choice = successor(local, resident, leases, self._rules)
        if choice is not None:
            spec = next(waiter.spec for waiter in local if waiter.model == choice.model)
            return _Next(spec, choice.leave_at)
        own = [waiter.spec for waiter in waiting_for_any if waiter.spec.path is not None]
        return _Next(own[0], leave_at=-math.inf) if own else None

    def _is_wanted(self, load: _Load) -> bool:
        wanted = self._next()
        leaving = self._closing if self._residency is None else self._must_leave(self._residency)
        return (
            wanted is not None
            and is_same_load(wanted.spec, load.spec)
            and not leaving
            and not load.is_cancelled()
        )

    def _is_parked(self, model: str) -> bool:
        return any(parked.model == model for parked in self._registry.parked())

    async def _prepare_next(self) -> _Load | None:
        """Bring the next model to host memory, for as long as somebody wants it.

        Returns:
            None if nobody does any more, or if it failed and its waiters were told.
        """
        wanted = self._next()
        if wanted is None:
            return None
        meter = self._downloads.take_meter(wanted.spec.id) or self._new_meter(wanted.spec)
        begun = anyio.current_time()
        first = self.desk.first_for(wanted.spec)
        load = self._load = _Load(
            wanted.spec,
            meter,
            cause=_ON_ITS_WAY if first is None else first.cause,
            left=None if self._residency is None else self._residency.spec.id,
            wanted_at=begun if first is None else first.since,
        )
        load.timings["queued"] = begun - load.wanted_at
        load.was_parked = self._is_parked(wanted.spec.id)
        if self._residency is None:
            self._set_phase(SwapPhase.LOADING)
        prepare = partial(self._registry.prepare, load.spec, self.desk.report_to(meter))
        try:
            load.prepared = await self.desk.during(lambda: self._is_wanted(load), prepare)
        except Exception as error:
            self._load_failed(load, error)
        load.timings["prepare"] = anyio.current_time() - begun
        if load.prepared is None:
            self._load = None
            self.desk.ring()
            return None
        return load

    async def _make_way(self, stay: Residency, load: _Load) -> bool:
        """Drain the resident model for a prepared one. False: it stays after all."""
        prepared_at = anyio.current_time()
        await self.desk.until(
            lambda: not self._is_wanted(load) or anyio.current_time() >= self._leave_at(),
            deadline=self._leave_at,
        )
        load.timings["patience"] = anyio.current_time() - prepared_at
        if self._is_wanted(load):
            self._set_phase(SwapPhase.DRAINING)
            begun = anyio.current_time()
            in_time = await self.desk.until(
                lambda: stay.leases == 0 or not self._is_wanted(load),
                deadline=lambda: begun + self._rules.drain_timeout_s,
            )
            load.timings["drain"] = stay.drained_s = anyio.current_time() - begun
            if stay.leases == 0 and self._is_wanted(load):
                return True
            if not in_time:
                self._give_up_drain(stay, load.spec)
            self._set_phase(SwapPhase.READY)
        self._load = None
        self.desk.ring()
        return False

    def _leave_at(self) -> float:
        wanted = self._next()
        return wanted.leave_at if wanted is not None else math.inf

    def _give_up_drain(self, stay: Residency, spec: ModelSpec) -> None:
        limit = self._rules.drain_timeout_s
        error = SwapInProgress(
            f"{stay.spec.id!r} still had running answers after {limit:g} s; it goes on serving."
        )
        logger.warning("not swapping to %r: %s", spec.id, error)
        self.desk.refuse(_is(spec.id), error)

    async def _clear(self, stay: Residency) -> bool:
        """End the stay for an unload, a shutdown or a failed engine. False: it goes on, because
        an unload's drain time was too short."""
        self._set_phase(SwapPhase.DRAINING)
        begun = anyio.current_time()
        wish = None if self._closing else self.desk.unload_wish
        failed = stay.engine.failure is not None or self._lost is not None
        if not failed and (wish is None or wish.mode == "drain"):
            limit = self._rules.drain_timeout_s if wish is None else wish.drain_timeout_s
            await self.desk.until(
                lambda: not stay.leases or (wish is not None and self._closing),
                deadline=lambda: begun + limit,
            )
            if stay.leases and wish is not None:
                if not self._closing:
                    self._refuse_unload(stay, wish)
                self._set_phase(SwapPhase.READY)
                return False
        if stay.leases:
            await self._cut(stay)
        stay.drained_s = anyio.current_time() - begun
        return True

    async def _cut(self, stay: Residency) -> None:
        """End the answers that still run, with an error their clients can see."""
        wish = self.desk.unload_wish
        if stay.engine.failure is None and self._lost is None:
            stay.engine.abort(
                ShuttingDown("The server is shutting down.")
                if self._closing
                else ModelUnloaded(_UNLOADED if wish is None else wish.told)
            )
        deadline = anyio.current_time() + ABORT_GRACE_S
        if not await self.desk.until(lambda: not stay.leases, deadline=lambda: deadline):
            logger.warning("%d answers did not end in time", stay.leases)

    def _refuse_unload(self, stay: Residency, wish: UnloadWish) -> None:
        self.desk.unload_wish = None
        error = SwapInProgress(
            f"{stay.leases} answers of {stay.spec.id!r} were still running after "
            f"{wish.drain_timeout_s:g} s; it goes on serving."
        )
        wish.verdict.refuse(error)

    def _depart(self, stay: Residency, left: float, upcoming: _Load | None) -> _Load | None:
        """The model is off the device: tell those who asked for it to go; returns what comes
        next."""
        teardown_s = anyio.current_time() - left
        asked = self.desk.unload_wish is not None
        if self.desk.unload_wish is not None and not self.desk.unload_wish.park:
            self._registry.forget(stay.spec.id)
        report = UnloadReport(
            model=stay.spec.id,
            drain_time_s=stay.drained_s,
            shutdown_time_s=teardown_s,
            total_time_s=stay.drained_s + teardown_s,
            memory=self._registry.memory,
            parked=self._is_parked(stay.spec.id),
        )
        self._settle_unload(report)
        if upcoming is not None and not (asked and upcoming.is_cancelled()):
            upcoming.timings["teardown"] = teardown_s
            upcoming.memory = report.memory
            last = stay.engine.stats().last_token
            upcoming.silent_since = -math.inf if last is None else last
            upcoming.fallback = None if asked else stay.prepared
            return upcoming
        reason = self._unload_reason(stay, asked=asked)
        self._unloads[reason] += 1
        audit.tell(
            Change(
                cause=_why_it_left(reason, stay),
                left=stay.spec.id,
                came=None,
                result="unloaded",
                seconds={"drain": stay.drained_s, "teardown": teardown_s},
                memory=report.memory,
            )
        )
        self._unloaded_by_hand = asked and not self.desk.load_wishes
        if self._unloaded_by_hand and not self._rules.on_demand:
            self.desk.refuse(_anything, ModelUnloaded(_UNLOADED))
        failure = stay.engine.failure
        if isinstance(failure, DeviceLost):
            self._lose_device(failure)
        elif failure is not None and not asked:
            return self._rebuild(stay.prepared, failure)
        if self._lost is None:
            self._last_good = None
        return None

    def _unload_reason(self, stay: Residency, *, asked: bool) -> UnloadReason:
        if stay.engine.failure is not None or self._lost is not None:
            return UnloadReason.FAILURE
        if asked:
            return UnloadReason.REQUEST
        return UnloadReason.SHUTDOWN if self._closing else UnloadReason.IDLE

    def _settle_unload(self, report: UnloadReport) -> None:
        wish, self.desk.unload_wish = self.desk.unload_wish, None
        if wish is not None:
            wish.verdict.grant(report)
            self.desk.ring()

    def _rebuild(self, prepared: PreparedModel, failure: HotswapError) -> _Load | None:
        """An engine died under its requests: build it again, but not for ever."""
        cause = Cause("engine", failure.message)
        now = anyio.current_time()
        spec = prepared.spec
        self._last_error = failure.message
        recent = [crash for crash in self._crashes if now - crash < CRASH_WINDOW_S]
        self._crashes = [*recent, now]
        load = _Load(
            spec,
            self._new_meter(spec),
            cause,
            prepared=prepared,
            was_parked=True,
            after_failure=True,
        )
        if len(self._crashes) > CRASHES_TOLERATED:
            self._worn_out = True
            self._load_failed(load, EngineFailed(f"{_WORN_OUT.capitalize()}."))
            return None
        self._load = load
        wanted = self._next()
        if self._closing or (wanted is not None and not is_same_load(wanted.spec, spec)):
            return None
        return load

    def _begin_download(self, spec: ModelSpec) -> None:
        if spec.path is None:
            assert self._tasks is not None, "the controller is not running"
            self._downloads.begin(spec, self._new_meter(spec), self._tasks)

    def _download_failed(self, spec: ModelSpec, error: Exception) -> None:
        first = self.desk.first_for(spec)
        cause = _ON_ITS_WAY if first is None else first.cause
        self._load_failed(_Load(spec, self._new_meter(spec), cause), error)

    def _load_failed(self, load: _Load, error: Exception) -> None:
        """Tell those who waited for the model, and have later ones wait for its cooldown."""
        model = load.spec.id
        known = self._told(error, f"{model!r} could not be loaded: internal error.")
        self._tell(load, known.message, failed=not isinstance(known, ShuttingDown))
        waits = self._waits_for(model)
        self.desk.refuse(lambda one: waits(one) and is_same_load(one.spec, load.spec), known)
        staying = load.fallback.spec.id if load.fallback else None
        own = any(setting.source in _A_LOADS_OWN for setting in load.spec.applied.values())
        if own or self.is_resident(model) or staying == model:
            return  # only these settings failed: with those that a request gets it may well load
        now = anyio.current_time()
        self.desk.failures.note(model, known, now, restoring=load.restoring)

    def _lose_device(self, error: Exception) -> None:
        """Nothing can be loaded in this process any more."""
        known = self._told(error, "A model could not be taken off the device.")
        lost = known if isinstance(known, DeviceLost) else DeviceLost(known.message)
        if self._lost is None:
            logger.critical("the device is lost: %s", lost)
        wish, self.desk.unload_wish = self.desk.unload_wish, None
        if wish is not None:
            self._last_good = None
            wish.verdict.refuse(lost)
        self._load = None
        self._set_phase(SwapPhase.FAILED)
        self._lost = lost
        self.desk.refuse(_anything, lost)

    def _told(self, error: Exception, otherwise: str) -> HotswapError:
        """An error as clients may see it, without what it holds on to."""
        if not isinstance(error, HotswapError):
            logger.error("unexpected error", exc_info=error)
            error = ModelLoadFailed(otherwise)
        # The frames of a traceback hold tensors, that is, memory of the device.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._last_error = error.message
        return error

    def _new_meter(self, spec: ModelSpec) -> Meter:
        return Meter(
            spec.id,
            download=spec.path is None,
            started=anyio.current_time(),
            expected_s=self.expected_load_s(spec.id),
        )

    def _tell(self, load: _Load, result: str, *, failed: bool = False) -> None:
        audit.tell(
            Change(
                cause=load.cause,
                left=load.left,
                came=load.spec.id,
                result=result,
                failed=failed,
                seconds=load.timings,
                weights_bytes=load.spec.facts.weights_bytes,
                memory=load.memory,
            )
        )

    def _set_phase(self, phase: SwapPhase) -> None:
        if self._lost is None or phase is SwapPhase.CLOSED:  # there is no way back
            self._phase = phase
        self.desk.ring()


def _why_it_left(reason: UnloadReason, stay: Residency) -> Cause:
    match reason:
        case UnloadReason.REQUEST:
            return BY_HAND
        case UnloadReason.FAILURE:
            failure = stay.engine.failure
            return Cause("engine", "the device is lost" if failure is None else failure.message)
        case UnloadReason.SHUTDOWN:
            return Cause("shutdown", "the server stops")
        case UnloadReason.IDLE:
            return Cause("idle time", f"nobody has used it for {stay.idle_limit_s or 0.0:g} s")


def _is(model: str | None) -> Callable[[Waiter | LoadWish], bool]:
    return lambda one: one.model == model


def _anything(_: Waiter | LoadWish) -> bool:
    return True


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: one.get(key, 0.0) + other.get(key, 0.0) for key in {**one, **other}}


def _load_report(
    spec: ModelSpec,
    previous: str | None,
    load_time_s: float,
    timings: Mapping[str, float],
    *,
    memory: MemoryReport | None = None,
    already_loaded: bool = False,
) -> LoadReport:
    return LoadReport(
        model=spec.id,
        previous_model=previous,
        load_time_s=load_time_s,
        already_loaded=already_loaded,
        timings=dict(timings),
        memory=memory,
        config_applied={
            key: {"value": setting.value, "source": setting.source}
            for key, setting in spec.applied.items()
        },
    )
