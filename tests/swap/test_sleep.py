"""Sleeping, waking up, and what is kept in host memory meanwhile."""

from __future__ import annotations

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.errors import ModelNotFound, ModelUnloaded, SwapInProgress
from hotswap.scripted import Script
from tests.swap.house import House, play


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
        resident = house.controller.resident
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

    play(scenario)


def test_a_model_that_cannot_drain_in_time_stays_awake() -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ask, "A", 50)
            await house.until(lambda: house.controller.snapshot().leases == 1)
            with pytest.raises(SwapInProgress):
                await house.service.sleep(park=False)
            assert house.controller.asleep is None
        assert house.answers[0].finished

    rules = SwapRules(on_demand=True, drain_timeout_s=1.0)
    play(scenario, rules, Script(), startup="A")
