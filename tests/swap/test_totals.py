"""What is counted over all loads, in virtual time: it never goes back, and nothing is left out."""

from __future__ import annotations

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.reports import MemoryReport
from hotswap.contracts.snapshot import UnloadReason
from hotswap.errors import DeviceLost, EngineFailed, InsufficientMemory
from hotswap.residency.stay import Residency
from hotswap.residency.totals import Totals
from hotswap.scripted import (
    Script,
    ScriptedCatalog,
    ScriptedEngine,
    ScriptedModel,
    ScriptedRegistry,
)
from hotswap.swap import SwapController
from tests.swap.house import ON_DEMAND, House, drawn, play, spec, watch_counters


def unloads(house: House) -> dict[str, int]:
    """Those that there were, by reason."""
    by_reason = house.controller.snapshot().unloads_by_reason
    return {reason.value: count for reason, count in by_reason.items() if count}


def test_no_counter_goes_back_whatever_becomes_of_the_engines() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_counters, house)
            await house.ask("A", 5)
            await house.ask("B", 4)
            house.registry.engines[-1].fail(EngineFailed("a step raised"))
            await house.until(lambda: len(house.registry.engines) == 3 and house.phase == "ready")
            await house.ask("B", 3)
            await house.service.unload()
            await house.ask("A", 2)
            await house.until(lambda: house.phase == "empty")
            await house.ask("C", 1)
            nursery.cancel_scope.cancel()
        assert house.controller.snapshot().tokens == drawn(house) == 5 + 4 + 3 + 2 + 1

    house = play(scenario, SwapRules(on_demand=True, patience_s=0.0, idle_timeout_s=50.0))
    snapshot = house.controller.snapshot()
    assert (snapshot.loads, snapshot.swaps, snapshot.rebuilds) == (5, 3, 1)
    assert unloads(house) == {"failure": 1, "request": 1, "idle": 1, "shutdown": 1}
    assert snapshot.unloads == 4
    assert snapshot.tokens == drawn(house)


def test_the_seconds_of_a_phase_are_added_up_over_the_loads() -> None:
    async def scenario(house: House) -> None:
        added: dict[str, float] = {}
        for model in "ABA":
            await house.ask(model)
            snapshot = house.controller.snapshot()
            for phase, seconds in snapshot.timings.items():
                added[phase] = added.get(phase, 0.0) + seconds
            assert snapshot.phase_seconds == pytest.approx(added, abs=1e-6)
        assert added["prepare"] == pytest.approx(9.0, abs=1e-6)
        assert added["first_token"] == pytest.approx(1.5, abs=1e-6)
        await house.service.unload()
        assert house.controller.snapshot().phase_seconds == pytest.approx(added, abs=1e-6)

    play(scenario, script=Script(prepare_s=3.0, token_s=0.5))


def test_a_load_that_fails_adds_no_seconds() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.start_errors["A"] = InsufficientMemory("too big")
        assert isinstance((await house.ask("A")).error, InsufficientMemory)
        assert house.controller.snapshot().phase_seconds == {}

    play(scenario)


def test_a_swap_is_not_an_unload() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        assert unloads(house) == {}

    play(scenario)


@pytest.mark.parametrize(("ttl_s", "reasons"), [(5.0, {"idle": 1}), (None, {})])
def test_an_idle_model_s_unload_is_its_own_kind(
    ttl_s: float | None, reasons: dict[str, int]
) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await trio.sleep(10.0)
        assert unloads(house) == reasons

    play(scenario, ON_DEMAND, models=(spec("A", ttl_s=ttl_s),))


def test_a_sleep_is_an_unload_on_request() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.service.sleep(park=True)
        assert unloads(house) == {"request": 1}

    play(scenario)


def test_the_tokens_of_an_engine_that_could_not_be_taken_down_are_kept() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A", 5)
        house.registry.script.stop_errors["A"] = DeviceLost("gone")
        assert isinstance((await house.ask("B")).error, DeviceLost)
        assert house.controller.snapshot().tokens == 5

    play(scenario)


def test_what_models_leave_behind_is_added_up() -> None:
    async def scenario(house: House) -> None:
        for model, leaked_bytes in (("A", 0), ("B", 5), ("C", 5), ("A", 12), ("C", 17)):
            await house.ask(model)
            assert house.controller.snapshot().teardown_leaked_bytes == leaked_bytes
        memory = house.controller.snapshot().memory
        assert memory is not None
        assert memory.leaked_bytes == 5, "of the last one"
        house.registry.script.start_errors["B"] = InsufficientMemory("too big")
        assert (await house.ask("B")).error is not None
        assert house.controller.snapshot().teardown_leaked_bytes == 24

    assert play(scenario, script=Script(leaked_bytes={"A": 5, "C": 7})).registry.started[-1] == "C"


def test_what_a_called_off_load_leaves_behind_counts_too() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await trio.sleep(1.05)
            assert house.phase == "loading"
            await house.service.sleep(park=True)
        assert (house.registry.started, house.controller.snapshot().teardown_leaked_bytes) == (
            ["A"],
            5,
        )

    play(scenario, script=Script(leaked_bytes={"A": 5}))


def test_an_engine_that_is_not_built_again_is_no_rebuild() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        house.registry.script.start_errors["A"] = InsufficientMemory("no room any more")
        house.registry.engines[-1].fail(EngineFailed("a step raised"))
        await house.until(lambda: house.phase == "empty")
        assert (unloads(house), house.controller.snapshot().rebuilds) == ({"failure": 1}, 0)

    play(scenario)


def test_what_the_images_before_this_one_began_again_is_told() -> None:
    registry, catalog = ScriptedRegistry(), ScriptedCatalog()
    controller = SwapController(registry, catalog.fetch, ON_DEMAND, restarts=2)
    assert controller.snapshot().restarts == 2


def test_a_load_tells_what_the_model_that_made_way_gave_back() -> None:
    async def scenario(house: House) -> None:
        assert (await house.service.load("A", {}, "request")).memory is None
        report = await house.service.load("B", {}, "request")
        assert report.memory is not None
        assert (report.previous_model, report.memory.leaked_bytes) == ("A", 5)
        again = await house.service.load("B", {}, "request")
        assert (again.already_loaded, again.memory) == (True, None)
        await house.service.unload()
        assert (await house.service.load("A", {}, "request")).memory is None

    play(scenario, script=Script(leaked_bytes={"A": 5}))


class TestTheTotalsAlone:
    def test_count_each_teardown_once(self) -> None:
        totals, first = Totals(), leaked(3)
        for memory in (None, first, first, leaked(3)):
            totals.torn_down(memory)
        assert totals.leaked_bytes == 6

    def test_have_what_a_stay_counts_on_top_until_it_has_ended(self) -> None:
        async def main() -> None:
            totals = Totals()
            engine = ScriptedEngine(1, "A", Script(), lambda: None)
            stay = Residency(ScriptedModel(spec("A")), engine, 10.0, 10.0, None, awaited=True)
            totals.loaded({"start": 2.0}, swapped=False, rebuilt=False)
            assert totals.timings(stay) == {"start": 2.0}
            engine.first_token, engine.steps = 10.5, 7
            so_far = totals.timings(stay)
            assert so_far == {"start": 2.0, "first_token": 0.5}
            assert totals.phase_seconds(so_far) == so_far
            assert totals.tokens(7) == 7
            totals.ended(stay)
            assert totals.timings(None) == totals.phase_seconds({}) == so_far
            assert totals.tokens(0) == 7
            totals.loaded({"start": 1.0}, swapped=True, rebuilt=True)
            assert totals.phase_seconds({"start": 1.0}) == {"start": 3.0, "first_token": 0.5}
            assert (totals.loads, totals.swaps, totals.rebuilds) == (2, 1, 1)

        trio.run(main)

    def test_give_readings_that_do_not_change(self) -> None:
        totals = Totals()
        before = totals.unloads()
        totals.unloaded(UnloadReason.IDLE)
        assert before == dict.fromkeys(UnloadReason, 0)
        assert totals.unloads() == {**before, UnloadReason.IDLE: 1}


def leaked(count: int) -> MemoryReport:
    return MemoryReport(before_bytes=9, after_bytes=count, baseline_bytes=0, leaked_bytes=count)
