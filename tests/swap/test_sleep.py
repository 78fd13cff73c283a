"""Sleeping, waking up, and what is kept in host memory meanwhile."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.snapshot import UnloadReason
from hotswap.errors import HotswapError, ModelNotFound, ModelUnloaded, SwapInProgress
from hotswap.scripted import Script
from tests.swap.house import ON_DEMAND, House, play


def parked(house: House) -> list[str]:
    return [model.model for model in house.controller.snapshot().parked]


async def statuses(house: House) -> dict[str, str]:
    return {listing.id: listing.status for listing in await house.service.models()}


def test_a_light_sleep_keeps_the_model_in_host_memory_and_a_deep_one_does_not() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert (await house.service.sleep(park=True)).model == "A"
        assert (parked(house), house.phase) == (["A"], "empty")
        assert (await statuses(house))["A"] == "sleeping"
        await house.service.wake_up()
        assert (parked(house), house.resident) == ([], "A")
        await house.service.sleep(park=False)
        assert (parked(house), house.phase) == ([], "empty")
        assert (await house.service.wake_up()).model == "A"

    play(scenario)


def test_a_light_sleep_can_be_deepened() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.service.sleep(park=True)
        assert (await house.service.sleep(park=False)).model is None
        assert parked(house) == []

    play(scenario)


def test_an_unload_may_let_go_of_the_host_memory_too() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        assert not (await house.service.unload(park=False)).parked
        assert parked(house) == ["A"]
        await house.ask("B")
        assert (await house.service.unload()).parked

    play(scenario)


def test_it_wakes_with_the_settings_that_it_had() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("B", {"max_model_len": 64}, "request")
        await house.service.sleep(park=True)
        await house.service.wake_up()
        resident = house.controller.occupancy.resident
        assert resident is not None
        assert (resident.id, resident.engine.max_model_len) == ("B", 64)

    play(scenario, startup="A")


@pytest.mark.parametrize("name", [None, "current", "B"])
def test_with_on_demand_loading_a_request_wakes_it(name: str | None) -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        await house.service.sleep(park=True)
        assert (await house.ask(name)).model == "B"

    assert play(scenario, startup="A").registry.started == ["B", "B"]


def test_another_model_ends_the_sleep() -> None:
    async def scenario(house: House) -> None:
        await house.ask("B")
        await house.service.sleep(park=True)
        await house.ask("C", keep_alive_s=0.0)
        await house.until(lambda: house.phase == "empty")
        assert (await house.ask("current")).model == "A", "B does not sleep any more, it is gone"

    play(scenario, startup="A")


def test_without_on_demand_loading_only_a_wake_up_wakes_it() -> None:
    async def scenario(house: House) -> None:
        await house.service.load(None, {}, "request")
        await house.service.sleep(park=True)
        for name in (None, "A"):
            assert isinstance((await house.ask(name)).error, ModelUnloaded)
        assert not house.controller.snapshot().serviceable
        await house.service.wake_up()
        assert (await house.ask(None)).model == "A"

    play(scenario, SwapRules(), startup="A")


def test_a_failed_wake_up_is_told_and_not_tried_for_ever() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("B", {"max_model_len": 64}, "request")
        await house.service.sleep(park=True)
        house.registry.script.prepare_errors["B"] = ModelUnloaded("broken")
        assert isinstance((await house.ask("current")).error, ModelUnloaded)
        await house.until(lambda: house.phase == "empty")

    assert play(scenario, startup="A").registry.started == ["B"]


def test_waking_up_what_is_awake_does_nothing() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {"max_model_len": 64}, "request")
        assert (await house.service.wake_up()).already_loaded

    assert play(scenario, startup="B").registry.started == ["A"]


def test_waking_up_during_a_load_waits_for_it() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(0.5)
            assert (await house.service.wake_up()).model == "B"

    assert play(scenario, startup="A").registry.started == ["B"]


def test_waking_up_what_is_awake_wants_nothing_of_the_model_that_is_prepared() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.ask, "B")
                await trio.sleep(0.2)
                assert (await house.service.wake_up()).model == "A"
        await trio.sleep(5)
        assert house.resident == "A"

    assert play(scenario).registry.started == ["A"]


def test_waking_up_brings_the_last_model_or_the_startup_one_or_says_that_there_is_none() -> None:
    async def scenario(house: House) -> None:
        if house.catalog.startup is None:
            with pytest.raises(ModelNotFound):
                await house.service.wake_up()
        else:
            assert (await house.service.wake_up()).model == house.catalog.startup
        await house.ask("C", keep_alive_s=0.0)
        await house.until(lambda: house.phase == "empty")
        assert (await house.service.wake_up()).model == "C"

    play(scenario)
    play(scenario, startup="A")


def test_running_answers_end_first_unless_they_are_to_be_aborted() -> None:
    async def scenario(house: House) -> None:
        for mode, ends in (("drain", True), ("abort", False)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.ask, "A", 20)
                await house.until(lambda: house.controller.snapshot().leases == 1)
                await house.service.sleep(park=True, mode=mode)  # type: ignore[arg-type]
            assert house.answers[-1].finished == ends
        error = house.answers[-1].error
        assert isinstance(error, ModelUnloaded)
        assert error.message == "The model was put to sleep; POST /wake_up wakes it."

    play(scenario)


def test_a_model_that_cannot_drain_in_time_stays_awake() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            with pytest.raises(SwapInProgress):
                await house.service.sleep(park=False)
            assert house.controller.occupancy.asleep is None
        assert house.answers[0].finished

    rules = SwapRules(on_demand=True, drain_timeout_s=1.0)
    play(scenario, rules, Script(), startup="A")


PUT_TO_SLEEP = "The server was put to sleep"


def refused_by_sleep(error: HotswapError | None) -> bool:
    return isinstance(error, ModelUnloaded) and error.message.startswith(PUT_TO_SLEEP)


@pytest.mark.parametrize(
    ("moment_s", "phase", "tokens"),
    [(0.5, "ready", 3), (0.9, "draining", 10), (1.3, "loading", 3)],
)
def test_sleep_calls_off_a_load_and_what_was_there_before_it_sleeps(
    moment_s: float, phase: str, tokens: int
) -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {"max_model_len": 64}, "request")
        async with trio.open_nursery() as nursery:
            begun = trio.current_time()
            for model in ("A", "B", "C"):
                nursery.start_soon(house.ask, model, tokens)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(moment_s)
            assert house.phase == phase
            await house.service.sleep(park=True)
            assert (house.phase, house.registry.current) == ("empty", None)
            assert trio.current_time() - begun < 2
        assert house.answers[0].finished
        assert all(refused_by_sleep(answer.error) for answer in house.answers[1:])
        await trio.sleep(60)
        assert (house.phase, (await statuses(house))["A"]) == ("empty", "sleeping")
        assert (await house.service.wake_up()).model == "A"
        resident = house.controller.occupancy.resident
        assert resident is not None
        assert resident.engine.max_model_len == 64

    script = Script(prepare_s=0.8, start_s=1.0)
    assert play(scenario, ON_DEMAND, script).registry.started[-1] == "A"


def test_sleep_while_one_model_leaves_for_another_one_brings_neither() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(1.5)
            assert (house.phase, house.registry.current) == ("draining", None)
            await house.service.sleep(park=False)
            assert (house.phase, parked(house)) == ("empty", [])
        assert refused_by_sleep(house.answers[-1].error)
        await trio.sleep(60)
        assert house.phase == "empty"
        assert house.controller.snapshot().unloads_by_reason[UnloadReason.REQUEST] == 1

    assert play(scenario, ON_DEMAND, Script(stop_s=1.0)).registry.started == ["A"]


def test_sleep_holds_also_where_the_model_before_is_about_to_come_back() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading")
            await house.service.unload("B")
            await trio.sleep(0.5)
            assert (house.phase, house.registry.started) == ("loading", ["A", "B"])
            assert house.registry.current is None, "B is on its way off the device again"
            await house.service.sleep(park=True)
        await trio.sleep(60)
        assert (house.phase, parked(house)) == ("empty", ["A", "B"])
        assert (await house.service.wake_up()).model == "A"

    script = Script(stop_s=1.0)
    assert play(scenario, ON_DEMAND, script).registry.started == ["A", "B", "A"]


@pytest.mark.parametrize("park", [True, False])
@pytest.mark.parametrize(("moment_s", "started"), [(0.5, ["B"]), (1.05, ["B", "B"])])
def test_of_a_first_load_that_is_called_off_the_model_sleeps(
    moment_s: float, started: list[str], park: bool
) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await trio.sleep(moment_s)
            assert house.phase == "loading"
            await house.service.sleep(park=park)
            assert house.phase == "empty"
        assert refused_by_sleep(house.answers[0].error)
        assert parked(house) == ([] if not park or len(started) == 1 else ["B"])
        assert (await house.service.wake_up()).model == "B"

    assert play(scenario, startup="A").registry.started == started


def test_without_on_demand_loading_a_called_off_load_stays_off() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A")
            await house.until(lambda: house.phase == "loading")
            nursery.start_soon(partial(house.service.sleep, park=True))
            await trio.lowlevel.checkpoint()
            assert isinstance((await house.ask("A")).error, ModelUnloaded)
        assert isinstance((await house.ask("A")).error, ModelUnloaded)
        assert house.phase == "empty"
        await house.service.wake_up()
        assert (await house.ask("A")).finished

    play(scenario, SwapRules(), startup="A")


@pytest.mark.parametrize("moment_s", [0.0, 0.5, 1.05])
def test_who_wakes_it_up_is_told_that_it_was_put_to_sleep_again(moment_s: float) -> None:
    async def scenario(house: House) -> None:
        await house.service.load("A", {"max_model_len": 64}, "request")
        await house.service.sleep(park=True)
        told: list[HotswapError] = []

        async def wake_up() -> None:
            with pytest.raises(ModelUnloaded) as refusal:
                await house.service.wake_up()
            told.append(refusal.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake_up)
            await house.until(lambda: bool(house.controller.desk.load_wishes))
            await trio.sleep(moment_s)
            await house.service.sleep(park=True)
            assert house.phase == "empty"
        assert [refused_by_sleep(error) for error in told] == [True]
        await house.service.wake_up()
        resident = house.controller.occupancy.resident
        assert resident is not None
        assert resident.engine.max_model_len == 64

    play(scenario, startup="B")


def test_a_wake_up_right_behind_a_sleep_brings_it_back() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading")
            nursery.start_soon(partial(house.service.sleep, park=True))
            await trio.sleep(0.01)
            assert house.phase == "loading", "B is half on the device"
            assert (await house.service.wake_up()).model == "A"
        assert house.resident == "A"

    play(scenario, ON_DEMAND, Script(start_s=1.0))


def test_a_download_is_called_off_too() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "remote")
            await trio.sleep(0.5)
            await house.service.sleep(park=True)
        assert refused_by_sleep(house.answers[0].error)
        await trio.sleep(60)
        assert (house.phase, house.catalog.fetched) == ("empty", [])

    play(scenario, models=(ModelSpec(id="remote", path=None),))


def sleeps(house: House) -> bool:
    return house.controller.snapshot().is_sleeping


@pytest.mark.parametrize("park", [True, False])
def test_it_sleeps_from_when_it_is_put_to_sleep_until_a_model_comes(park: bool) -> None:
    async def scenario(house: House) -> None:
        assert not sleeps(house), "nothing has been loaded"
        await house.service.sleep(park=park)
        assert not sleeps(house), "there is nothing to wake up"
        await house.ask("A")
        assert not sleeps(house)
        await house.service.sleep(park=park)
        assert (sleeps(house), house.controller.snapshot().asleep) == (True, "A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.service.wake_up)
            await house.until(lambda: house.phase == "loading")
            assert not sleeps(house)
        assert (house.resident, house.controller.snapshot().asleep) == ("A", None)

    play(scenario)


def test_what_left_sleeps_as_long_as_it_is_parked() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.service.unload()
        assert sleeps(house)
        await house.service.unload("A")
        assert not sleeps(house), "it was let go of"
        await house.ask("A")
        await house.service.unload(park=False)
        assert not sleeps(house)

    play(scenario)


def test_what_was_let_go_of_does_not_sleep_because_another_model_is_parked() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        await house.ask("B")
        await house.service.unload(park=False)
        assert (parked(house), sleeps(house)) == (["A"], False), "A would not be woken"
        assert (await house.service.wake_up()).model == "B"
        await house.service.unload()
        assert (parked(house), sleeps(house)) == (["A", "B"], True)
        assert (await house.service.wake_up()).model == "B"

    play(scenario)


@pytest.mark.parametrize("park", [True, False])
def test_a_sleep_without_room_in_host_memory_says_so(
    park: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        report = await house.service.sleep(park=park)
        assert (report.model, report.parked, parked(house)) == ("A", False, [])
        assert (await house.service.wake_up()).model == "A"

    play(scenario, script=Script(parks=False))
    told = [one.getMessage() for one in caplog.records if "--park-memory" in one.getMessage()]
    assert len(told) == park, "who did not want it kept need not be told"
    assert all("'A' was put to sleep and let go of" in line for line in told)


@pytest.mark.parametrize("parks", [True, False])
def test_a_sleep_on_the_way_to_another_model_tells_of_the_one_that_sleeps(parks: bool) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "B")
            await house.until(lambda: house.phase == "loading")
            begun = trio.current_time()
            report = await house.service.sleep(park=True)
            waited_s = trio.current_time() - begun
        assert (report.model, report.parked, report.called_off) == ("A", parks, "B")
        assert report.total_time_s == pytest.approx(waited_s)
        assert waited_s > 1.0, "what was half on the device had to leave it"

    play(scenario, script=Script(start_s=1.0, parks=parks))
