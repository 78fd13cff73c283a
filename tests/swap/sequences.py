"""Random sequences of what may happen to a controller, and what holds after each step of them.

    python -m tests.swap.sequences [--count 10000] [--steps 50]

A part of it is one of the tests; this command is for the many. What goes wrong is printed as the
shortest sequence that hypothesis finds to bring it about.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Set
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hotswap.config import SwapRules
from hotswap.contracts.answers import Finished, TextDelta
from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.requests import GenerationRequest, TextPrompt
from hotswap.contracts.snapshot import SwapPhase
from hotswap.errors import (
    DeviceLost,
    DownloadFailed,
    EngineFailed,
    HotswapError,
    InsufficientMemory,
    ModelLoadFailed,
)
from hotswap.residency.admittance import Admittance
from hotswap.residency.desk import Desk, LoadWish, Target, Waiter
from hotswap.residency.downloads import Downloads, Fetch
from hotswap.residency.occupancy import Occupancy
from hotswap.residency.stay import Residency
from hotswap.scripted import (
    Script,
    ScriptedCatalog,
    ScriptedEngine,
    ScriptedModel,
    ScriptedRegistry,
)
from hotswap.service import SwapService
from hotswap.swap import SwapController
from tests.swap.house import House, counters, drawn, spec, text
from tests.swap.virtual import MOMENT_S, VirtualLoop

STEPS = 50
PORTION = 200
"""Sequences that hypothesis is asked for at a time. It remembers all of them until it has ended."""
RULES = SwapRules(
    on_demand=True, patience_s=1.0, max_wait_s=5.0, drain_timeout_s=30.0, swap_timeout_s=60.0,
    max_queue=12, idle_timeout_s=20.0,
)  # fmt: skip
TOKEN_S = 1.0
"""So that the longest answer takes longer than a drain may."""
HANGS_S = 10_000.0
"""A step that begins now takes so long."""
RECOVERED_S = 2 * HANGS_S
"""By then every cooldown has passed, and every step has ended."""

LOCAL, FETCHED, NAME = ("A", "B", "C"), "D", "tasks"
MODELS = (
    *map(spec, LOCAL),
    ModelSpec(id=FETCHED, path=None),
    ModelSpec(id=NAME, path=None, background=True),
)
models = st.sampled_from([*LOCAL, FETCHED])
names = st.sampled_from([*LOCAL, *LOCAL, FETCHED, "current", NAME])
lengths = st.sampled_from([1, 2, 2, 6, 40])
pauses = st.sampled_from([0.05, 0.3, 1.0, 1.6, 5.0, 10.1, 21.0, 31.0, 61.0, 301.0])
choices = st.integers(0, 999)


class Bug(Exception):
    """What nobody foresaw."""


FAULTS = (ModelLoadFailed("broken"), InsufficientMemory("too big"), Bug("a bug"))


class CheckedRegistry(ScriptedRegistry):
    """Each fault of its script happens once. Notes the starts that nobody needed."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.wanted: Callable[[], Set[str]] = frozenset
        """The models that somebody waits for; ``*`` is whichever comes."""
        self.is_resident: Callable[[str], bool] = bool
        self.needless: list[str] = []
        self._last: ScriptedEngine | None = None
        """That served, and has left; not one that was called off when it had just started."""
        self._wanted_at_leave: Set[str] = frozenset()

    async def prepare(self, spec: ModelSpec, report: Report) -> ScriptedModel:
        try:
            return await super().prepare(spec, report)
        except Exception:
            self.script.prepare_errors.pop(spec.id, None)
            raise

    @asynccontextmanager
    async def start(
        self, prepared: ScriptedModel, report: Report, changed: Callable[[], None]
    ) -> AsyncIterator[ScriptedEngine]:
        model = prepared.spec.id
        if not self._is_needed(model):
            self.needless.append(model)
        try:
            async with super().start(prepared, report, changed) as engine:
                try:
                    yield engine
                finally:
                    if self.is_resident(model):
                        self._last, self._wanted_at_leave = engine, self.wanted()
        except Exception:
            self.script.start_errors.pop(model, None)
            raise

    def _is_needed(self, model: str) -> bool:
        """Somebody waits for it, or did when the one before it began to leave. Else it comes back:
        its engine failed, or it had left for another one, which did not come."""
        if (self.wanted() | self._wanted_at_leave) & {model, "*"}:
            return True
        if self._last is None or self._last.model != model:
            return False
        return self._last.failure is not None or bool(self._wanted_at_leave)


_number: ContextVar[int] = ContextVar("number")
"""Of the request that a task makes."""


class CheckedAdmittance(Admittance):
    """Sees that those who wait for the same get it in the order in which they came."""

    def __init__(self, desk: Desk, occupancy: Occupancy, downloads: Downloads) -> None:
        super().__init__(desk, occupancy, downloads)
        self._last_let_in: dict[str, int] = {}

    @asynccontextmanager
    async def lease(
        self, target: Target, keep_alive_s: float | None = None, *, request_id: str = ""
    ) -> AsyncIterator[Residency]:
        async with super().lease(target, keep_alive_s, request_id=request_id) as stay:
            name, number = "*" if target.is_any else target.spec.id, _number.get()
            assert self._last_let_in.get(name, -1) < number, "in order"
            self._last_let_in[name] = number
            yield stay


class CheckedController(SwapController):
    def __init__(self, registry: EngineRegistry, fetch: Fetch, rules: SwapRules) -> None:
        super().__init__(registry, fetch, rules)
        self.admittance = CheckedAdmittance(self.desk, self.occupancy, self.downloads)


@dataclass(eq=False)
class Asked:
    """One request."""

    number: int
    model: str
    """As it was asked for."""
    tokens: int
    scope: anyio.CancelScope | None = None
    task: asyncio.Task[None] | None = None
    engine: ScriptedEngine | None = None
    """That answers it now."""
    ends: list[str] = field(default_factory=list)


class Sequences(RuleBasedStateMachine):
    happened: ClassVar[Counter[str]] = Counter()
    """In all sequences."""
    late: ClassVar[float] = 0.0
    """Steps after which a sequence may end before its time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.open: list[Asked] = []
        self.orders: list[asyncio.Task[None]] = []
        self.numbers = itertools.count()
        self.steps = 0
        self.closing = False
        self.is_sound = False
        """What holds has been looked at since the last step."""
        self.counted: dict[str, float] = {}
        self.unforeseen = _Unforeseen()
        self.owner = self.loop.create_task(self._own())
        self._go_on()

    async def _own(self) -> None:
        registry = CheckedRegistry(Script(prepare_s=1.5, start_s=0.3, stop_s=0.5, token_s=TOKEN_S))
        catalog = ScriptedCatalog(*MODELS, startup="B")
        controller = CheckedController(registry, catalog.fetch, RULES)
        service = SwapService(controller, registry, catalog)
        self.registry, self.catalog, self.controller = registry, catalog, controller
        self.house = House(registry, catalog, controller, service)
        self.close = asyncio.Event()
        registry.wanted, registry.is_resident = self._wanted, controller.occupancy.is_resident
        async with controller.running():
            await self.close.wait()

    @property
    def is_late(self) -> bool:
        return self.steps > self.late

    def _wanted(self) -> Set[str]:
        desk = self.controller.desk
        any_will_do = {"*"} if desk.takers_of_any() else set()
        return {spec.id for spec in desk.wanted()} | any_will_do

    # -- what may happen

    @rule(model=names, tokens=lengths)
    def request(self, model: str, tokens: int) -> None:
        self._request(model, tokens)
        self._go_on()

    @rule(asked=st.lists(st.tuples(names, lengths), min_size=2, max_size=4))
    def request_several(self, asked: list[tuple[str, int]]) -> None:
        """At the same moment."""
        for model, tokens in asked:
            self._request(model, tokens)
        self._go_on()

    @precondition(lambda self: bool(self.open))
    @rule(which=choices)
    def leave(self, which: int) -> None:
        self.loop.run_until_complete(_cancel(self._one(self.open, which)))
        self._go_on()

    @precondition(lambda self: bool(self._answered()))
    @rule(which=choices)
    def finish(self, which: int) -> None:
        """Time passes in which an answer would end."""
        self._go_on(self._one(self._answered(), which).tokens * TOKEN_S)

    @rule(seconds=pauses)
    def pass_time(self, seconds: float) -> None:
        self._go_on(seconds)

    @rule(order=st.sampled_from(["load", "unload", "sleep", "wake up"]), model=models, how=choices)
    def give_an_order(self, order: str, model: str, how: int) -> None:
        service = self.house.service
        mode: Any = ("drain", "abort")[how % 2]
        if order == "load":
            overrides = ({}, {"max_model_len": 1}, {"max_model_len": 2})[how % 3]
            self._order(service.load(model, overrides, "request"))
        elif order == "unload":
            named, seconds = (None, model)[how % 3 > 0], (None, 0.0, 2.0)[how // 6 % 3]
            self._order(service.unload(named, mode=mode, drain_timeout_s=seconds))
        elif order == "sleep":
            self._order(service.sleep(park=how % 4 > 1, mode=mode))
        else:
            self._order(service.wake_up())

    @rule(what=st.sampled_from([*FAULTS, *FAULTS, "the Hub", "hang", "memory"]), model=models)
    def prepare_trouble(self, what: Any, model: str) -> None:
        """Something will fail the next time; or the steps from the next one on do not end."""
        script = self.registry.script
        if what == "the Hub":
            self.catalog.fetch_errors[FETCHED] = DownloadFailed("the Hub is down")
        elif what == "hang":
            script.token_s = HANGS_S
        elif what == "memory":
            self._run_out_of_memory()
        else:
            errors = script.prepare_errors if self.steps % 2 else script.start_errors
            errors[model] = what

    def _run_out_of_memory(self) -> None:
        """It costs one of the answers."""
        engine: Any = self.registry.current
        if engine is None:
            return
        step = engine.step

        async def short() -> None:
            engine.step = step
            raise InsufficientMemory("no room for this answer")

        engine.step = short

    @rule()
    def end_trouble(self) -> None:
        """All works again; and what was fetched from the Hub is gone."""
        self._heal()
        self.catalog._specs[FETCHED] = MODELS[len(LOCAL)]

    def _heal(self) -> None:
        script = self.registry.script
        script.prepare_errors.clear()
        script.start_errors.clear()
        script.token_s = TOKEN_S
        self.catalog.fetch_errors.clear()

    @precondition(lambda self: self.registry.current is not None)
    @rule()
    def crash(self) -> None:
        assert self.registry.current is not None
        self.registry.current.fail(EngineFailed("a step raised"))
        self._go_on()

    @precondition(lambda self: self.is_late and self.registry.current is not None)
    @rule()
    def lose_the_device(self) -> None:
        assert self.registry.current is not None
        self.registry.current.fail(DeviceLost("gone"))
        self._go_on()

    @precondition(lambda self: self.is_late and not self.closing)
    @rule()
    def shut_down(self) -> None:
        self.closing = True
        self.close.set()
        self._go_on()

    # -- what holds after each step

    @invariant()
    def all_is_well(self) -> None:
        self.is_sound = False
        self.steps += 1
        self.loop.run_until_complete(self._look())
        self.is_sound = True

    async def _look(self) -> None:
        self.snapshot = self.controller.snapshot()
        self._what_has_ended_has_ended_in_one_way()
        self._at_most_one_engine_is_alive()
        self._leases_are_of_the_engine_that_lives()
        self._who_has_no_lease_is_in_the_queue()
        self._nobody_waits_for_longer_than_is_allowed()
        self._nobody_waits_for_nothing()
        self._the_snapshot_tells_what_is_there()
        self._no_counter_goes_back()
        assert not self.registry.needless, "no model is started that nobody needs"
        assert not self.unforeseen.errors

    def _what_has_ended_has_ended_in_one_way(self) -> None:
        for asked in self.open:
            assert asked.task is not None
            if asked.task.done():
                asked.task.result()
                self.happened.update(asked.ends)
            assert len(asked.ends) == asked.task.done()
        self.open = [asked for asked in self.open if not asked.ends]
        for order in self.orders:
            if order.done():
                order.result()
        self.orders = [order for order in self.orders if not order.done()]
        assert self.closing or not self.owner.done()

    def _at_most_one_engine_is_alive(self) -> None:
        alive = [engine for engine in self.registry.engines if engine.alive]
        assert len(alive) <= 1
        assert self.registry.current in (None, *alive)

    def _leases_are_of_the_engine_that_lives(self) -> None:
        answered, current = self._answered(), self.registry.current
        assert all(asked.engine is current for asked in answered)
        assert self.snapshot.leases == len(answered)
        assert sum(engine.running for engine in self.registry.engines) == len(answered)

    def _who_has_no_lease_is_in_the_queue(self) -> None:
        assert len(self.controller.desk.queue) + len(self._answered()) == len(self.open)

    def _nobody_waits_for_longer_than_is_allowed(self) -> None:
        now = anyio.current_time()
        for waiter in self.controller.desk.queue:
            assert now - waiter.since < RULES.swap_timeout_s + 1.0

    def _nobody_waits_for_nothing(self) -> None:
        desk, snapshot = self.controller.desk, self.snapshot
        waiting: list[Waiter | LoadWish] = [*desk.queue, *desk.load_wishes]
        if snapshot.phase in (SwapPhase.FAILED, SwapPhase.CLOSED):
            assert not waiting
        if snapshot.phase is SwapPhase.EMPTY:
            assert not [one for one in waiting if one.spec.path is not None]
        if snapshot.phase is SwapPhase.READY:
            assert snapshot.resident is not None
            assert not [one for one in desk.queue if one.takes(snapshot.resident)]
        downloads = {spec.id for spec in self.controller.downloads.models()}
        assert {one.spec.id for one in waiting if one.spec.path is None} <= downloads

    def _the_snapshot_tells_what_is_there(self) -> None:
        snapshot, current = self.snapshot, self.registry.current
        if snapshot.phase is SwapPhase.READY:
            assert current is not None
            assert snapshot.resident is not None
            assert current.model == snapshot.resident.id
            assert current.failure is None
        if snapshot.phase in (SwapPhase.EMPTY, SwapPhase.FAILED, SwapPhase.CLOSED):
            assert (current, snapshot.resident) == (None, None)

    def _no_counter_goes_back(self) -> None:
        now = counters(self.snapshot)
        assert all(now.get(name, -1.0) >= count for name, count in self.counted.items())
        self.counted = now

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self._end()
        finally:
            self.unforeseen.close()
            self.loop.run_until_complete(self._leave_nothing())
            self.loop.close()

    async def _leave_nothing(self) -> None:
        """Also of tasks that have failed: what they failed with is known by now."""
        tasks = [*(asked.task for asked in self.open if asked.task), *self.orders, self.owner]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self) -> None:
        """Nothing fails any more: whoever waits gets an answer, and in the end nothing is left."""
        self._heal()
        self._go_on(RECOVERED_S)
        self.all_is_well()
        assert not self.open
        assert not self.orders
        if not self.closing and self.controller.occupancy.phase is not SwapPhase.FAILED:
            for model in (*LOCAL, "current"):
                self.request(model, 2)
                self._go_on(10.0)
                assert self.open[-1].ends == ["finished"], "it serves again"
        self.closing = True
        self.close.set()
        self._go_on(RULES.drain_timeout_s)
        self.owner.result()
        self.all_is_well()
        snapshot = self.snapshot
        assert (snapshot.phase, snapshot.leases) == (SwapPhase.CLOSED, 0)
        assert not snapshot.waiting
        assert self.registry.current is None
        assert not [engine for engine in self.registry.engines if engine.alive or engine.running]
        assert snapshot.tokens == drawn(self.house)
        assert snapshot.loads <= len(self.registry.started)
        self.happened.update({"sequences": 1, "loads": snapshot.loads, "steps": self.steps})

    # -- below: how it is done

    def _go_on(self, seconds: float = MOMENT_S) -> None:
        self.loop.pass_time(seconds)

    def _answered(self) -> list[Asked]:
        return [asked for asked in self.open if asked.engine is not None]

    def _one(self, of: list[Asked], which: int) -> Asked:
        return of[which % len(of)]

    def _request(self, model: str, tokens: int) -> None:
        asked = Asked(next(self.numbers), model, tokens)
        asked.task = self.loop.create_task(self._ask(asked))
        self.open.append(asked)

    def _order(self, order: Coroutine[Any, Any, object]) -> None:
        async def obeyed() -> None:
            with suppress(HotswapError):  # a refusal is an answer too
                await order

        self.orders.append(self.loop.create_task(obeyed()))
        self._go_on()

    async def _ask(self, asked: Asked) -> None:
        _number.set(asked.number)
        with anyio.CancelScope() as asked.scope:
            try:
                asked.ends.append(await self._answer(asked))
            except HotswapError:
                asked.ends.append("failed" if asked.engine is not None else "refused")
            finally:
                asked.engine = None
        if asked.scope.cancelled_caught:
            asked.ends.append("left")

    async def _answer(self, asked: Asked) -> str:
        """Raises: HotswapError."""
        request = GenerationRequest(
            prompts=(TextPrompt("hello"),), model=asked.model, max_tokens=asked.tokens
        )
        said, finished = "", 0
        async with self.house.service.generate(request) as generation:
            asked.engine = self.registry.current
            assert asked.engine is not None
            assert asked.model in (generation.model, "current", NAME)
            async for events in generation:
                for event in events:
                    assert not finished
                    said += event.text if isinstance(event, TextDelta) else ""
                    finished += isinstance(event, Finished)
            assert said == text(asked.engine.model, asked.tokens)
        assert finished == 1
        return "finished"


async def _cancel(asked: Asked) -> None:
    assert asked.scope is not None
    asked.scope.cancel()


class _Unforeseen(logging.Handler):
    """Errors that the controller did not expect, and nobody put there."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []
        self._logger = logging.getLogger("hotswap.residency.faults")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, Bug):
            self.errors.append(error)

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()


def run(
    count: int, steps: int = STEPS, *, derandomize: bool = False, shrink: bool = True
) -> Counter[str]:
    """Play ``count`` sequences; what happened in them, counted.

    Args:
        shrink: look for the shortest sequence that fails, which may take minutes.

    Raises:
        AssertionError: something did not hold.
    """
    Sequences.happened.clear()
    Sequences.late = 0.8 * steps
    first = 0 if derandomize else random.getrandbits(32)
    for done in range(0, count, PORTION):
        how = settings(
            max_examples=min(PORTION, count - done),
            stateful_step_count=steps,
            database=None,
            deadline=None,
            print_blob=not derandomize,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        )
        run_state_machine_as_test(seed(first + done)(Sequences), settings=how)
        gc.collect()  # what it remembered lies in cycles, and is too young to be looked for
    return Counter(Sequences.happened)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    begun = time.monotonic()
    happened = run(arguments.count, arguments.steps)
    for what, times in happened.most_common():
        print(f"{times:>9,} {what}")
    print(f"in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
