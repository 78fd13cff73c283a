"""Where the time of a swap goes, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.scripted import Script, ScriptedEngine, ScriptedModel, ScriptedRegistry
from tests.swap.house import House, play


def script(house: House) -> Script:
    house.registry.script.token_s = 0.5
    house.registry.script.prepare_s = 3.0
    house.registry.script.start_s = 0.2
    house.registry.script.stop_s = 0.4
    return house.registry.script


def test_the_phases_of_a_swap_add_up_to_the_wait_for_the_first_token() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        script(house)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 20)  # ten seconds
            await house.until(lambda: house.controller.snapshot().leases == 1)
            await trio.sleep(1.0)
            nursery.start_soon(house.ask, "B", 3)
        timings = house.controller.snapshot().timings
        assert list(timings) == [
            *("queued", "prepare", "patience", "drain"),
            *("teardown", "start", "warm_up", "gap", "first_token"),
        ]
        assert timings["queued"] == pytest.approx(0.0, abs=1e-6)
        assert timings["prepare"] == pytest.approx(3.0)
        assert timings["teardown"] == pytest.approx(0.4)
        assert timings["start"] == pytest.approx(0.2)
        assert timings["warm_up"] == 0.0
        assert timings["first_token"] == pytest.approx(0.5)
        phases = sum(seconds for phase, seconds in timings.items() if phase != "gap")
        assert phases == pytest.approx(10.0 - 1.0 + 0.4 + 0.2 + 0.5, abs=0.02)
        assert house.answers[-1].text.startswith("B 0")

    play(scenario)


def test_the_gap_is_from_the_last_token_of_the_old_model_until_the_new_one_could_answer() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        script(house)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 20)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "B", 3)
        assert house.controller.snapshot().timings["gap"] == pytest.approx(0.4 + 0.2)

    play(scenario)


def test_the_gap_after_an_idle_model_is_from_when_the_new_one_was_wanted() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        script(house)
        await trio.sleep(100.0)
        await house.ask("B")
        assert house.controller.snapshot().timings["gap"] == pytest.approx(3.0 + 0.4 + 0.2)

    play(scenario)


def test_without_a_model_before_it_there_is_no_gap() -> None:
    async def scenario(house: House) -> None:
        script(house)
        report = await house.service.load("A", {}, "request")
        assert list(report.timings) == ["queued", "prepare", "start", "warm_up"]
        await trio.sleep(7.0)
        await house.ask("A")
        assert "first_token" not in house.controller.snapshot().timings, "nobody waited for it"

    play(scenario)


def test_what_a_load_will_take_depends_on_whether_the_model_is_parked() -> None:
    async def scenario(house: House) -> None:
        expected = house.controller.history.expected_load_s
        assert expected("A") is None
        script(house)
        await house.ask("A")
        await house.ask("B")
        assert expected("A") == pytest.approx(0.2), "parked, it needs not be read"
        house.registry.script.prepare_s = 0.5
        await house.ask("A")
        await house.ask("B")
        assert expected("A") == pytest.approx(0.7), "the last time, from the park, it took this"
        house.registry.forget("A")
        assert expected("A") == pytest.approx(3.2)
        await house.ask("A")
        assert house.controller.history.expected_load_s("A") == pytest.approx(0.7), (
            "the last one counts"
        )

    play(scenario)


def test_what_a_load_will_take_is_told_without_what_is_done_once_and_without_waiting() -> None:
    class Once(ScriptedRegistry):
        """The first load of the process waits for what is imported, and each model's first one
        finds out how to run it."""

        async def prepare(self, spec: ModelSpec, report: Report) -> ScriptedModel:
            if not self.prepared:
                await trio.sleep(30.0)
            return await super().prepare(spec, report)

        @asynccontextmanager
        async def start(
            self, prepared: ScriptedModel, report: Report, changed: Callable[[], None]
        ) -> AsyncIterator[ScriptedEngine]:
            is_first = prepared.spec.id not in self.started
            self.script.start_s = 5.2 if is_first else 0.2
            async with super().start(prepared, report, changed) as engine:
                stats, warm_up = engine.stats, {"warm_up_s": 5.0 * is_first}
                engine.stats = lambda: replace(stats(), details=warm_up)  # type: ignore[method-assign]
                yield engine

    async def scenario(house: House) -> None:
        script(house)
        report = await house.service.load("A", {}, "request")
        assert report.load_time_s == pytest.approx(30.0 + 3.0 + 5.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 40)  # twenty seconds
            await house.until(lambda: house.controller.snapshot().leases == 1)
            report = await house.service.load("B", {}, "request")
        assert report.load_time_s > 20.0
        for model in "AB":
            house.registry.forget(model)
            assert house.controller.history.expected_load_s(model) == pytest.approx(3.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B", 40)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            nursery.start_soon(house.ask, "A")
            left_s = []
            for _ in range(2):
                await trio.sleep(6.0)
                progress = house.controller.snapshot().progress
                assert progress is not None
                left_s.append(progress.eta_s)
        assert left_s == [None, None], "nobody knows how long the other model's answers take"

    play(scenario, registry=Once())


def test_a_request_that_waits_for_another_model_s_load_is_queued() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        script(house)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B", 1)
            await house.until(lambda: house.controller.occupancy.coming is not None)
            await trio.sleep(1.0)
            nursery.start_soon(house.ask, "C", 1)
        timings = house.controller.snapshot().timings
        assert house.controller.occupancy.resident is not None
        assert house.controller.occupancy.resident.id == "C"
        assert timings["queued"] >= 2.0
        assert sum(timings[p] for p in ("prepare", "start")) == pytest.approx(3.2)

    play(scenario)
