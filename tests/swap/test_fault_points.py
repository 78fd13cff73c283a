"""Something goes wrong at one named point after the other, and what must hold afterwards.

The points lie where the controller calls other floors, before and after each thing that these do.
They exist in the tests' engine floor only; `tests.engine.test_fault_points` is about the real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.requests import GenerationRequest
from hotswap.errors import (
    CheckpointRefused,
    DeviceLost,
    DownloadFailed,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelUnloaded,
    SwapInProgress,
)
from hotswap.policy import CRASHES_TOLERATED
from hotswap.scripted import (
    Script,
    ScriptedCatalog,
    ScriptedEngine,
    ScriptedModel,
    ScriptedPrompt,
    ScriptedRegistry,
)
from tests.swap.house import Answer, House, play, spec, text

RULES = SwapRules(on_demand=True, patience_s=0.0, drain_timeout_s=20.0, swap_timeout_s=100.0)
MODELS = (spec("A"), spec("B"), ModelSpec(id="D", path=None))
RECOVERED_S = 400.0
"""By then every cooldown has passed."""


class Bug(Exception):
    """What nobody foresaw."""


HANG = TimeoutError("until it is cancelled")


class Points:
    """Named points; what is to happen there happens once."""

    def __init__(self, faults: Mapping[str, Exception]) -> None:
        self.faults = dict(faults)
        self.reached: list[str] = []
        self._news = trio.Event()

    async def until(self, point: str) -> None:
        """Wait until it has been reached."""
        while point not in self.reached:
            self._news = trio.Event()
            await self._news.wait()

    async def reach(self, point: str) -> None:
        self.reached.append(point)
        self._news.set()
        fault = self.faults.pop(point, None)
        if fault is HANG:
            await trio.sleep_forever()
        elif fault is not None:
            raise fault


class Registry(ScriptedRegistry):
    def __init__(self, points: Points) -> None:
        super().__init__(Script(render_s=0.1))
        self._points = points

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> ScriptedPrompt:
        await self._points.reach(f"render {spec.id}")
        return await super().render(spec, request)

    async def prepare(self, spec: ModelSpec, report: Report) -> ScriptedModel:
        await self._points.reach(f"prepare {spec.id}")
        prepared = await super().prepare(spec, report)
        await self._points.reach(f"prepared {spec.id}")
        return prepared

    @asynccontextmanager
    async def start(
        self, prepared: ScriptedModel, report: Report, changed: Callable[[], None]
    ) -> AsyncIterator[ScriptedEngine]:
        model = prepared.spec.id
        await self._points.reach(f"start {model}")
        async with super().start(prepared, report, changed) as engine:
            self._watch(engine)
            await self._points.reach(f"started {model}")
            yield engine
            await self._points.reach(f"leave {model}")
        await self._points.reach(f"left {model}")

    def _watch(self, engine: Any) -> None:
        generate, step, model = engine.generate, engine.step, engine.model

        @asynccontextmanager
        async def watched_generate(rendered: ScriptedPrompt) -> AsyncIterator[Any]:
            await self._points.reach(f"accept {model}")
            async with generate(rendered) as generation:
                yield generation

        async def watched_step() -> None:
            try:
                await self._points.reach(f"step {model}")
            except EngineFailed as error:
                engine.fail(error)
                raise
            await step()
            await self._points.reach(f"stepped {model}")

        engine.generate, engine.step = watched_generate, watched_step


class Catalog(ScriptedCatalog):
    def __init__(self, points: Points) -> None:
        super().__init__(*MODELS)
        self._points = points

    async def resolve(self, name: str) -> ModelSpec:
        await self._points.reach(f"resolve {name}")
        return await super().resolve(name)

    async def fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        await self._points.reach(f"fetch {spec.id}")
        local = await super().fetch(spec, report)
        await self._points.reach(f"fetched {spec.id}")
        return local


@dataclass
class Scene:
    """A house with named points, and what its models answered before anything went wrong."""

    house: House
    points: Points

    async def ask(self, model: str, tokens: int = 3) -> Answer | Exception:
        """The answer; or what nobody foresaw, which the API floor turns into a 500."""
        try:
            return await self.house.ask(model, tokens)
        except Bug as bug:
            return bug

    async def check(self, after: str, resident: str | None = None) -> None:
        """That all is well, or as well as it can be.

        Args:
            after: "kept": the engine that was there has never left; "there": ``resident`` is;
                "empty": nothing is, and ``resident`` cools down; "lost": the device is.
        """
        house = self.house
        await house.until(self._is_settled)
        snapshot = house.controller.snapshot()
        assert (snapshot.leases, snapshot.waiting) == (0, {})
        assert [engine.running for engine in house.registry.engines if engine.running] == []
        alive = [engine for engine in house.registry.engines if engine.alive]
        assert alive == [house.registry.current] * len(alive)
        if after == "lost":
            assert house.phase == "failed"
            refused = await house.ask("A")
            assert isinstance(refused.error, DeviceLost)
            with pytest.raises(DeviceLost):
                await house.service.load("A", {}, "request")
            return
        if after == "kept":
            assert house.registry.current is house.registry.engines[0]
        if after == "there":
            assert house.resident == resident
        if after == "empty":
            assert (house.phase, house.resident) == ("empty", None)
            assert resident in snapshot.failures
            refused = await house.ask(resident)
            assert isinstance(refused.error, (*_TEMPORARY, ModelLoadFailed))
            assert refused.error.retry_after_s
        await trio.sleep(RECOVERED_S)
        for model in "ABA":
            answer = await house.ask(model)
            assert (answer.text, answer.finished) == (text(model), True)

    def _is_settled(self) -> bool:
        engine = self.house.registry.current
        is_ready = self.house.phase == "ready" and engine is not None and engine.failure is None
        return is_ready or self.house.phase in ("empty", "failed")


_TEMPORARY = (EngineFailed, InsufficientMemory)


def stage(
    scenario: Callable[[Scene], Awaitable[None]], faults: Mapping[str, Exception] | None = None
) -> Points:
    """Play a scenario in which each of ``faults`` happens at the point of its name."""
    points = Points(faults or {})

    async def main(house: House) -> None:
        await scenario(Scene(house, points))

    play(main, RULES, registry=Registry(points), catalog=Catalog(points))
    assert not points.faults, "each of these points has been reached"
    return points


def is_told(answer: Answer | Exception, kind: type[Exception]) -> bool:
    """It failed so, and in no other way."""
    if isinstance(answer, Answer):
        assert answer.finished == (answer.error is None)
        return type(answer.error) is kind
    return type(answer) is kind


BAD, SHORT, BUG = ModelLoadFailed("broken"), InsufficientMemory("too big"), Bug("a bug")
LOST, CRASH, DOWN = DeviceLost("gone"), EngineFailed("a step raised"), DownloadFailed("down")

# Point, fault, what the client is told, and what is there afterwards.
WHILE_A_SERVES: list[tuple[str, Exception, type[Exception], str]] = [
    ("resolve B", CheckpointRefused("wrong settings"), CheckpointRefused, "kept"),
    ("resolve B", BUG, Bug, "kept"),
    ("render B", BAD, ModelLoadFailed, "kept"),
    ("render B", InvalidRequest("too long"), InvalidRequest, "kept"),
    ("render B", BUG, Bug, "kept"),
    *[
        (point, fault, kind, "kept")
        for point in ("prepare B", "prepared B")
        for fault, kind in ((BAD, ModelLoadFailed), (SHORT, InsufficientMemory))
    ],
    ("prepare B", BUG, ModelLoadFailed, "kept"),
    ("prepared B", BUG, ModelLoadFailed, "kept"),
    *[
        (point, fault, DeviceLost, "lost")
        for point in ("leave A", "left A")
        for fault in (BAD, BUG, LOST)
    ],
    *[
        (point, fault, kind, after)
        for point in ("start B", "started B")
        for fault, kind, after in (
            (BAD, ModelLoadFailed, "back"),
            (SHORT, InsufficientMemory, "back"),
            (BUG, ModelLoadFailed, "back"),
            (LOST, DeviceLost, "lost"),
        )
    ],
    ("accept B", InvalidRequest("other settings now"), InvalidRequest, "B"),
    ("accept B", BUG, Bug, "B"),
    *[
        (point, fault, kind, after)
        for point in ("step B", "stepped B")
        for fault, kind, after in (
            (SHORT, InsufficientMemory, "B"),
            (BUG, Bug, "B"),
        )
    ],
    ("step B", CRASH, EngineFailed, "B"),
    ("step B", LOST, DeviceLost, "lost"),
]


@pytest.mark.parametrize(("point", "fault", "told", "after"), WHILE_A_SERVES)
def test_a_swap_that_fails_anywhere_leaves_a_model_that_serves(
    point: str, fault: Exception, told: type[Exception], after: str
) -> None:
    async def scenario(scene: Scene) -> None:
        house = scene.house
        assert (await house.ask("A")).finished
        answers: list[Answer | Exception] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 30)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            answers.append(await scene.ask("B"))
        long = house.answers[1]
        assert (long.text, long.finished) == (text("A", 30), True), "no answer is cut for a swap"
        assert is_told(answers[0], told)
        there = {"back": "A", "B": "B"}.get(after)
        await scene.check("there" if there else after, there)

    points = stage(scenario, {point: fault})
    if after == "kept":
        assert "leave A" not in points.reached[: points.reached.index(point) + 1]


@pytest.mark.parametrize("point", ["fetch D", "fetched D"])
@pytest.mark.parametrize(("fault", "told"), [(DOWN, DownloadFailed), (BUG, ModelLoadFailed)])
@pytest.mark.parametrize("serving", [True, False])
def test_a_download_that_fails_disturbs_nobody(
    point: str, fault: Exception, told: type[Exception], serving: bool
) -> None:
    async def scenario(scene: Scene) -> None:
        if serving:
            assert (await scene.house.ask("A")).finished
        assert is_told(await scene.ask("D"), told)
        assert "D" in scene.house.controller.snapshot().failures
        await scene.check("kept" if serving else "empty", "D")
        assert (await scene.house.ask("D")).finished, "when it may be tried again"

    stage(scenario, {point: fault})


@pytest.mark.parametrize("point", ["prepare A", "prepared A", "start A", "started A"])
@pytest.mark.parametrize("fault", [BAD, SHORT, BUG])
def test_a_first_load_that_fails_leaves_the_device_empty_and_cools_down(
    point: str, fault: Exception
) -> None:
    async def scenario(scene: Scene) -> None:
        told = ModelLoadFailed if fault is BUG else type(fault)
        assert is_told(await scene.ask("A"), told)
        await scene.check("empty", "A")

    stage(scenario, {point: fault})


@pytest.mark.parametrize("fault", [BAD, SHORT, BUG])
def test_when_the_model_before_does_not_come_back_either_it_is_tried_again_later(
    fault: Exception,
) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        scene.points.faults["start A"] = fault
        assert is_told(await scene.ask("B"), ModelLoadFailed)
        await scene.house.until(lambda: scene.house.phase == "empty")
        assert {*scene.house.controller.snapshot().failures} == {"A", "B"}
        await scene.check("empty", "A")

    stage(scenario, {"start B": BAD})


@pytest.mark.parametrize("point", ["start A", "started A"])
def test_an_engine_that_crashed_and_cannot_be_built_again_cools_down(point: str) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        scene.points.faults |= {"step A": CRASH, point: BAD}
        assert is_told(await scene.ask("A"), EngineFailed)
        await scene.house.until(lambda: scene.house.phase == "empty")
        await scene.check("empty", "A")

    stage(scenario)


def test_an_engine_that_crashes_again_and_again_cools_down() -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(CRASHES_TOLERATED + 1):
            scene.points.faults["step A"] = CRASH
            assert is_told(await scene.ask("A"), EngineFailed)
        await scene.check("empty", "A")

    stage(scenario)


@pytest.mark.parametrize("point", ["step A", "stepped A"])
def test_one_answer_without_memory_costs_no_other(point: str) -> None:
    async def scenario(scene: Scene) -> None:
        house = scene.house
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(house.ask, "A", 5)
        errors = [answer.error for answer in house.answers if answer.error]
        assert [type(error) for error in errors] == [InsufficientMemory]
        assert sum(answer.text == text("A", 5) for answer in house.answers) == 2
        await scene.check("kept")

    stage(scenario, {point: SHORT})


@pytest.mark.parametrize("fault", [CRASH, LOST])
def test_a_crash_ends_every_answer_with_an_error(fault: Exception) -> None:
    async def scenario(scene: Scene) -> None:
        house = scene.house
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 3)
            await trio.sleep(0.35)
            scene.points.faults["step A"] = fault
        assert {type(answer.error) for answer in house.answers} == {type(fault)}
        assert not any(answer.finished for answer in house.answers)
        if fault is LOST:
            await scene.check("lost")
        else:
            await scene.check("there", "A")
            assert len(house.registry.engines) > 1

    stage(scenario)


def test_a_step_that_hangs_keeps_its_model_and_the_waiters_are_told() -> None:
    async def scenario(scene: Scene) -> None:
        house = scene.house
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 5)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            other = await scene.ask("B")
            assert is_told(other, SwapInProgress)
            assert house.resident == "A"
            nursery.cancel_scope.cancel()  # its client has had enough
        await scene.check("kept")

    stage(scenario, {"step A": HANG})


HANGING = ["resolve B", "render B", "prepare B", "prepared B", "accept B", "step B", "stepped B"]


@pytest.mark.parametrize("point", HANGING)
def test_a_client_that_leaves_while_something_hangs_leaves_nothing_behind(point: str) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        with trio.move_on_after(10.0) as leaving:
            await scene.ask("B")
        assert leaving.cancelled_caught
        before = HANGING.index("accept B") > HANGING.index(point)
        await scene.check("kept" if before else "there", None if before else "B")

    stage(scenario, {point: HANG})


@pytest.mark.parametrize("point", ["prepare B", "prepared B"])
def test_a_load_that_hangs_can_be_called_off(point: str) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.house.ask, "B")
            await scene.points.until(point)
            await scene.house.service.unload("B")
        assert is_told(scene.house.answers[-1], ModelUnloaded)
        await scene.check("kept")

    stage(scenario, {point: HANG})


@pytest.mark.parametrize("point", ["leave A", "left A"])
@pytest.mark.parametrize("how", ["unload", "sleep"])
def test_a_model_that_cannot_be_unloaded_is_a_lost_device(point: str, how: str) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        service = scene.house.service
        with pytest.raises(DeviceLost):
            await (service.unload() if how == "unload" else service.sleep(park=True))
        await scene.check("lost")

    stage(scenario, {point: BUG})


AT = [
    *("fetch D", "fetched D", "prepare B", "prepared B", "leave A", "left A", "start B"),
    *("started B", "accept B", "step B", "stepped B"),
]


@pytest.mark.parametrize("point", AT)
@pytest.mark.parametrize("fault", [BAD, HANG])
def test_a_server_that_is_told_to_stop_stops_whatever_goes_wrong_meanwhile(
    point: str, fault: Exception
) -> None:
    """`play` sees to it that nothing is left over."""

    async def scenario(scene: Scene) -> None:
        assert (await scene.house.ask("A")).finished
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.house.ask, "D" if point.endswith("D") else "B")
            await scene.points.until(point)
            scene.house.controller.stop_admitting()
            if fault is HANG:
                nursery.cancel_scope.cancel()

    if fault is HANG and point.startswith(("lea", "lef", "star")):
        pytest.skip("the engine floor gives up what hangs on the device by itself")
    stage(scenario, {point: fault})


def test_every_named_point_has_been_reached_somewhere() -> None:
    async def scenario(scene: Scene) -> None:
        for model in "ABD":
            assert (await scene.house.ask(model)).finished

    reached = set(stage(scenario).reached)
    named = {point for point, *_ in WHILE_A_SERVES} | {*HANGING, *AT}
    assert named <= reached
    assert len(reached) >= 25
